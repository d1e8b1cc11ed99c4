"""What a student costs: predicted exactly from its architecture, or measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from torch import nn

from understudy.core.architecture import Architecture, Group
from understudy.core.errors import SurgeryError
from understudy.core.evaluation import Cost
from understudy.graph.analysis import Analysis, check_analysis
from understudy.graph.channels import FIXED, Labelled, Labels, ParameterPlan
from understudy.graph.nodes import VIEWS, describe
from understudy.graph.refit import Refit
from understudy.graph.units import emptied_slots, removed_paths
from understudy.surgery.build import kept_slots


def predict(analysis: Analysis, architecture: Architecture) -> Cost:
    """Return parameters, MACs and bytes of an architecture's student without building it.

    MACs and activation bytes are for one example of the size that the teacher was analysed with.

    Raises:
        ArchitectureError: the architecture was made for another teacher, or is none.
        ConfigError: the analysis is none.
        SurgeryError: the architecture cannot be built.
    """
    return predict_many(analysis, [architecture])[0]


def predict_many(analysis: Analysis, architectures: Sequence[Architecture]) -> list[Cost]:
    """As `predict` for several architectures; those that remove the same units are computed together.

    Raises:
        ArchitectureError: one of them was made for another teacher.
        SurgeryError: one of them cannot be built.
    """
    check_analysis(analysis)
    costs: dict[int, Cost] = {}
    together: dict[frozenset[str], list[int]] = {}
    for index, architecture in enumerate(architectures):
        analysis.space.check_own(architecture)
        together.setdefault(architecture.removed, []).append(index)
    for indices in together.values():
        members = [architectures[i] for i in indices]
        costs.update(zip(indices, _forms(analysis, members[0]).costs(members), strict=True))
    return [costs[i] for i in range(len(architectures))]


@dataclass(frozen=True)
class LayerCost:
    """What one layer of a student costs for one example."""

    parameters: int
    macs: int
    activation_bytes: int  # of all that is alive while it runs


def per_layer(analysis: Analysis, architecture: Architecture) -> dict[str, LayerCost]:
    """Return what each layer of an architecture's student costs, by its name in the teacher.

    Raises:
        SurgeryError: the architecture cannot be built.
    """
    forms, refit = _forms(analysis, architecture), analysis.refit(architecture)
    kept, batch = kept_slots(analysis, architecture), analysis.trace.batch
    chosen = dict(architecture.widths)
    slots = [chosen.get(g.name, g.width) // g.step for g in analysis.space.groups]
    alive = forms.activations @ np.array([*slots, 1], dtype=np.int64)
    macs: dict[str, int] = {}
    for work in refit.plan.work:
        sides: Any = analysis.trace.root.get_submodule(work.kernel_of).kernel_size if work.kernel_of else ()
        if work.kernel_of in dict(architecture.kernels):
            sides = (architecture.kernel(str(work.kernel_of)),) * work.kernel_dims
        kernel = math.prod(sides)
        macs[work.layer] = macs.get(work.layer, 0) + work.constant * kernel * math.prod(
            int(kept[f].sum()) for f in work.factors
        )
    sizes = {name: _elements(plan, kept, architecture) for name, plan in refit.plan.parameters.items()}
    parameters = {name: p.numel() for name, p in analysis.teacher.named_parameters()}
    parameters = {name: sizes.get(name, number) for name, number in parameters.items()}
    found = {}
    for layer in analysis.space.layers:
        own = [n for n in analysis.trace.members[layer.name] if n.graph is analysis.trace.graph]
        gone = all(refit.passes_by(n) for n in own)
        inside = (number for name, number in parameters.items() if name.startswith(f"{layer.name}.") and not gone)
        bytes_alive = max(int(alive[analysis.trace.order[n]]) for n in own) // batch
        found[layer.name] = LayerCost(sum(inside), macs.get(layer.name, 0) // batch, 0 if gone else bytes_alive)
    return found


def _elements(plan: ParameterPlan, kept: npt.NDArray[np.bool_], architecture: Architecture) -> int:
    sides = [int(kept[d].sum()) if isinstance(d, np.ndarray) else d for d in plan.dims]
    if plan.kernel_of in dict(architecture.kernels):
        sides[plan.kernel_from :] = [architecture.kernel(str(plan.kernel_of))] * (len(sides) - plan.kernel_from)
    return math.prod(sides)


@dataclass(frozen=True, eq=False)
class _Forms:
    """Costs as sums of products of channel counts, each a linear form in the slots that groups keep.

    `forms` (F, G + 1): counts per group and a constant. A row of a table of products (P, 1 + K) has
    its constant and K indices of forms; `kernel` names the layer whose size takes part, and how often.
    """

    groups: tuple[Group, ...]
    batch: int
    forms: npt.NDArray[np.int64]
    parameters: _Products
    weight_bytes: _Products
    macs: _Products
    activations: npt.NDArray[np.int64]  # (nodes, G + 1): bytes of what is alive at each node
    meetings: npt.NDArray[np.int64]  # (M, 2): forms that must be equal
    fixed_parameters: int
    fixed_bytes: int

    def costs(self, architectures: Sequence[Architecture]) -> list[Cost]:
        """Return the costs of architectures that remove the same units."""
        groups = self.groups
        chosen = [dict(a.widths) for a in architectures]
        slots = np.array([[c.get(g.name, g.width) // g.step for g in groups] + [1] for c in chosen], dtype=np.int64)
        values = slots.reshape(len(architectures), -1) @ self.forms.T
        left, right = values[:, self.meetings[:, 0]], values[:, self.meetings[:, 1]]
        if (left != right).any():
            at = tuple(np.argwhere(left != right)[0])
            raise SurgeryError(f"{left[at]} and {right[at]} channels meet where a removal joins two groups")
        batch = self.batch
        kernels = [dict(a.kernels) for a in architectures]
        return [
            Cost(
                parameters=self.parameters.total(row, sizes) + self.fixed_parameters,
                weight_bytes=self.weight_bytes.total(row, sizes) + self.fixed_bytes,
                macs=self.macs.total(row, sizes) // batch,
                peak_activation_bytes=int((self.activations @ counts).max(initial=0)) // batch,
            )
            for row, counts, sizes in zip(values, slots, kernels, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class _Products:
    constants: npt.NDArray[np.int64]  # (P,)
    factors: npt.NDArray[np.int64]  # (P, K): indices of forms; form 0 is 1
    kernels: dict[str, tuple[tuple[int, int, int], ...]]  # layer: (row, the teacher's size, dimensions)

    def total(self, values: npt.NDArray[np.int64], sizes: dict[str, int]) -> int:
        terms = self.constants * values[self.factors].prod(axis=1)
        for layer, size in sizes.items():
            for row, full, dims in self.kernels.get(layer, ()):
                terms[row] = terms[row] // full**dims * size**dims
        return int(terms.sum())


class _Collector:
    """Gathers forms, each once, and tables of products over them."""

    def __init__(self, analysis: Analysis) -> None:
        groups = analysis.groups
        self._size = len(groups.groups) + 1
        self._group_of = np.full(groups.slots + 1, self._size - 1)
        self._per_slot = np.array([len(s) for s in groups.slots_of] + [1], dtype=np.int64)
        for index, slots in enumerate(groups.slots_of):
            self._group_of[slots] = index
        self.rows: dict[bytes, int] = {}
        self.one = self._add(np.eye(1, self._size, self._size - 1, dtype=np.int64)[0])

    def hold(self, places: Iterable[int]) -> None:
        """Take the channels of these groups for constants, as they all stay."""
        for place in places:
            self._group_of[self._group_of == place] = self._size - 1

    def drop(self, slots: Labels) -> None:
        """Count these slots nowhere, as nothing emits them any more."""
        self._group_of[slots] = self._size

    def row(self, labels: Labels) -> npt.NDArray[np.int64]:
        """Return the linear form of the number of labels that stay, (G + 1,)."""
        counts = np.bincount(self._group_of[labels].ravel(), minlength=self._size)[: self._size].astype(np.int64)
        counts[:-1] //= self._per_slot[:-1]
        return counts

    def form(self, labels: Labels) -> int:
        """Return the index of the form of these labels."""
        return self._add(self.row(labels))

    def products(self, terms: Sequence[tuple[int, list[int], tuple[str, int, int] | None]]) -> _Products:
        """Return the table of (constant, forms, kernel as (layer, size, dimensions))."""
        width = max((len(forms) for _, forms, _ in terms), default=1)
        factors = [forms + [self.one] * (width - len(forms)) for _, forms, _ in terms]
        kernels: dict[str, tuple[tuple[int, int, int], ...]] = {}
        for row, (_, _, kernel) in enumerate(terms):
            if kernel is not None:
                kernels[kernel[0]] = (*kernels.get(kernel[0], ()), (row, *kernel[1:]))
        constants = np.array([constant for constant, _, _ in terms], dtype=np.int64)
        return _Products(constants, np.array(factors, dtype=np.int64).reshape(len(terms), width), kernels)

    def table(self) -> npt.NDArray[np.int64]:
        """Return all forms, (F, G + 1)."""
        return np.array([np.frombuffer(row, dtype=np.int64) for row in self.rows])

    def _add(self, row: npt.NDArray[np.int64]) -> int:
        return self.rows.setdefault(row.tobytes(), len(self.rows))


# For each analysis, by the units that are removed.
_COMPILED: WeakKeyDictionary[Analysis, dict[frozenset[str], _Forms]] = WeakKeyDictionary()


def _forms(analysis: Analysis, architecture: Architecture) -> _Forms:
    cache = _COMPILED.setdefault(analysis, {})
    if architecture.removed not in cache:
        if len(cache) > 256:
            cache.clear()
        cache[architecture.removed] = _compiled(analysis, architecture)
    return cache[architecture.removed]


def _compiled(analysis: Analysis, architecture: Architecture) -> _Forms:
    refit = analysis.refit(architecture)
    collect = _Collector(analysis)
    collect.drop(emptied_slots(analysis.groups, map(analysis.space.unit, architecture.removed)))
    held = [analysis.groups.slots_of[place] for place in refit.whole]
    meetings = [[collect.form(slots), collect.form(np.full(len(slots), FIXED))] for slots in held]
    collect.hold(refit.whole)
    meetings += [[collect.form(a), collect.form(b)] for a, b, _ in refit.met]
    parameters, sizes = [], []
    kept = {**dict(analysis.teacher.named_parameters()), **dict(analysis.teacher.named_buffers())}
    gone = tuple(p + "." for u in architecture.removed for p in removed_paths(analysis.space.unit(u)))
    fixed_parameters = fixed_bytes = 0
    plans = refit.plan.parameters
    for name, tensor in kept.items():
        is_parameter = isinstance(tensor, nn.Parameter)
        if name in plans:
            plan = plans[name]
            whole = math.prod(d for d in plan.dims if isinstance(d, int))
            forms = [collect.form(d) for d in plan.dims if isinstance(d, np.ndarray)]
            kernel = None
            if plan.kernel_of is not None:
                dims = len(plan.dims) - plan.kernel_from
                kernel = (plan.kernel_of, int(plan.dims[plan.kernel_from]), dims)
            sizes.append((whole * tensor.element_size(), forms, kernel))
            if is_parameter:
                parameters.append((whole, forms, kernel))
        elif not name.startswith(gone):
            fixed_bytes += tensor.numel() * tensor.element_size()
            fixed_parameters += tensor.numel() if is_parameter else 0
    work = []
    for item in refit.plan.work:
        kernel, constant = None, item.constant
        if item.kernel_of is not None:
            size = analysis.trace.root.get_submodule(item.kernel_of).kernel_size
            constant *= math.prod(size)  # type: ignore[arg-type]
            kernel = (item.kernel_of, int(size[0]), item.kernel_dims)  # type: ignore[index]
        work.append((constant, [collect.form(f) for f in item.factors], kernel))
    tables = [collect.products(terms) for terms in (parameters, sizes, work)]
    return _Forms(
        groups=analysis.space.groups,
        batch=analysis.trace.batch,
        parameters=tables[0],
        weight_bytes=tables[1],
        macs=tables[2],
        activations=_live_bytes(analysis, refit, collect),
        meetings=np.array(meetings, dtype=np.int64).reshape(-1, 2),
        fixed_parameters=fixed_parameters,
        fixed_bytes=fixed_bytes,
        forms=collect.table(),
    )


def _live_bytes(analysis: Analysis, refit: Refit, collect: _Collector) -> npt.NDArray[np.int64]:
    """Return, per node, a linear form of the bytes of all activations that are alive while it runs."""
    nodes = analysis.trace.nodes
    last = {n: index for index, node in enumerate(nodes) for n in (node, *node.all_input_nodes)}
    live = np.zeros((len(nodes), len(collect.table()[0])), dtype=np.int64)
    for index, node in enumerate(nodes):
        value, recorded = refit.plan.values[node], node.meta["value"]
        owns = node.op in ("call_module", "call_function", "call_method", "placeholder")
        if isinstance(value, Labelled) and owns and not refit.passes_by(node) and describe(node) not in VIEWS:
            whole = math.prod(s for s, n in zip(value.shape, value.labels.shape, strict=True) if n == 1)
            live[index : last[node] + 1] += whole * recorded.dtype.itemsize * collect.row(value.labels)
    return live
