"""What a compression works on: teacher, data and settings that fit each other, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from understudy.config.job import Compression
from understudy.config.methods import Method
from understudy.config.training import Training
from understudy.core.answers import Answers
from understudy.core.architecture import Architecture, Space
from understudy.core.errors import (
    ArchitectureError,
    ConfigError,
    DamageError,
    DataError,
    ModelError,
    RunError,
    SurgeryError,
    brief,
)
from understudy.core.evaluation import Cost
from understudy.core.files import path_of, understood
from understudy.core.goal import Reward
from understudy.cost import predict as cost
from understudy.data import Data
from understudy.data.data import first_images
from understudy.data.views import check_augmentation
from understudy.export.onnx import OnnxModel, in_onnxruntime
from understudy.graph.analysis import Analysis, analyse
from understudy.graph.copies import copied
from understudy.graph.kinds import check_learns, check_module
from understudy.methods.base import Problem
from understudy.methods.feasibility import refuse_what_is_out_of_reach
from understudy.models.card import StudentCard
from understudy.models.code import allowed, is_code
from understudy.models.spec import ModelSpec, Teacher
from understudy.models.student import load_student, student_folder
from understudy.models.weights import load_kept, read_weights, tensors_digest, weights_digest
from understudy.proof.prove import USUAL, Proof, prove
from understudy.report.progress import Display
from understudy.runs.folder import Identity, Run, is_run
from understudy.runs.places import place_of
from understudy.surgery import build as surgery
from understudy.training.aim import Aim, aimed
from understudy.training.builtin import BUILT_IN
from understudy.training.evaluator import Evaluator
from understudy.training.loop import Compute
from understudy.training.objectives import Objective

_REFUSED_SHOWN = 5  # all of them are in inspect and in proof.json
_NAMES_SHOWN = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Teacher, data and settings of one compression. Make one with `Task.of`."""

    teacher: Teacher  # a copy, on the CPU, in evaluation mode
    data: Data
    settings: Compression
    analysis: Analysis
    opened: Mapping[str, Any] | None = None  # how `Data.open` was called, if it was
    policy: Mapping[str, Tensor] | None = None  # that the search starts from, if it does
    start: nn.Module | None = None  # what is cut, where that is not the teacher itself; kept as the teacher is
    start_folder: Path | None = None  # that it was read from
    aim: Aim  # what outputs are for
    proof: Proof  # that students compute what slicing promises; what it refused is not in the Space
    _sessions: dict[int, OnnxModel] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        teacher: nn.Module | Teacher,
        data: Data,
        settings: Compression,
        *,
        leaf_modules: tuple[type[nn.Module], ...] = (),
        opened: Mapping[str, Any] | None = None,
        policy: Mapping[str, Tensor] | None = None,
        start: nn.Module | str | Path | None = None,
        trust_code: bool = False,
        run: str | Path | None = None,
        objective: Objective | None = None,
        progress: bool = False,
    ) -> Task:
        """Check that everything fits, without training anything, and return the task.

        Args:
            teacher: any traceable trained module; it is not touched.
            data: what it was trained for.
            settings: all that decides the result.
            leaf_modules: classes in the teacher to take as one operation; their channels keep their width.
            opened: how `Data.open` was called, if it was, so that a later process can do it again.
            policy: what `policy_from` of the settings named when a run of this task was started.
            start: a student of another run, or the folder of one or of its run, to cut in the teacher's place; it
                is not touched.
            trust_code: run the Python file in the folder of `start`, if its teacher is made by one.
            run: the folder of a run that this may continue; what was proved for it is not proved again.
            objective: what outputs are for, where that is an objective of the caller's own.
            progress: show how far the proof is.

        Raises:
            ConfigError: a setting is impossible, or the policy to start from does not fit.
            DataError: the outputs of the teacher or of what it starts from do not fit the objective or the targets.
            ModelError: there is no student to start from, or it is made by code that may not be run.
            TraceError: one of them cannot be traced, or is frozen, or wrapped.
            GoalError: not even the smallest student would keep the budgets.
        """
        known = teacher if isinstance(teacher, Teacher) else Teacher(module=teacher)
        for module in (known.module, *([start] if isinstance(start, nn.Module) else ())):
            check_module(module)
            check_learns(module)
        own = replace(known, module=copied(known.module).cpu().float().eval())
        data = own.fit(data)
        aim = aim_for(own.module, data, settings, objective)
        folder = None if start is None or isinstance(start, nn.Module) else student_folder(start)
        begun: nn.Module | None = None  # what is cut in the teacher's place
        if folder is not None:
            begun = _started(folder, own.module, leaf_modules, trust_code)
        elif isinstance(start, nn.Module):
            begun = copied(start).cpu().float().eval()
        if begun is not None:
            aim_for(begun, data, settings, objective)
        analysis = analyse(own.module if begun is None else begun, first_images(data, data.val, 2), leaf_modules)
        analysis, proof = proved(analysis, run, progress=progress)
        task = cls(
            teacher=own,
            data=data,
            settings=settings,
            analysis=analysis,
            opened=opened,
            policy=policy,
            start=begun,
            start_folder=folder,
            aim=aim,
            proof=proof,
        )
        if policy is None and settings.policy_from is not None:
            task = replace(task, policy=_learned(settings.policy_from, task))
        task._refuse_what_is_out_of_reach()
        return task

    def _refuse_what_is_out_of_reach(self) -> None:
        """Judge the goal by what is predicted; what is measured, latency and score, cannot be judged yet."""
        settings = self.settings
        predicted = replace(settings.goal, latency_ms=None, score=None, score_drop=None)
        if settings.goal.int8:
            predicted = replace(predicted, size_mb=None)  # that of files, two of which will be written
        budgets = predicted.budgets(self.cost, score=0.0)
        refuse_what_is_out_of_reach(budgets, self.space, settings.method, settings.widths, self.predict)

    @classmethod
    def of_run(
        cls,
        run: Run,
        *,
        trust_code: bool = False,
        model: str | None = None,
        data: str | None = None,
        progress: bool = False,
    ) -> Task:
        """Return the task of a run that the command line started, from what its folder says.

        Args:
            run: the run.
            trust_code: run the Python file in its folder that makes the teacher, if there is one.
            model: FILE.py:FACTORY, to run in its place.
            data: where the data are now; None for where they were, from the run's folder or from here.
            progress: show how far the proof is, if the run has none.

        Raises:
            RunError: it was started in Python, so that teacher and data are not known by name; or it is damaged.
            ModelError: the teacher is made by code that may not be run.
            DataError: the data are not where they were.
        """
        source = run.recall("source")
        if source is None or source["model"] is None or source["data"] is None:
            raise RunError(
                f"a run is resumed by the command line if the command line started it, but {run.folder} was "
                f"started in Python: call compress(teacher, data, run={str(run.folder)!r}, ...) again; one that was "
                "stopped as it began goes on by the command that began it"
            )
        name = allowed(run.folder, source["model"]["name"], trust_code=trust_code, model=model)
        spec = ModelSpec(name=name, arguments=source["model"]["arguments"])
        module = spec.build()
        try:
            load_kept(module, run.folder / "teacher.safetensors")
        except ModelError as error:
            way = "Mend it, or move it away and give the command that began the run again, which writes it anew"
            raise RunError(f"{error}. {way}") from error
        mean, std = (None if source[name] is None else tuple(source[name]) for name in ("mean", "std"))
        teacher = Teacher(module=module, spec=spec, mean=mean, std=std)
        policy = read_weights(run.policy_from, ours=True) if run.policy_from.is_file() else None
        opened = {**source["data"], "spec": place_of(source["data"]["spec"], run.folder) if data is None else data}
        return cls.of(
            teacher,
            Data.open(**opened),
            run.settings,
            opened=opened,
            policy=policy,
            start=run.start if run.start.is_dir() else None,
            trust_code=trust_code,
            run=run.folder,
            progress=progress,
        )

    @property
    def space(self) -> Space:
        """What the teacher allows."""
        return self.analysis.space

    @cached_property
    def network(self) -> nn.Module:
        """The teacher as it teaches and is timed: with plain weights, where it computes some (`Analysis.folded`)."""
        return self._teachers.teacher

    @cached_property
    def cost(self) -> Cost:
        """What the teacher costs, predicted."""
        return cost.predict(self._teachers, self._teachers.space.full)

    @cached_property
    def _teachers(self) -> Analysis:
        """The analysis of the teacher itself."""
        if self.start is None:
            return self.analysis
        return analyse(self.teacher.module, self.analysis.trace.example, self.analysis.leaf_modules)

    @cached_property
    def identity(self) -> Identity:
        """The digests that a run of this task belongs to."""
        return Identity(
            teacher=weights_digest(self.teacher.module),
            data=self.data.digest,
            space=self.space.digest,
            policy=tensors_digest(dict(sorted(self.policy.items()))) if self.policy else "",  # files keep no order
            start="" if self.start is None else weights_digest(self.start),
            objective=self.aim.objective.digest if self.settings.objective == "own" else "",
        )

    @property
    def example(self) -> Any:
        """One normalised image, (1, c, h, w), or other inputs of one example."""
        return first_images(self.data, self.data.val, 1)

    def predict(self, architecture: Architecture) -> Cost | None:
        """Return the exact cost of an architecture, None if it cannot be built."""
        return self._costs(architecture)

    @cached_property
    def _costs(self) -> Answers[Cost | None]:
        def ask(architecture: Architecture) -> Cost | None:
            try:
                return cost.predict(self.analysis, architecture)
            except SurgeryError:
                return None

        return Answers(ask)

    def teacher_in_onnxruntime(self, threads: int) -> OnnxModel:
        """Return the teacher as ONNX Runtime runs it, exported once.

        Raises:
            ExtraError, ExportError: as `in_onnxruntime`.
        """
        if threads not in self._sessions:
            self._sessions[threads] = in_onnxruntime(self.network, self.example, threads=threads)
        return self._sessions[threads]

    def problem(self, reward: Reward) -> Problem:
        """Return what a searcher works on, by that reward."""
        return Problem(
            space=self.space,
            reward=reward,
            predict=self.predict,
            widths=self.settings.widths,
            seed=self.settings.seed,
            policy=self.policy,
        )

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the untrained student of an architecture, for its structure."""
        return surgery.build(self.analysis, architecture, weights="fresh")

    def evaluator(self, compute: Compute, folder: Path) -> Evaluator:
        """Return what trains and scores students; `folder` caches the teacher's logits."""
        settings = self.settings
        return Evaluator(
            analysis=self.analysis,
            teacher=self.network,
            data=self.data,
            candidates=settings.candidates,
            augmentation=settings.augmentation,
            compute=compute,
            seed=settings.seed,
            folder=folder,
            aim=self.aim,
        )


