"""Who is compared: each contender is one entry, how it finds a student's shape and how that is trained.

A finder is called with a `Cell` and keeps what it has finished in the cell's folder, so that it can be called again
after a kill. Contenders with the same finder share what it found.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import option_a
from benchmarks.evidence.cell import Cell, Found, clocked, seconds_in
from benchmarks.evidence.tracks import Point
from understudy.config.methods import (
    N2N,
    Allocate,
    ArchComp,
    Decore,
    Free,
    Method,
    OptunaSearch,
    RandomSearch,
    UniformWidth,
)
from understudy.config.training import Final, LossName, Start
from understudy.core.architecture import Architecture
from understudy.core.errors import ConfigError, ExtraError, GoalError, RunError
from understudy.core.evaluation import Evaluation
from understudy.core.files import read_json, write_whole
from understudy.core.goal import Reward
from understudy.jobs.glances import Glances
from understudy.jobs.latency import Latencies
from understudy.jobs.prune import Pruning
from understudy.jobs.search import search
from understudy.jobs.task import Task
from understudy.methods.ranking import finalists
from understudy.models.weights import write_tensors
from understudy.report.progress import Display
from understudy.runs.folder import Run

ROLLOUTS, LOOKS = N2N().rollouts, 200
TORCH_PRUNING = "1.6.1"
EARLIER = "69476ae"  # the last one before compensated weights
_TAYLOR_IMAGES, _TAYLOR_BATCH = 1280, 128


@dataclass(frozen=True)
class Searched:
    """A search over students that are really trained; the best of them, by validation score, is the shape."""

    name: str
    method: Callable[[int], Method]  # number of students -> settings
    transferred: bool = False  # it starts from the policy that N2N learned on another track

    def __call__(self, cell: Cell) -> Found:
        """Return the best student of the whole budget."""
        return self.searched(cell, cell.track.students, cell.point)

    def searched(self, cell: Cell, students: int, point: Point, folder: Path | None = None) -> Found:
        """Return the best of so many students at an operating point."""
        folder = folder or cell.folder / self.name
        task, known = cell.by(self.method(students), point), folder / "found.json"
        if not known.is_file():
            if self.transferred:
                task = replace(task, policy=cell.learned())
            budgets = point.goal.budgets(task.cost, 0.0)
            reward = replace(cell.reward, budgets=budgets, capped=task.settings.method.capped)
            with clocked(folder.with_suffix(".seconds.json")), Run.open(folder, task.settings, task.identity) as run:
                evaluations, rewards = _search(cell, task, reward, run)
                best = finalists(evaluations, reward, 1)[0]
            passes = sum(passes_of(evaluation, cell) for evaluation in evaluations)
            write_whole(known, json.dumps({"architecture": best.to_json(), "passes": passes, "rewards": rewards}))
        fields = json.loads(known.read_text(encoding="utf-8"))
        return Found(
            shape=Architecture.from_json(task.space, fields["architecture"]),
            evaluator=cell.evaluator,
            passes=fields["passes"],
            seconds=seconds_in(folder.with_suffix(".seconds.json")),
            rewards=tuple(fields["rewards"]),
        )


def _search(cell: Cell, task: Task, reward: Reward, run: Run) -> tuple[list[Evaluation], list[float]]:
    """Search, or go on; return what was trained, and the rewards of what was proposed; keep what was learned.

    One student is trained at a time, and each is in the store as soon as it is.
    """
    glance = Glances(run, cell.evaluator.glance, lambda line: None)
    searcher = task.settings.method.searcher(replace(task.problem(reward), glance=glance))

    def evaluate_all(
        architectures: Iterable[Architecture], *, on_done: Callable[[Evaluation], object]
    ) -> list[Evaluation]:
        evaluations = []
        for architecture in architectures:
            evaluations.append(cell.evaluator(architecture))
            on_done(evaluations[-1])
        return evaluations

    cell.evaluator.prepare()
    rewards: list[float] = []
    with run.store(task.space) as store:
        search(
            searcher,
            evaluate_all,
            store,
            key_of=lambda a: cell.evaluator.failed(a, "").key,
            on_update=lambda update: rewards.extend(map(reward, update.evaluations)),
        )
        trained = store.all()
    learned = {name: value for name, value in searcher.state_dict().items() if isinstance(value, torch.Tensor)}
    if learned:
        write_tensors(run.policy, learned)
    return trained, rewards


def passes_of(evaluation: Evaluation, cell: Cell) -> int:
    """Return the image passes of a candidate; one that diverged counts in full, one that was never built not at all."""
    candidates = cell.track.candidates
    epochs = 1 if evaluation.status == "stopped" else candidates.training.epochs if evaluation.cost else 0
    return epochs * (candidates.examples or len(cell.task.data.train))


@dataclass(frozen=True)
class Proposed:
    """What a method proposes first, of which nothing is trained to choose it."""

    method: Method

    def __call__(self, cell: Cell) -> Found:
        """Return the one proposal.

        Raises:
            GoalError: nothing keeps the budget.
        """
        task = cell.by(self.method)
        shapes = self.method.searcher(task.problem(cell.reward)).propose()
        if not shapes:
            raise GoalError(f"a proposal must keep the budget, but {self.method.called} has none")
        return Found(shape=shapes[0], evaluator=cell.evaluator, passes=0, seconds={"wall": 0.0, "cpu": 0.0})


@dataclass(frozen=True)
class Kept:
    """A shape that other code found, such as an earlier commit's search, in a file beside what is under way.

    FOLDER/NAME.json holds its "decisions" (what `Architecture.to_json` writes without the Space) and its "passes".
    """

    name: str

    def __call__(self, cell: Cell) -> Found:
        """Return that shape.

        Raises:
            ConfigError: there is no such file.
            RunError: it is damaged.
            ArchitectureError: it is of another network.
        """
        place = cell.folder / f"{self.name}.json"
        if not place.is_file():
            raise ConfigError(
                f"the contender {self.name} needs the shape that commit {EARLIER} found, but there is no {place}: put "
                f"its decisions, passes, rewards and seconds there, or leave {self.name} out"
            )
        fields = read_json(place, RunError)
        shape = cell.task.space.architecture(**fields["decisions"])
        seconds = {"wall": fields["seconds"], "cpu": fields["seconds"]}
        rewards = tuple(fields["rewards"])
        return Found(shape=shape, evaluator=cell.evaluator, passes=fields["passes"], seconds=seconds, rewards=rewards)


def agents(cell: Cell, task: Task, folder: Path, passes: int) -> Found:
    """Return what DECORE's agents leave after so many passes, with the weights that learned with them."""
    epochs = passes // len(task.data.train)
    method = replace(Decore(), training=replace(Decore().training, epochs=epochs))
    task = replace(task, settings=replace(task.settings, method=method))
    evaluator = cell.evaluator if task.start is None else task.evaluator(cell.evaluator.compute, cell.evaluator.folder)
    with (
        clocked(folder.with_suffix(".seconds.json")),
        Display(shown=False) as display,
        Run.open(folder, task.settings, task.identity) as run,
    ):
        budgets = task.settings.goal.budgets(task.cost, 0.0)
        latencies = Latencies(task, run, None)
        evaluator, shape = Pruning(task, run, evaluator, budgets, display, latencies=latencies).result()
    seconds = seconds_in(folder.with_suffix(".seconds.json"))
    return Found(shape=shape, evaluator=evaluator, passes=epochs * len(task.data.train), seconds=seconds)


