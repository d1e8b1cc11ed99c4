"""The main job: teacher, data and goal in, student out. Every finished part is kept, so it can be continued."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from understudy.config.job import Compression, ObjectiveName
from understudy.config.methods import Method
from understudy.config.training import Augmentation, Candidates, Device, Final
from understudy.config.widths import Widths
from understudy.core.architecture import Architecture
from understudy.core.caller import alone, as_usual, outside_inference
from understudy.core.errors import ConfigError, DamageError, ModelError, RunError
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.figures import share
from understudy.core.files import path_of, understood
from understudy.core.goal import Goal, Reward
from understudy.core.summary import Summary
from understudy.data import Data
from understudy.data.data import first_images
from understudy.export.folder import Exported, export_student
from understudy.graph.copies import copied
from understudy.jobs.card import card_of, code, write_sources
from understudy.jobs.door import look_at
from understudy.jobs.finals import Finisher, looking, read_student, read_winner, trained_to_the_end
from understudy.jobs.glances import Glances
from understudy.jobs.int8 import EightBits, sizes_for
from understudy.jobs.latency import Latencies, reference_for
from understudy.jobs.pools import pool_for, seconds_of
from understudy.jobs.prune import Pruning
from understudy.jobs.search import EvaluateAll, search
from understudy.jobs.summary import summarise
from understudy.jobs.task import Task, refuse_other_kinds
from understudy.methods.base import Searcher, Update
from understudy.methods.ranking import finalists, winner
from understudy.models.card import StudentCard
from understudy.models.spec import Teacher
from understudy.models.student import save_student
from understudy.models.weights import write_tensors
from understudy.report.log import LogName, check_log, open_log
from understudy.report.progress import Display, Finals, SearchProgress
from understudy.report.tables import PlainTable, in_a_line, numbers_of, result_table
from understudy.runs.folder import Run, is_run
from understudy.runs.journal import Journal
from understudy.runs.workers.base import Workers
from understudy.runs.workers.local import Evaluate, refuse_reimport
from understudy.training.compute import choice, pinned, told
from understudy.training.evaluator import Evaluator
from understudy.training.loop import choose_compute
from understudy.training.objective import needs_teacher
from understudy.training.objectives import Objective

_log = logging.getLogger("understudy")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result:
    """What a compression found."""

    student: nn.Module  # float32, on the CPU, in evaluation mode
    architecture: Architecture
    evaluation: Evaluation  # of the student after its final training, on the validation split
    summary: Summary  # all figures, as in summary.json
    run: Path
    _card: StudentCard
    _code: dict[str, str]
    _data: Data
    _part: nn.Module | None = None  # the very module that was given

    def __repr__(self) -> str:
        return f"Result({in_a_line(self.summary)}; {self.run})"

    @property
    def table(self) -> PlainTable:
        """Teacher against student, and asked against obtained, to print."""
        return result_table(self.summary)

    @property
    def kept(self) -> bool:
        """Whether the student keeps every budget of the goal."""
        return self.summary.kept

    def save(self, folder: str | Path) -> None:
        """Write the student's folder; `load_student` reads it."""
        save_student(folder, self.student, self.architecture, self._card, self._code)

    @outside_inference
    def into(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model with the student in the place of the part that was compressed.

        The rest of the model and its state stay, and the model itself is not touched. The student comes in the
        device and mode of the part.

        Raises:
            ModelError: the part is not in the model.
        """
        part = self._part
        if part is None or not isinstance(model, nn.Module) or not any(module is part for module in model.modules()):
            raise ModelError(
                "into() takes the model that holds the very module that compress() was given, as "
                "compress(model.backbone, ...).into(model), but that module is not in this one"
            )
        device = next((p.device for p in part.parameters()), torch.device("cpu"))
        student = copied(self.student).to(device).train(part.training)
        return copied(model, {id(part): student})  # type: ignore[no-any-return]

    def export(self, folder: str | Path, formats: Sequence[str] = ("source", "onnx", "pt2")) -> Exported:
        """Write the student in formats that need no tool of ours, each checked beside it on the run's own images.

        Args:
            folder: where to; `understudy verify` checks it anywhere.
            formats: of "source" (plain PyTorch), "onnx", "pt2" (torch.export), "int8" (ONNX in 8 bits) and "hf"
                (what `from_pretrained` reads, of models of Hugging Face).

        Raises:
            ConfigError: a format is unknown.
            ExtraError: onnx, onnxscript or onnxruntime is missing; nothing is written.
            ExportError: none can be written, or one gives other outputs than the student.
        """
        return export_student(
            folder,
            self.student,
            card=self._card,
            architecture=self.architecture.to_json(),
            formats=formats,
            data=self._data,
        )


@alone
@as_usual
def compress(
    teacher: nn.Module | Teacher,
    data: Data,
    *,
    run: str | Path = "runs/first",
    method: Method | None = None,
    goal: Goal | None = None,
    widths: Widths | None = None,
    augmentation: Augmentation | None = None,
    candidates: Candidates | None = None,
    final: Final | None = None,
    device: Device | None = None,
    objective: ObjectiveName | Objective | None = None,
    seed: int | None = None,
    policy_from: str | None = None,
    settings: Compression | None = None,
    start: nn.Module | str | Path | None = None,
    trust_code: bool = False,
    leaf_modules: tuple[type[nn.Module], ...] = (),
    progress: bool = True,
    log: LogName | None = None,
    untrained: bool = False,
) -> Result:
    """Learn a small student of a trained teacher, and leave all that was found out in a run folder.

    Called again with the same folder it continues: what is finished is loaded, never trained again, and
    the result is the one of an undisturbed run, bit for bit.

    Before anything is trained, students of the network are built and held against the network with the same
    channels masked, in double precision and in both modes. A group, unit or kernel with which students are wrong is
    left as it is, and run.log and `understudy inspect --check` say why.

    Args:
        teacher: any traceable trained module, or what `load_teacher` returns; it is not touched.
        data: students learn from its training split and are compared on its validation split; its test
            split is read once, for the final figures.
        run: folder, new or one to continue.
        method: how students are searched for, `N2N()` unless given; a `Method` of your own as well. What is not given
            here and below has the default of `Compression`.
        goal: budgets on cost and score.
        widths: the widths that students may have.
        augmentation: how training images are varied.
        candidates: how proposals are evaluated.
        final: how the best are trained in the end.
        device: where things run.
        objective: what the network's outputs are for, by name or an `Objective` of your own; unless given,
            classification where the data have classes, and agreement with the teacher where they have no labels.
        seed: of the search and of every student in it.
        policy_from: run of the same method that the search is warm-started from.
        settings: all of these at once, instead.
        start: a student of another run, or the folder of one or of its run, to be made smaller still: it is cut in
            the teacher's place, and the teacher teaches, counts for the goal and is compared with. `load_student`
            needs it again where it was given as a module.
        trust_code: run the Python file in the folder of `start`, if its teacher is made by one.
        leaf_modules: classes in the teacher to take as one operation; their channels keep their width.
        progress: show what is going on.
        log: write what is found, as it goes on, to "tensorboard" (into the run folder), "mlflow" or "wandb".
        untrained: take a teacher that is no better than a guess, or clearly better with another normalisation.

    Raises:
        ConfigError: a setting is impossible.
        ExtraError: a package that the goal or the log needs is missing.
        DataError: the teacher's outputs are not the data's classes, or the normalisation is not the teacher's.
        ModelError: the teacher is no better than a guess.
        TraceError: the teacher cannot be traced.
        GoalError: the budgets are out of reach; with the nearest points.
        RunError: the folder is of another run (each difference is listed) or cannot be written.
    """
    refuse_reimport()
    refuse_other_kinds(teacher, data, method, run, settings)
    run = path_of(run, "the folder", RunError).absolute()  # whatever happens to the current folder
    Run.refuse(run)
    check_log(log)
    given = {
        "method": method, "goal": goal, "widths": widths, "augmentation": augmentation, "candidates": candidates,
        "final": final, "device": device, "seed": seed, "policy_from": policy_from,
        "objective": "own" if isinstance(objective, Objective) else objective,
    }  # fmt: skip
    named = {name: value for name, value in given.items() if value is not None}
    if settings is not None and named:
        raise ConfigError(f"settings are given one by one or as a Compression, but both were: {', '.join(named)}")
    chosen = settings or Compression(**named)  # type: ignore[arg-type]
    where: dict[str, Any] = {"start": start, "trust_code": trust_code, "run": run, "progress": progress}
    where["objective"] = objective if isinstance(objective, Objective) else None
    task = Task.of(teacher, data, chosen, leaf_modules=leaf_modules, **where)
    result = run_task(task, run, progress=progress, untrained=untrained, log=log)
    return replace(result, _part=teacher.module if isinstance(teacher, Teacher) else teacher)


def run_task(
    task: Task, folder: str | Path, *, progress: bool = True, untrained: bool = False, log: LogName | None = None
) -> Result:
    """Do a task in a run folder, from its start or from where it was left.

    Raises:
        ConfigError, ExtraError, ModelError, DataError, GoalError, RunError: as `compress`.
    """
    check_log(log)
    with Display(shown=progress) as display:
        new = not is_run(folder)
        with display.steps("looking at the teacher", None):
            look = look_at(task) if new else None
            if look is not None:
                look.refuse(task.teacher, untrained=untrained)
            sizes = sizes_for(task, Path(folder))
            timed = reference_for(task, Path(folder))
        with Run.open(folder, task.settings, task.identity) as run:
            for note in () if look is None else look.notes:
                display.warn(note)
            if log is not None and run.state != "finished":
                display.log = open_log(log, run)
            int8 = None if sizes is None else EightBits(task, run, sizes, timed)
            return Job(task, run, display, Latencies(task, run, timed, sizes), int8).result()


class Job:
    """One task in one folder, step by step."""

    def __init__(
        self, task: Task, run: Run, display: Display, latencies: Latencies, int8: EightBits | None = None
    ) -> None:
        self.task, self.run, self.display, self.latencies, self.int8 = task, run, display, latencies, int8
        self.settings = task.settings

    def result(self) -> Result:
        """Return what the task found, now or before."""
        write_sources(self.task, self.run, self.display.warn)
        known = self.run.recall("summary")
        if known is not None:
            with understood(self.run.folder / "summary.json", DamageError):
                summary = Summary.from_json(known)
            return self._loaded(summary)
        for doubt in self.reward.doubts:
            self.display.warn(doubt)
        jobs = {"search": self._searched, "prune": self._pruned}
        found = self._finished(*jobs[self.settings.method.job]())
        with self.display.steps("measuring teacher and student", None):
            summary = self.summarised(*found)
        for note in summary.notes:
            self.display.warn(note)
        self.display.numbers(numbers_of(summary), 1)
        self.run.remember("summary", summary.to_json())
        return self._loaded(summary)

    @cached_property
    def evaluator(self) -> Evaluator:
        """What trains and scores, in the precision that was chosen for this run when it started."""
        teacher, data = self.task.network, self.task.data
        chosen = self.run.recall("compute")
        with understood(self.run.folder / "compute.json", DamageError):
            device = pinned(self.settings.device, chosen)
        images = first_images(data, data.train, self.settings.candidates.training.batch_size)
        compute = choose_compute(teacher, images, device)
        self.run.remember("compute", choice(compute))
        if chosen is None:
            self.display.say(told(compute, device))
        return self.task.evaluator(compute, self.run.logits)

    @cached_property
    def teacher(self) -> dict[str, Any]:
        """The teacher's cost and validation accuracy, measured when the run started."""
        known = self.run.recall("teacher")
        if known is None:
            evaluator = self.evaluator
            with self.display.steps("measuring the teacher", None):
                metric = self.task.aim.objective.metric
                known = {"cost": asdict(self.latencies.teacher), "score": evaluator.teacher_score, "metric": metric}
            self.run.remember("teacher", known)
        with understood(self.run.folder / "teacher.json", DamageError):
            Cost(**known["cost"])
            return {**known, "score": float(known["score"])}

    @cached_property
    def reward(self) -> Reward:
        """The reward that students are judged by in the end."""
        teacher_cost, teacher_score = Cost(**self.teacher["cost"]), self.teacher["score"]
        budgets = self.settings.goal.budgets(teacher_cost, teacher_score)
        capped = self.settings.method.capped
        return Reward(teacher_cost=teacher_cost, teacher_score=teacher_score, budgets=budgets, capped=capped)

    def _pruned(self) -> tuple[Evaluator, list[Evaluation]]:
        """Let agents prune, or go on; return the evaluator of what they left, and its evaluation."""
        self.display.say(f"teacher: {share(self.teacher['score'])} on validation; agents on every channel")
        pruning = Pruning(
            self.task, self.run, self.evaluator, self.reward.budgets, self.display, latencies=self.latencies
        )
        evaluator, architecture = pruning.result()
        with self.run.store(self.task.space) as store:
            if not store.all():
                store.add(evaluator.cut(architecture))
            found = [self.latencies.measured(e) for e in store.all()]
        self.display.say(f"pruned: {share(found[0].score)} on validation before the final training")
        return evaluator, found

    def _searched(self) -> tuple[Evaluator, list[Evaluation]]:
        """Run the search, or what is left of it; return the evaluator and all evaluations."""
        method, display = self.settings.method, self.display
        glance = Glances(self.run, self.evaluator.glance, display.say)
        problem = replace(self.task.problem(self.reward.of_candidates), predict=self.latencies.predict, glance=glance)
        searcher = method.searcher(problem)
        display.say(f"teacher: {share(self.teacher['score'])} on validation; search by {searcher.stage}")
        finals, start = self._after_search(), time.monotonic()
        epochs = self.settings.candidates.training.epochs
        with display.steps("teacher logits for the search", epochs, unit="epochs", after=finals):
            self.evaluator.prepare(on_part=display.step)
        finals.teacher_seconds = time.monotonic() - start
        students = method.expected_students
        follow = SearchProgress(display, students=students, reward=self.reward, finals=finals)
        with (
            self.run.store(self.task.space) as store,
            self._pool(self.evaluator, "search", self.settings.device.workers, seconds=seconds_of(store.all())) as pool,
            display.steps(searcher.stage, students, unit="students", after=finals),
        ):
            search(
                searcher,
                self._following(pool, follow),
                store,
                key_of=lambda architecture: self.evaluator.failed(architecture, "").key,
                work_of=lambda architecture: _macs(problem.predict(architecture)),
                measured=self.latencies.measured,
                on_update=lambda update: self.updated(update, searcher, follow),
            )
            self._keep_policy(searcher)
        return self.evaluator, self.run.evaluations()

    def _pool(self, evaluate: Evaluate, stage: str, workers: int, **more: Any) -> Workers:
        more |= {"journal": Journal(self.run.folder / "crashes.json", f"{stage} "), "tell": self.display.warn}
        return pool_for(self.settings.device, self.evaluator, evaluate, workers=workers, **more)

    def _after_search(self) -> Finals:
        return Finals.of(self.settings, len(self.task.data.train), taught=needs_teacher(self.settings.final.training))

    def _following(self, pool: Workers, follow: SearchProgress) -> EvaluateAll:
        """Return the pool's evaluation, which tells of every student."""

        def evaluate_all(architectures: Any, *, on_done: Any) -> list[Evaluation]:
            def done(evaluation: Evaluation) -> None:
                if evaluation.status == "failed":
                    _log.warning("student %s failed: %s", evaluation.architecture.digest, evaluation.error)
                follow.finished(evaluation)
                on_done(evaluation)

            return pool.evaluate_all(architectures, on_done=done)

        return evaluate_all

    def updated(self, update: Update, searcher: Searcher, follow: SearchProgress) -> None:
        """Tell of an update and keep what the searcher has learned."""
        follow.updated(update)
        if update.trained:  # else it is on its way through what is known, to where it was before
            self._keep_policy(searcher)

    def _keep_policy(self, searcher: Searcher) -> None:
        policy = {name: value for name, value in searcher.state_dict().items() if isinstance(value, Tensor)}
        if policy:
            write_tensors(self.run.policy, policy)

    def _finished(self, evaluator: Evaluator, evaluations: list[Evaluation]) -> tuple[Evaluation, list[Evaluation]]:
        """Train the best to convergence; return the winner, as the goal counts it, and all of them."""
        final, workers = self.settings.final, self.settings.device.workers
        if self.settings.method.job == "prune" and final.weights == "compensated":
            # Their network gave what it gives with the channels masked: to solve layers for all of them would undo it.
            final = replace(final, weights="inherited")
        chosen = finalists(evaluations, self.reward, final.students)
        finisher = Finisher(evaluator=evaluator, final=final, folder=self.run.students)

        look = looking(finisher, chosen, self.display)
        after = self._after_search()
        for evaluation in evaluations:
            after.trained(evaluation)
        here = replace(finisher, on_look=look)
        workers = min(workers, len(chosen))
        pool = self._pool(finisher, "final", workers, here=here, on_wait=look, seconds=after.expected)
        trained = trained_to_the_end(finisher, chosen, pool, display=self.display, after=after, tell=self.tell_of_final)
        look()
        finished = [self.latencies.measured(evaluation) for evaluation in trained]
        counted = finished if self.int8 is None else self.int8.all(finished, self._student, self.display)
        return winner(counted, self.reward, examples=len(self.task.data.val)), finished

    def summarised(self, best: Evaluation, finished: list[Evaluation]) -> Summary:
        """Return all figures of the run; the one place where the test split is read."""
        student, compute = self._student(best.architecture), self.evaluator.compute
        how: dict[str, Any] = {"best": best, "finished": finished, "int8": self.int8}
        return summarise(self.task, self.run, self.reward, compute, student, **how)

    def _student(self, architecture: Architecture) -> nn.Module:
        return read_student(self.run.students, architecture, self.task.build)

    def _loaded(self, summary: Summary) -> Result:
        evaluation = read_winner(self.run.students, summary.name, self.task.space)
        return Result(
            student=self._student(evaluation.architecture),
            architecture=evaluation.architecture,
            evaluation=evaluation,
            summary=summary,
            run=self.run.folder,
            _card=card_of(self.task, summary, self.run.start),
            _code=code(self.task, self.run.start),
            _data=self.task.data,
        )

    def tell_of_final(self, evaluation: Evaluation) -> None:
        """Tell of a final student that was trained."""
        figures = "failed: " + str(evaluation.error) if evaluation.status == "failed" else share(evaluation.score)
        parameters = "?" if evaluation.cost is None else f"{evaluation.cost.parameters:,}"
        self.display.say(f"final student {evaluation.architecture.digest}: {parameters} parameters, {figures}")


def _macs(cost: Cost | None) -> float:
    return 0.0 if cost is None else float(cost.macs)