def refuse_other_kinds(teacher: Any, data: Any, method: Any, run: Any = "runs/first", settings: Any = None) -> None:
    """Refuse names and paths where Python takes objects, and a call where nothing can be learned.

    Raises:
        ModelError, DataError, ConfigError: with what to write.
    """
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise ConfigError(
            "students learn by gradients, so compress() must be called outside of torch.no_grad() and "
            "torch.inference_mode(), but was called inside"
        )
    if not isinstance(teacher, nn.Module | Teacher):
        raise ModelError(f"a teacher must be a torch.nn.Module, or a us.load_teacher(folder), but got {brief(teacher)}")
    if not isinstance(data, Data):
        raise DataError(
            'data must be a us.Data, such as us.Data.from_folder("photos/") or us.Data.from_inputs(loader), but got '
            f"{brief(data)}"
        )
    if not isinstance(run, str | Path):
        raise ConfigError(f"a run must be the path of its folder, such as 'runs/first', but got {brief(run)}")
    if not isinstance(settings, Compression | None):
        raise ConfigError(f"settings must be a us.Compression, but got {brief(settings)}")
    if method is not None and not isinstance(method, Method):
        raise ConfigError(
            f"a method must be its settings, such as us.N2N() or us.RandomSearch(students=40), but got {brief(method)}"
        )


