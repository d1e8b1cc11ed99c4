"""The settings of each method, and what the rest of the package must know of a method. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from understudy.config.checked import Amount, Checked, Count, Natural, Range, Share
from understudy.config.training import Training
from understudy.config.widths import Widths
from understudy.core.architecture import Group, Space, Unit

if TYPE_CHECKING:
    from understudy.methods.base import Problem, Searcher

RulesName = Literal["tuned", "paper"]


@dataclass(frozen=True, kw_only=True)
class Method(Checked):
    """The settings of a method: a frozen dataclass that says who searches by them.

    A method of your own is a subclass with a `searcher`; the other members have defaults that fit most.
    """

    name: ClassVar[str] = "own"  # what files and flags call it
    job: ClassVar[Literal["search", "prune"]] = "search"  # prune: agents prune one network, nothing is proposed
    made_by: ClassVar[str] = ""  # "module:class" of the searcher, loaded when it is needed, as it may need torch
    shrinks_kernels: ClassVar[bool] = True
    starts_from_policy: ClassVar[bool] = False  # policy_from can warm-start it, after `check_start`
    multiple: ClassVar[int] = 8  # what widths are multiples of, and the fewest channels, unless said otherwise

    def searcher(self, problem: Problem) -> Searcher:
        """Return a new searcher with these settings."""
        return self._searcher()(problem, self)  # type: ignore[no-any-return]

    def check_start(self, tensors: Mapping[str, Any], problem: Problem) -> None:
        """Check that a searcher can start from what another one's `state_dict` gave.

        Raises:
            ConfigError: it cannot.
        """
        if self.made_by:
            self._searcher().check_start(tensors, problem, self)

    def _searcher(self) -> Any:
        if not self.made_by:
            raise NotImplementedError(f"{self.called} must have a method `searcher(self, problem)`")
        module, _, name = self.made_by.partition(":")
        return getattr(import_module(module), name)

    @property
    def called(self) -> str:
        """Its name for people: a method of your own by its class."""
        return type(self).__name__ if self.name == "own" else self.name

    @property
    def expected_students(self) -> int:
        """How many students it proposes, those that it proposes twice included; 0: not known beforehand."""
        return int(getattr(self, "students", 0))

    @property
    def capped(self) -> bool:
        """Whether what a student saves beyond a budget earns nothing (`Reward.capped`)."""
        return True

    def removable(self, space: Space) -> list[Unit]:
        """Return the units that it may remove."""
        return [unit for unit in space.units if unit.kind != "layer"]

    def narrowest(self, group: Group, widths: Widths) -> int:
        """Return the least width (channels) that it can propose for a group."""
        return widths.of(group, min(widths.factors))


@dataclass(frozen=True, kw_only=True)
class N2N(Method):
    """N2N learning (Ashok et al., ICLR 2018): a policy removes layers, another shrinks what is left."""

    removal_updates: Natural = 0
    """Policy updates of stage 1 (paper: up to 100); 0: stage 2 starts from the teacher and decides units as well."""
    shrinkage_updates: Natural = 24
    """Policy updates of stage 2 (paper: up to 100)."""
    rollouts: Count = 5
    """Students proposed for one update."""
    draws_per_rollout: Count = 20
    """Legal, new architectures drawn for each student that is trained; a regression on the students so far
    predicts which have the highest reward (paper: 1)."""
    revisit: Share = 0.2
    """Initial probability that stage 2 changes a unit or kernel of its starting student; 0.5 and more is a uniform
    prior (paper: 0, units stay as stage 1 left them)."""
    glances: Natural = 0
    """Untrained students that are looked at, before any is trained, for each one that will be, where there is a budget
    on cost: the same search runs on these looks first, and what looks best is trained first. A gain on one network, a
    loss on another (`docs/performance.md`), so that it is off."""
    lr: Amount = 0.02
    """Adam's learning rate for both policies (paper: 0.003)."""
    rules: RulesName = "tuned"
    """tuned: whole units are removed, calibrated to the budgets, replayed updates, draws that fit; paper: single layers
    are removed, REINFORCE as published."""

    name: ClassVar[str] = "n2n"
    made_by: ClassVar[str] = "understudy.methods.n2n.search:N2NSearch"
    starts_from_policy: ClassVar[bool] = True

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between fields."""
        if not self.removal_updates + self.shrinkage_updates:
            yield "one of removal_updates, shrinkage_updates must be at least 1"

    @property
    def expected_students(self) -> int:
        """How many students it proposes."""
        return (self.removal_updates + self.shrinkage_updates) * self.rollouts

    @property
    def capped(self) -> bool:
        """Whether a budget ends what compression earns: not in the paper."""
        return self.rules != "paper"

    @property
    def granularity(self) -> Literal["units", "layers"]:
        """What one removal takes: a convolution with its norm and activation, a pooling layer, a block; or a layer."""
        return "layers" if self.rules == "paper" else "units"

    def removable(self, space: Space) -> list[Unit]:
        """Return the units of its granularity."""
        return [unit for unit in space.units if (unit.kind == "layer") == (self.granularity == "layers")]

    @classmethod
    def paper(cls) -> N2N:
        """Return the paper's own settings; `paper("n2n")` has the training of its students as well."""
        return cls(
            removal_updates=100,
            shrinkage_updates=100,
            draws_per_rollout=1,
            revisit=0.0,
            lr=0.003,
            rules="paper",
        )


