"""One student, built and held against the masked teacher: does it compute what slicing promises?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from understudy.core.architecture import Architecture
from understudy.core.errors import SurgeryError, a_kind
from understudy.core.evaluation import Cost
from understudy.core.memory import out_of_memory
from understudy.cost.predict import predict
from understudy.graph.analysis import Analysis
from understudy.graph.copies import copied
from understudy.graph.fake import map_structure
from understudy.graph.flops import counting
from understudy.graph.surroundings import unchanged
from understudy.graph.trace import named_inputs
from understudy.proof.differences import Heard, apart, difference, listen, pairs_of, unlike
from understudy.proof.rounded import Rounded
from understudy.proof.shaken import Inputs, OnlyMacs, call, inputs_like, laboratory, settle, shaken, sides
from understudy.surgery.build import build, inherits_all, kept_slots, rebuild
from understudy.surgery.masked import Masked, rimmed, tensors_of

_BATCHES = (3, 4)  # besides that of the example; the last one in training mode
_LEAST = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest value: what rounding may do
_FEW = 10_000_000  # MACs that take less time than what torch does to run without values
_ROUNDING = 50.0  # times what a change of the last digits of the parameters does, or another rounding of all results
_OTHERS = 3  # such roundings
_STORES = (
    "the module must give the same for the same inputs, but in evaluation mode it reads what an earlier forward pass "
    "has stored, which no recorded one does"
)


class Unlike(Exception):
    """A student is not what it should be; the message says how."""


@dataclass(frozen=True)
class Outcome:
    """What a trial found. "impossible": the architecture is known not to fit, which a search passes by."""

    status: Literal["holds", "fails", "impossible"]
    reason: str = ""


@dataclass(frozen=True, eq=False)
class _Setting:
    """A mode and inputs, with the graph that the masked teacher is run by, and what rounding may do to its values.

    Without a graph, where training mode is written otherwise than evaluation, the module itself runs with zeros in its
    parameters.
    """

    training: bool
    inputs: Inputs
    graph: fx.Graph | None
    tolerance: float = 0.0
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # of the teacher's outputs

    @property
    def name(self) -> str:
        batch = next((len(v) for v in self.inputs.values() if isinstance(v, Tensor) and v.dim()), 1)
        return f"in {'training' if self.training else 'evaluation'} mode on a batch of {batch}"


class Trials:
    """Builds students of one teacher and holds each against the masked teacher.

    The teacher is a copy with drawn parameters in double precision. `reference` is "" or says why the recorded forward
    pass does not compute what the module itself does, so that nothing can be proved by it.

    Args:
        analysis: of the teacher, which is not touched.
        seed: of everything that is drawn.
    """

    def __init__(self, analysis: Analysis, seed: int = 0) -> None:
        self.analysis = analysis
        self.reference = ""
        self.largest = 0.0  # difference that was taken for rounding, of the largest value
        self.students = 0
        self._given = named_inputs(analysis.teacher, analysis.trace.example)
        self._settings: list[_Setting] = []
        for self.dtype, drawn in ((torch.float64, True), (torch.float64, False), (torch.float32, False)):
            problem = self._prepared(seed, drawn)
            self.reference = self.reference or problem
            if not problem:
                self.reference = ""
                break
        self._trains = not self.reference and self._teacher_trains()
        self._counts = not self.reference and self._are_counted()

    def judge(self, architecture: Architecture, *, thorough: bool = False) -> Outcome:
        """Build and check the student of an architecture; `thorough` also counts its MACs and reloads it.

        The whole teacher is run at all batch sizes, a student at two of them: in evaluation mode at the example's, a
        thorough one at another, and in training mode. Whatever a student raises is an outcome.
        """
        try:
            cost = predict(self.analysis, architecture)
        except SurgeryError as error:
            return Outcome("impossible", str(error))
        except Exception as error:
            if out_of_memory(error):
                raise
            return Outcome("fails", f"its cost cannot be predicted: {_brief(error)}")
        try:
            self.students += 1
            student = build(self._copy, architecture)
            self._check_size(student, cost)
            for setting in self._settings_of(architecture, thorough):
                self._check(student, architecture, setting)
            if thorough:
                self._check_reload(student, architecture)
                if self._counts and (counted := self._counted(student)) != cost.macs:
                    raise Unlike(f"a student has {counted} MACs where {cost.macs} were predicted")
        except Unlike as error:
            return Outcome("fails", str(error))
        except Exception as error:
            if out_of_memory(error):
                raise
            return Outcome("fails", f"a student fails: {_brief(error)}")
        return Outcome("holds")

    def _settings_of(self, architecture: Architecture, thorough: bool) -> list[_Setting]:
        if architecture == self.analysis.space.full:
            return self._settings
        evaluation = [setting for setting in self._settings if not setting.training]
        return [evaluation[-1 if thorough else 0], *(setting for setting in self._settings if setting.training)]

    def _prepared(self, seed: int, drawn: bool) -> str:
        """Make the copy, and find the settings that its graph reproduces; return why there are none."""
        problem = ""
        for side in sides(self._given, self.analysis.trace.graph):
            try:
                self._copy = shaken(self.analysis, seed, dtype=self.dtype, drawn=drawn)
                self._settings = list(self._tried(side))
                return ""
            except Exception as error:
                if out_of_memory(error):
                    raise
                problem = str(error) if isinstance(error, Unlike) else _brief(error)
        return problem

    def _tried(self, side: float) -> Iterator[_Setting]:
        """Yield each mode and batch size that the teacher takes.

        Raises:
            Unlike: the graph gives something else than the module.
        """
        batch, teacher = self.analysis.trace.batch, self._copy.teacher
        train = inputs_like(self._given, batch, _BATCHES[-1], self.dtype, side=side)
        plain = inputs_like(self._given, batch, batch, self.dtype, side=side)
        modes = [(False, plain), (False, inputs_like(self._given, batch, _BATCHES[0], self.dtype, side=side))]
        trained = next((inputs for inputs in (train, plain) if _runs(teacher, inputs, training=True)), None)
        if trained is not None:
            settle(teacher, trained)
            modes.append((True, trained))
        for training, inputs in modes:
            if inputs is plain or inputs is trained or _runs(teacher, inputs, training=training):
                yield self._setting(training, inputs)

    def _setting(self, training: bool, inputs: Inputs) -> _Setting:
        full, worst = self.analysis.space.full, ""
        real = call(self._copy.teacher, inputs, training=training)
        if not any(True for _ in tensors_of(real)):
            raise Unlike(f"the teacher's output must hold tensors that can be compared, but is {a_kind(real)}")
        if not all(bool(t.isfinite().any()) for t in tensors_of(real) if t.is_floating_point()):
            raise Unlike("the teacher's outputs are not finite")
        shapes = [tuple(t.shape) for t in tensors_of(real)]
        tolerance = max(_LEAST[self.dtype], _ROUNDING * self._rounding(real, training, inputs))
        traced = self.analysis.trace
        graphs = (traced.training or traced.flagged, traced.graph) if training else (traced.graph,)
        for graph in filter(None, graphs):
            try:
                _, found = self._masked(full, _Setting(training, inputs, graph))
                worst = unlike(real, found, tolerance)
            except Exception as error:
                if out_of_memory(error):
                    raise
                worst = _brief(error)
            if not worst:
                return _Setting(training, inputs, graph, tolerance, shapes)
        if training:
            return _Setting(training, inputs, None, tolerance, shapes)
        if unlike(real, call(self._copy.teacher, inputs, training=training), tolerance):
            raise Unlike(_STORES)
        raise Unlike(f"the module computes something else than its recorded forward pass: {worst}")

    def _rounding(self, real: Any, training: bool, inputs: Inputs) -> float:
        """Return how far outputs move when the last digits of all parameters do, of the largest output."""
        teacher, generator = self._copy.teacher, torch.Generator().manual_seed(1)
        before = {name: p.detach().clone() for name, p in teacher.named_parameters()}
        digit = 4 * torch.finfo(self.dtype).eps
        with torch.no_grad():
            for p in teacher.parameters():
                if p.is_floating_point():
                    p.mul_(1 + digit * torch.randn(p.shape, generator=generator).to(p))
            try:
                moved = call(teacher, inputs, training=training)
            finally:
                for name, p in teacher.named_parameters():
                    p.copy_(before[name])
        pairs = zip(tensors_of(real), tensors_of(moved), strict=True)
        return max((d for d in (difference(a, b) for a, b in pairs) if d < 1e-3), default=0.0)

    def _zeroed(self, architecture: Architecture, setting: _Setting) -> Any:
        """Return what the teacher gives where all parameters of dropped channels are zero."""
        kept = torch.from_numpy(kept_slots(self._copy, architecture))
        module = copied(self._copy.teacher)
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for name, plan in self._copy.groups.plan.parameters.items():
            for dim, labels in enumerate(plan.dims):
                if isinstance(labels, np.ndarray) and name in tensors and not name.endswith("running_var"):
                    shape = [-1 if d == dim else 1 for d in range(tensors[name].dim())]
                    tensors[name].data = tensors[name].data * kept[torch.from_numpy(labels.copy())].view(shape)
        for name, kernel in architecture.kernels:
            weight = module.get_parameter(f"{name}.weight")
            weight.data = rimmed(weight.data, kernel)
        return call(module, setting.inputs, training=setting.training)

    def _masked(
        self, architecture: Architecture, setting: _Setting, rounding: torch.Generator | None = None
    ) -> tuple[Any, Masked]:
        """Return what the masked teacher gives, and it; rounded otherwise where a generator for that is given."""
        assert setting.graph is not None
        root = self._copy.trace.root.train(setting.training)
        if rounding is None:
            masked = Masked(self._copy, architecture, graph=setting.graph, record=True)
        else:
            masked = Rounded(self._copy, architecture, graph=setting.graph, generator=rounding)
        places = [
            setting.inputs.get(str(n.target), n.args[0] if n.args else None)
            for n in setting.graph.find_nodes(op="placeholder")
        ]
        kept = {name: value.clone() for name, value in root.named_buffers()}
        with laboratory(self.dtype, training=setting.training), torch.no_grad():
            found = masked.run(*map_structure(tuple(places), _own))
            for name, value in root.named_buffers():
                value.copy_(kept[name])
        return masked, found

    def _check_size(self, student: nn.Module, cost: Cost) -> None:
        number = sum(p.numel() for p in student.parameters())
        if number != cost.parameters:
            raise Unlike(f"a student has {number} parameters where {cost.parameters} were predicted")

    def _check(self, student: nn.Module, architecture: Architecture, setting: _Setting) -> None:
        heard, hooks = listen(student)
        try:
            found = call(student, setting.inputs, training=setting.training)
        finally:
            for hook in hooks:
                hook.remove()
        if inherits_all(self._copy, architecture) and not (setting.graph is None and architecture.removed):
            self._compare(found, heard, architecture, setting)
        else:
            shapes = [tuple(t.shape) for t in tensors_of(found)]
            if shapes != setting.shapes:
                raise Unlike(f"a student gives {shapes} {setting.name} where the teacher gives {setting.shapes}")
        if setting.training and self._trains and not _learns(student, found):
            raise Unlike("a student's gradients are not finite")

    def _compare(self, found: Any, heard: Heard, architecture: Architecture, setting: _Setting) -> None:
        """Hold outputs, and whatever layers give before them, against the masked teacher's.

        What differs no further than the masked teacher does from itself, rounded otherwise, is rounding.
        """
        if setting.graph is None:
            pairs = {"": (self._zeroed(architecture, setting), found)}
        else:
            pairs = pairs_of(*self._masked(architecture, setting), found, heard)
        reasons = {place: how for place, pair in pairs.items() if (how := unlike(*pair, setting.tolerance))}
        if reasons and setting.graph is not None:
            rounding = torch.Generator().manual_seed(1)
            others = [self._masked(architecture, setting, rounding) for _ in range(_OTHERS)]
            rounded = [pairs_of(*other, found, heard) for other in others]
            for place in list(reasons):
                wanted, own = pairs[place]
                moved = max(apart(wanted, other[place][0]) for other in rounded)
                if not unlike(wanted, own, _ROUNDING * moved):
                    del reasons[place], pairs[place]
        for place, how in reasons.items():
            raise Unlike(f"{setting.name} a student differs from the masked network{place and f' at {place}'}: {how}")
        self.largest = max(self.largest, apart(*pairs[""]) if "" in pairs else 0.0)

    def _check_reload(self, student: nn.Module, architecture: Architecture) -> None:
        state = student.state_dict()
        again = rebuild(self._copy, architecture, state).state_dict()
        if list(again) != list(state) or not all(torch.equal(again[name], state[name]) for name in state):
            raise Unlike("a student's weights do not load into a student that is built again")

    def _teacher_trains(self) -> bool:
        trained = [s for s in self._settings if s.training]
        try:
            outputs = [call(self._copy.teacher, s.inputs, training=True) for s in trained]
            return bool(trained) and all(_learns(self._copy.teacher, out) for out in outputs)
        except Exception as error:
            if out_of_memory(error):
                raise
            return False

    def _are_counted(self) -> bool:
        """Return whether torch counts the MACs that are predicted of the teacher; of some operations it counts none.

        An einsum that sums over a single element, as a narrow student's may, it counts as no product.
        """
        if any(node.target is torch.einsum for node in self.analysis.trace.graph.nodes):
            return False
        try:
            return self._counted(self._copy.teacher) == predict(self.analysis, self.analysis.space.full).macs
        except Exception as error:
            if out_of_memory(error):
                raise
            return False

    def _counted(self, module: nn.Module) -> int:
        batch = self.analysis.trace.batch
        inputs = inputs_like(self._given, batch, batch, self.dtype)
        macs = predict(self.analysis, self.analysis.space.full).macs
        with contextlib.suppress(Exception):  # tensors that a forward pass makes on the CPU have values
            if batch * macs > _FEW:
                return self._counted_without_values(module, inputs) // 2 // batch
        kept = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        with counting() as counter:
            call(module, inputs, training=False, instead=kept)
        return int(counter.get_total_flops()) // 2 // batch

    def _counted_without_values(self, module: nn.Module, inputs: Inputs) -> int:
        named = (*module.named_parameters(), *module.named_buffers())
        instead = {name: tensor.detach().to("meta") for name, tensor in named}
        with counting() as counter, OnlyMacs(), unchanged(module):
            call(module, map_structure(dict(inputs), _on_meta), training=False, instead=instead)
        return int(counter.get_total_flops())


def _runs(module: nn.Module, inputs: Inputs, *, training: bool) -> bool:
    try:
        call(module, inputs, training=training)
    except Exception as error:
        if out_of_memory(error):
            raise
        return False
    return True


def _learns(module: nn.Module, outputs: Any) -> bool:
    """Take a step back from outputs of training mode; return whether gradients are finite."""
    ends = [t for t in tensors_of(outputs) if t.requires_grad]
    if not ends:
        return False
    module.zero_grad()
    torch.stack([t.square().mean() for t in ends]).sum().backward()
    return all(p.grad is None or bool(p.grad.isfinite().all()) for p in module.parameters())


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}".strip()