def aim_for(module: nn.Module, data: Data, settings: Compression, own: Objective | None) -> Aim:
    """Return the objective that the settings name, or the caller's own, fitted to a network's outputs.

    Raises:
        ConfigError: the settings name none for targets that are no classes, or ask to learn from labels without any.
        ModelError, DataError: as `aimed`.
    """
    objective = own or BUILT_IN.get(settings.objective) or _usual(data, settings)
    recipes = {"candidates": settings.candidates.training, "final": settings.final.training}
    if isinstance(own_training := getattr(settings.method, "training", None), Training):
        recipes[settings.method.name] = own_training
    by_labels = [f"{name}.training.loss" for name, training in recipes.items() if training.loss == "ce"]
    if by_labels and not data.has_targets:
        raise ConfigError(
            f"the loss 'ce' learns from labels alone, but the data have none: give {' and '.join(by_labels)} mse, "
            "kl+ce or mse+ce"
        )
    check_augmentation(settings.augmentation, data)
    return aimed(objective, module, data)


def _usual(data: Data, settings: Compression) -> Objective:
    if settings.objective == "own":
        raise ConfigError("an objective of your own must be given again: compress(..., objective=...)")
    if data.has_targets and not data.classes:
        known = ", ".join(name for name in BUILT_IN if name not in ("classification", "agreement"))
        raise ConfigError(
            f"targets that are no classes must be said to be for something: objective= (--objective) one of {known}"
        )
    return BUILT_IN["classification" if data.classes else "agreement"]