@dataclass(frozen=True, kw_only=True)
class ArchComp(Method):
    """Architecture compression (Ashok, 2019): gradient ascent in a learned embedding of architectures."""

    students: Count = 120
    """Number of students trained."""
    glances: Natural = 0
    """Untrained students that are looked at, before any is trained, for each one that will be, as by `n2n.glances`."""
    rules: RulesName = "tuned"
    """tuned: the embedding starts from what is known of costs and decisions; paper: from random weights."""

    name: ClassVar[str] = "archcomp"
    made_by: ClassVar[str] = "understudy.methods.archcomp.search:ArchCompSearcher"
    starts_from_policy: ClassVar[bool] = True

    @classmethod
    def paper(cls) -> ArchComp:
        """Return the paper's own settings, as far as it states any."""
        return cls(rules="paper")


@dataclass(frozen=True, kw_only=True)
class RandomSearch(Method):
    """A baseline: units, widths and kernels drawn independently, as N2N draws them before it has learned."""

    students: Count = 120
    """Number of students trained."""
    fill: bool = False
    """Scale all widths of every second draw by one factor, so that it just fits the predicted budgets, as N2N does."""

    name: ClassVar[str] = "random"
    made_by: ClassVar[str] = "understudy.methods.baselines.random:RandomSearcher"


@dataclass(frozen=True, kw_only=True)
class OptunaSearch(Method):
    """A baseline: a sampler of Optuna over the same units, widths and kernels, after 20 students of random search."""

    sampler: Literal["tpe", "nsga2"] = "tpe"
    """Tree-structured Parzen estimator, or the genetic algorithm NSGA-II."""
    students: Count = 120
    """Number of students trained."""
    fill: bool = False
    """Scale all widths of every second draw by one factor, so that it just fits the predicted budgets, as N2N does."""

    name: ClassVar[str] = "optuna"
    made_by: ClassVar[str] = "understudy.methods.baselines.optuna:SamplerSearcher"

    def narrowest(self, group: Group, widths: Widths) -> int:
        """Return the least legal width (channels): samplers know no factors."""
        return widths.nearest(group, 0.0)


@dataclass(frozen=True, kw_only=True)
class Free(Method):
    """A baseline: of a thousand draws the one with the most MACs within the budgets; nothing is learned."""

    name: ClassVar[str] = "free"
    made_by: ClassVar[str] = "understudy.methods.baselines.free:FreeSearcher"

    @property
    def expected_students(self) -> int:
        """One."""
        return 1