def decore(cell: Cell) -> Found:
    """DECORE with all passes of a search for its agents."""
    return agents(cell, cell.by(Decore()), cell.folder / "decore", cell.search_passes)


def chain(cell: Cell) -> Found:
    """N2N to the geometric middle of the way with half of the passes, a short training, then DECORE with the rest."""
    folder, middle = cell.folder / "chain", Point(cell.point.figure, cell.point.factor**0.5)
    examples = len(cell.task.data.train)
    students = max(cell.track.students // 2 // ROLLOUTS, 1) * ROLLOUTS
    first = N2N_SEARCH.searched(cell, students, middle, folder / "n2n")
    left = (cell.search_passes - first.passes) // examples
    settling, learning = shared(left)
    final = Final(students=1, training=replace(cell.track.final, epochs=settling), views=cell.track.views)
    with clocked(folder / "settling.seconds.json"):
        student, _, _ = cell.trained(first, final, folder / "settled.checkpoint.pt")
    started = Task.of(cell.task.teacher, cell.task.data, cell.by(Decore()).settings, start=student)
    last = agents(cell, started, folder / "decore", learning * examples)
    parts = (first.seconds, seconds_in(folder / "settling.seconds.json"), last.seconds)
    return replace(
        last,
        passes=first.passes + settling * examples + last.passes,
        seconds={name: sum(part[name] for part in parts) for name in last.seconds},
    )


def shared(epochs: int) -> tuple[int, int]:
    """Return the epochs of a short training, a third but one at least, and of DECORE's agents, the rest."""
    settling = max(epochs // 3, 1)
    return settling, epochs - settling


@dataclass(frozen=True)
class TorchPruned:
    """torch-pruning (Fang et al., CVPR 2023), global, in one step, at the smallest ratio that keeps the budget."""

    importance: Literal["magnitude", "taylor"]

    def __call__(self, cell: Cell) -> Found:
        """Return the pruned network.

        Raises:
            ExtraError: torch-pruning is missing or another version.
            GoalError: no ratio keeps the budget.
        """
        teacher = option_a.with_shortcuts_as_convolutions(cell.task.teacher.module)
        budgets = cell.reward.budgets
        grads = self._gradients(teacher, cell) if self.importance == "taylor" else None
        low, high = 0.0, 1.0
        best: nn.Module | None = None
        for _ in range(12):
            share = (low + high) / 2
            network = self._pruned(teacher, share, cell, grads)
            if budgets.broken_by(cell.cost_of(network)):
                low = share
            else:
                high, best = share, network
        if best is None:
            raise GoalError(f"a pruning ratio must keep the budget, but torch-pruning reaches none for {cell.point}")
        passes = 0 if grads is None else min(_TAYLOR_IMAGES, len(cell.task.data.train))
        return Found(shape=best, evaluator=cell.evaluator, passes=passes, seconds={"wall": 0.0, "cpu": 0.0})

    def _pruned(self, teacher: nn.Module, share: float, cell: Cell, grads: list[torch.Tensor] | None) -> nn.Module:
        tp = torch_pruning()
        network = copy.deepcopy(teacher)
        for parameter, grad in zip(network.parameters(), grads or (), strict=False):
            parameter.grad = grad.clone()
        classes = len(cell.task.data.classes)
        kept = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
        importance = {
            "magnitude": tp.importance.GroupMagnitudeImportance,
            "taylor": tp.importance.GroupTaylorImportance,
        }
        multiple = None if cell.track.widths.round_to == 1 else cell.track.widths.round_to
        tp.pruner.BasePruner(
            network, cell.task.example, importance=importance[self.importance](), pruning_ratio=share,
            global_pruning=True, max_pruning_ratio=0.95, ignored_layers=kept, round_to=multiple,
        ).step()  # fmt: skip
        network.zero_grad(set_to_none=True)
        option_a.freeze_shortcuts(network)
        return network.eval()

    def _gradients(self, teacher: nn.Module, cell: Cell) -> list[torch.Tensor]:
        """Return the gradients of the labels' loss on some training images, in evaluation mode."""
        network, data = copy.deepcopy(teacher).eval(), cell.task.data
        some = data.train.subset(min(_TAYLOR_IMAGES, len(data.train)), cell.seed)
        for part in torch.arange(len(some)).split(_TAYLOR_BATCH):
            images, labels = some.batch(part)
            F.cross_entropy(network(data.normalise(images)), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
        return [torch.zeros_like(p) if p.grad is None else p.grad / len(some) for p in network.parameters()]


def torch_pruning() -> Any:
    """Return the package.

    Raises:
        ExtraError: it is missing or another version.
    """
    package, version = None, None
    with suppress(ImportError, PackageNotFoundError):
        package = import_module("torch_pruning")
        version = metadata.version("torch-pruning")  # the module's own says 1.6.0
    if version != TORCH_PRUNING:
        raise ExtraError(
            f"the contenders magnitude and taylor need torch-pruning {TORCH_PRUNING}, but found {version}: pip install "
            f"--no-deps torch-pruning=={TORCH_PRUNING}, or leave them out by --contenders"
        )
    return package


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of the comparison."""

    label: str
    find: Callable[[Cell], Found]
    weights: Start = "compensated"  # of final training; from DECORE come weights that learned with its agents
    loss: LossName | None = None  # of the final training; None: the track's, with the teacher
    given: bool = False  # its shape counts as given: what found it is not among its image passes


def _n2n(students: int) -> N2N:
    return N2N(shrinkage_updates=students // ROLLOUTS)


def _n2n_looks(students: int) -> N2N:
    trained = min(2 * ROLLOUTS, students)
    return replace(_n2n(trained), glances=LOOKS // trained)


def _archcomp_looks(students: int) -> ArchComp:
    trained = min(2 * ROLLOUTS, students)
    return ArchComp(students=trained, glances=LOOKS // trained)


def _n2n_paper(students: int) -> N2N:
    updates = students // ROLLOUTS
    return replace(N2N.paper(), removal_updates=updates // 2, shrinkage_updates=updates - updates // 2)


TRANSFERRED = "n2n-transferred"
BEFORE = ("n2n-before", "archcomp-before")  # of what the searches of that commit found
N2N_SEARCH = Searched("n2n", _n2n)
CONTENDERS = {
    "n2n": Contender(label="N2N", find=N2N_SEARCH),
    # Uniform and tapered students of several depths, two updates: most passes are left to the training.
    "n2n-first": Contender(
        label="N2N, its first students alone", find=Searched("n2n-first", lambda n: _n2n(min(2 * ROLLOUTS, n)))
    ),
    # So are they here: looks are no passes, as nothing is learned from them.
    "n2n-looks": Contender(label="N2N, 200 looks and ten students", find=Searched("n2n-looks", _n2n_looks)),
    "n2n-paper": Contender(label="N2N, the paper's two stages", find=Searched("n2n-paper", _n2n_paper)),
    "decore": Contender(label="DECORE", find=decore, weights="inherited"),
    "archcomp": Contender(
        label="Architecture Compression",
        find=Searched("archcomp", lambda n: ArchComp(students=n)),
    ),
    "archcomp-looks": Contender(
        label="Architecture Compression, 200 looks and ten students", find=Searched("archcomp-looks", _archcomp_looks)
    ),
    "n2n-decore": Contender(label="N2N, then DECORE", find=chain, weights="inherited"),
    "random": Contender(
        label="random search, filled", find=Searched("random", lambda n: RandomSearch(students=n, fill=True))
    ),
    "tpe": Contender(label="TPE, filled", find=Searched("tpe", lambda n: OptunaSearch(students=n, fill=True))),
    "allocate": Contender(label="allocate", find=Searched("allocate", lambda _: Allocate())),
    "free": Contender(label="free", find=Proposed(Free())),
    "uniform": Contender(label="uniform width", find=Proposed(UniformWidth(students=1))),
    "tapered": Contender(label="tapered width", find=Proposed(UniformWidth(students=1, taper=0.5))),
    "magnitude": Contender(label="torch-pruning, group magnitude", find=TorchPruned("magnitude")),
    "taylor": Contender(label="torch-pruning, Taylor", find=TorchPruned("taylor")),
    TRANSFERRED: Contender(
        label="N2N, from another track's policy", find=Searched(TRANSFERRED, _n2n, transferred=True)
    ),
    "uniform-slices": Contender(
        label="uniform width, from slices", find=Proposed(UniformWidth(students=1)), weights="inherited"
    ),
    "n2n-slices": Contender(label="N2N, from slices", find=N2N_SEARCH, weights="inherited"),
    "n2n-labels": Contender(label="N2N, final training without teacher", find=N2N_SEARCH, loss="ce"),
    BEFORE[0]: Contender(label=f"N2N of commit {EARLIER}", find=Kept(BEFORE[0])),
    BEFORE[1]: Contender(label=f"Architecture Compression of commit {EARLIER}", find=Kept(BEFORE[1])),
    "scratch": Contender(label="N2N's shape from scratch, with teacher", find=N2N_SEARCH, weights="fresh", given=True),
    "scratch-labels": Contender(
        label="N2N's shape from scratch, without teacher", find=N2N_SEARCH, weights="fresh", loss="ce", given=True
    ),
}