def _started(
    folder: Path, teacher: nn.Module, leaf_modules: tuple[type[nn.Module], ...], trust_code: bool
) -> nn.Module:
    """Return the student of a folder. What is at hand, the teacher, may do in place of code that may not be run."""
    named = StudentCard.read(folder).model
    if named is not None and (trust_code or not is_code(named)):
        return load_student(folder, trust_code=trust_code, leaf_modules=leaf_modules).float()
    try:
        return load_student(folder, teacher, leaf_modules=leaf_modules).float()
    except (ArchitectureError, SurgeryError):
        if named is not None:
            allowed(folder, named, trust_code=False, model=None)
        raise


def proved(analysis: Analysis, run: str | Path | None = None, *, progress: bool = False) -> tuple[Analysis, Proof]:
    """Return the analysis with what holds in real students, as a run folder says or as it is found out now."""
    known = None if run is None or not is_run(run) else Run(run).recall("proof")
    if known is not None:
        with understood(Path(run or ".") / "proof.json", DamageError):
            proof = Proof.from_dict(known)
        return analysis.without(proof.refused), proof
    with Display(shown=progress) as display, display.steps("checking students of the network", USUAL):
        analysis, proof = prove(analysis, on_student=lambda done: display.step(min(done, USUAL)))
    display.say(proof.summary)
    if analysis.folded:
        display.say(computed(analysis.folded))
    for found in proof.refused[:_REFUSED_SHOWN]:
        display.warn(f"{found.kind} {found.name} stays as it is: {found.reason}")
    return analysis, proof


def computed(names: Sequence[str]) -> str:
    """Return in one line which weights a teacher computes, and what becomes of them."""
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f"the teacher computes {len(names)} of its tensors ({shown}): students have them as plain weights"


def _learned(where: str, task: Task) -> Mapping[str, Tensor]:
    """Return what another run's searcher has learned: policies or an embedding.

    Raises:
        ConfigError: there is none under that name, or it does not fit the settings.
        ModelError: the file cannot be read.
    """
    path, method = path_of(where, "policy_from", ConfigError), task.settings.method
    if not method.starts_from_policy:
        raise ConfigError(
            f"policy_from needs a method that can start from a policy, such as n2n and archcomp, but the method is "
            f"{method.called!r}"
        )
    if is_run(path) and (of := Run(path).settings.method.called) != method.called:
        raise ConfigError(f"policy_from must name a run of the method {method.called!r}, but {path} is one of {of!r}")
    path = path / "policy.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"policy_from must name a run with a policy, but there is no {path}")
    tensors = read_weights(path)
    budgets = replace(task.settings.goal, latency_ms=None, score_drop=None).budgets(task.cost, score=0.0)
    method.check_start(tensors, task.problem(Reward(teacher_cost=task.cost, teacher_score=1.0, budgets=budgets)))
    return tensors