@dataclass(frozen=True, kw_only=True)
class Allocate(Method):
    """A baseline: what each width costs in error alone, untrained, then the best widths for the budgets, exactly."""

    name: ClassVar[str] = "allocate"
    made_by: ClassVar[str] = "understudy.methods.baselines.allocate:AllocateSearcher"
    shrinks_kernels: ClassVar[bool] = False

    @property
    def expected_students(self) -> int:
        """Five."""
        return 5


@dataclass(frozen=True, kw_only=True)
class UniformWidth(Method):
    """A baseline: one width factor for all groups, or tapered ones, nothing removed."""

    students: Count = 10
    """Number of students trained, evenly spaced from the widest that keeps the predicted budgets to the narrowest."""
    taper: Share = 0.0
    """0: all widths alike. Else a group's factor is multiplied by this power of its share of the MACs over its share of
    the budget: under a budget on parameters alone, 0.5 keeps the MACs that such a budget leaves free."""

    name: ClassVar[str] = "uniform"
    made_by: ClassVar[str] = "understudy.methods.baselines.uniform:UniformSearcher"
    shrinks_kernels: ClassVar[bool] = False

    def removable(self, space: Space) -> list[Unit]:
        """Return nothing."""
        return []

    def narrowest(self, group: Group, widths: Widths) -> int:
        """Return the least legal width (channels)."""
        return widths.nearest(group, 0.0)


@dataclass(frozen=True, kw_only=True)
class Decore(Method):
    """DECORE (Alwani, Wang, Madhavan, CVPR 2022): an agent on every channel learns whether to keep it.

    Agents and network learn in one loop, from the teacher's weights; then channels go and the rest is trained as
    `Final` says.
    """

    penalty: Annotated[float, Range(0.0)] = 200.0
    """Penalty for a wrong prediction, where a right one earns 1 (DECORE's lambda). Dropping channels pays only while
    the score is above penalty / (1 + penalty). With budgets on cost it is adapted instead."""
    training: Training = field(default_factory=lambda: Training(epochs=12, lr=0.001, schedule="constant", loss="ce"))
    """The network's training while the agents learn (paper: 260 epochs on labels, batches of 256)."""
    agent_lr: Amount = 0.0
    """Adam's learning rate for the agents' weights (0: enough to reach p = 1/2 in an eighth of the steps, at least the
    paper's 0.01)."""
    rules: RulesName = "tuned"
    """tuned: agents with less variance, steered by what channels cost; paper: as published."""

    name: ClassVar[str] = "decore"
    job: ClassVar[Literal["search", "prune"]] = "prune"
    shrinks_kernels: ClassVar[bool] = False
    multiple: ClassVar[int] = 1

    @property
    def expected_students(self) -> int:
        """One: what the agents leave."""
        return 1

    def removable(self, space: Space) -> list[Unit]:
        """Return nothing."""
        return []

    def narrowest(self, group: Group, widths: Widths) -> int:
        """Return the least legal width (channels)."""
        return widths.nearest(group, 0.0)

    @classmethod
    def paper(cls) -> Decore:
        """Return the paper's own settings on CIFAR-10, for its lambda of 200."""
        training = Training(epochs=260, batch_size=256, lr=0.001, schedule="constant", loss="ce")
        return cls(penalty=200.0, training=training, agent_lr=0.01, rules="paper")


@dataclass(frozen=True, kw_only=True)
class OwnMethod(Method):
    """A method that is not of this package, as a run folder records it."""

    kind: str
    """Its class."""
    settings: str
    """What it prints as: its fields."""
    students: Natural = 0
    """How many it was expected to propose."""

    @classmethod
    def of(cls, method: Method) -> OwnMethod:
        """Return what is recorded of a method."""
        return cls(kind=type(method).__qualname__, settings=repr(method), students=method.expected_students)

    @property
    def called(self) -> str:
        """Its class."""
        return self.kind
