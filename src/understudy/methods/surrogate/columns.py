"""An architecture as a matrix, one column per layer of the teacher, and its decisions as numbers of classes.

What the networks of architecture compression read and write (Ashok, 2019, arXiv 1902.03326).

Shapes: B = architectures, D = decisions, K = classes of one, L = columns, I = entries of a column, U = units,
in the order of the suffix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Layer, Space
from understudy.methods.decisions import UNIT_OPTIONS, Decisions, kernel_options
from understudy.methods.n2n.rules import TUNED
from understudy.methods.n2n.state import encode, teacher_rows
from understudy.methods.proposals import SHRINKAGE_BIAS

_SAYS_NOTHING = ("norm", "activation", "other")  # goes wherever its convolution goes
CHANGING = ("kept", "width", "kernel", "log width", "arriving", "larger")  # the last entries of a column
_KEEP = 4.0  # largest logit to keep a unit among sampled architectures


class Columns:
    """Choices <-> architectures of a Space, and choices -> the matrix that stands for an architecture.

    Class k of a width is the k-th factor, of a kernel the k-th legal size, of a unit 0 (gone) or 1. Where
    factors round to the same width, only the largest is a class. Choices say nothing, and are read as the
    last class, where they decide on what is gone.
    """

    def __init__(self, space: Space, widths: Widths, *, granularity: str = "units") -> None:
        self._space = space
        rows, decided = teacher_rows(space, granularity)
        self._units = [name for _, name in decided]
        at = {row for row, _ in decided}
        kept = [i for i, row in enumerate(rows) if i in at or row.outputs or row.type not in _SAYS_NOTHING]
        self.rows = [self._with_parameters_until(rows, i, j) for i, j in zip(kept, [*kept[1:], len(rows)], strict=True)]
        self._find_decisions({name: kept.index(row) for row, name in decided}, widths)
        self._find_what_goes_together()
        state_LI = encode(self.rows, TUNED)
        total = max(sum(row.parameters for row in self.rows), 1)
        self.share_L = torch.tensor([row.parameters / total for row in self.rows], dtype=torch.float64)
        """Share of the teacher's parameters in each column."""
        self._fixed_LI = torch.cat([state_LI, self.share_L[:, None].clamp_min(1e-6).log() / 10.0], 1)
        self._log_stride_L = torch.tensor([math.log2(max(row.stride, 1)) for row in self.rows], dtype=torch.float64)
        self._find_sources()
        self.entries = self._fixed_LI.shape[1] + len(CHANGING)

    @staticmethod
    def _with_parameters_until(rows: Sequence[Layer], first: int, end: int) -> Layer:
        """Return a row with the parameters of those that follow it and have no column of their own."""
        return replace(rows[first], parameters=sum(row.parameters for row in rows[first:end]))

    def _find_decisions(self, unit_at: dict[str, int], widths: Widths) -> None:
        """List the decisions (units, then widths, then kernels), their values by class, and their columns."""
        values: dict[tuple[str, str], list[int]] = {("unit", name): [*UNIT_OPTIONS] for name in self._units}
        at = [unit_at[name] for name in self._units]
        for group in self._space.groups:
            emits = [i for i, row in enumerate(self.rows) if row.group == group.name and row.outputs]
            reads = [i for i, row in enumerate(self.rows) if row.name in group.layers]
            at.append(([*emits, *reads] or [0])[0])
            values["width", group.name] = widths.options(group)
        for index, row in enumerate(self.rows):
            if len(legal := kernel_options(row)) > 1:
                at.append(index)
                values["kernel", row.name] = legal
        self._decided, self._values = Decisions(self._space, values), values
        self.names, self.at = self._decided.names, at
        """Each decision's kind and what it is about, and the column where it is taken."""
        numbers = {name: number for number, name in enumerate(self.names)}
        self._width_L = [numbers.get(("width", row.group or ""), -1) for row in self.rows]
        self._kernel_L = [numbers.get(("kernel", row.name), -1) for row in self.rows]
        self._find_classes()

    def _find_classes(self) -> None:
        """Number the classes, and the outputs of a column that decide."""
        most = max((len(values) for values in self._values.values()), default=1)
        self.legal_DK = torch.zeros(len(self._values), most, dtype=torch.bool)
        for legal_K, values in zip(self.legal_DK, self._values.values(), strict=True):
            # Of classes of one value the last one counts.
            legal_K[list({value: index for index, value in enumerate(values)}.values())] = True
        self.last_D = torch.tensor([len(values) - 1 for values in self._values.values()], dtype=torch.int64)
        places: dict[tuple[str, int], int] = {}
        counted: dict[tuple[str, int], int] = {}
        self.slots: list[int] = []
        """Which of its column's outputs each decision is read from: the first width's, the second unit's, ..."""
        for (kind, _), column in zip(self._values, self.at, strict=True):
            number = counted.get((kind, column), 0)
            counted[kind, column] = number + 1
            self.slots.append(places.setdefault((kind, number), len(places)))
        self.slot_kinds = [kind for kind, _ in places]

    def _find_sources(self) -> None:
        """List, for each column, the groups whose channels it reads in the teacher, and where they come from."""
        emits: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            if row.group is not None and row.outputs and row.type != "block":
                emits.setdefault(row.group, []).append(index)
        self._reads_L = [
            [
                (group.width, emits[group.name])
                for group in self._space.groups
                if row.name in group.layers and row.group != group.name and group.name in emits
            ]
            for row in self.rows
        ]

    def _find_what_goes_together(self) -> None:
        units = [set(self._space.unit(name).layers) for name in self._units]
        own = [{row.name} if row.type != "block" else set(self._space.unit(row.name).layers) for row in self.rows]
        covers = [[float(row <= unit) for row in own] for unit in units]
        self._covers_UL = torch.tensor(covers, dtype=torch.float64).reshape(len(units), len(own))

    def choices(self, architecture: Architecture) -> Int[Tensor, " d"]:
        """Return the classes of an architecture's decisions; a width between two classes counts as the nearer."""
        chosen = self._decided.choices(architecture)
        return self.canonical(torch.tensor([chosen], dtype=torch.int64).reshape(1, -1))[0]

    def architecture(self, choices_D: Int[Tensor, " d"]) -> Architecture:
        """Return what the choices stand for."""
        return self._decided.architecture(choices_D.tolist())

    def matter(self, choices_BD: Int[Tensor, "b d"]) -> Bool[Tensor, "b d"]:
        """Return which choices change the student: all but those on what is inside of a unit that goes."""
        return torch.from_numpy(self._decided.matter(choices_BD.numpy()))

    def canonical(self, choices_BD: Int[Tensor, "b d"]) -> Int[Tensor, "b d"]:
        """Return the choices with the last class wherever they do not matter: equal exactly for equal students."""
        return torch.where(self.matter(choices_BD), choices_BD, self.last_D)

    def matrix(self, choices_BD: Int[Tensor, "b d"]) -> Float[Tensor, "b i l"]:
        """Return the columns: the teacher's own row, then what changes (`CHANGING`).

        Kept is 1 or -1, width its place among the classes, in 0..1. Kernel, log width and what arrives are logarithms
        of shares, 1 for the teacher's; `larger` is the binary logarithm of how much larger the images are that
        arrive. What is gone has no width.
        """
        count = len(choices_BD)
        removed_BU = (choices_BD[:, : len(self._units)] == 0).double()
        kept_BL = (removed_BU @ self._covers_UL == 0).double()
        share_BL, kernel_BL, place_BL = torch.ones(3, count, len(self.rows), dtype=torch.float64)
        for index, row in enumerate(self.rows):
            if (decision := self._width_L[index]) >= 0:
                values = self._values[self.names[decision]]
                shares_K = torch.tensor([value / values[-1] for value in values], dtype=torch.float64)
                share_BL[:, index] = shares_K[choices_BD[:, decision]]
                place_BL[:, index] = choices_BD[:, decision] / max(len(values) - 1, 1)
            if (decision := self._kernel_L[index]) >= 0:
                sizes_K = torch.tensor([math.log(value / row.kernel) for value in self._values[self.names[decision]]])
                kernel_BL[:, index] = 1.0 + sizes_K.double()[choices_BD[:, decision]]
        larger_BL = (1.0 - kept_BL) * self._log_stride_L
        parts = [
            2.0 * kept_BL - 1.0,
            place_BL * kept_BL,
            kernel_BL * kept_BL,
            (1.0 + share_BL.log() / 2.0) * kept_BL,
            1.0 + self._arriving(share_BL, kept_BL).log() / 2.0,
            larger_BL.cumsum(1) - larger_BL,
        ]
        fixed_BLI = self._fixed_LI.expand(count, -1, -1)
        return torch.cat([fixed_BLI, torch.stack(parts, -1)], -1).transpose(1, 2)

    def _arriving(self, share_BL: Tensor, kept_BL: Tensor) -> Tensor:
        """Return the channels that arrive, as a share of the teacher's: of the groups that a layer reads.

        Where the layer that emits a group is gone, what arrived there is read in its place. Layers that are not
        known to read any group read what the last layer left emits.
        """
        arriving_BL, channels_BL = torch.ones_like(share_BL), torch.ones_like(share_BL)
        last_B, before = torch.ones_like(share_BL[:, 0]), 1  # channels of the last layer left, and of the teacher's
        for index, (row, reads) in enumerate(zip(self.rows, self._reads_L, strict=True)):
            read = [
                torch.where(kept_BL[:, emits].amax(1) > 0, width * share_BL[:, emits[0]], channels_BL[:, emits[0]])
                for width, emits in reads
            ]
            channels_BL[:, index] = torch.stack(read).sum(0) if read else last_B
            arriving_BL[:, index] = channels_BL[:, index] / (sum(width for width, _ in reads) or before)
            if row.outputs and row.type != "block":
                before = row.outputs
                last_B = torch.where(kept_BL[:, index] > 0, share_BL[:, index] * before, last_B)
        return arriving_BL

    def sample(self, count: int, generator: torch.Generator) -> Int[Tensor, "b d"]:
        """Draw architectures of all sizes: each at a chance to keep units and a bias of widths of its own."""
        level_B3 = torch.rand(count, 3, generator=generator, dtype=torch.float64)
        keep_B = (_KEEP - level_B3[:, 0] * (2.0 * _KEEP)).sigmoid()
        low, high = SHRINKAGE_BIAS
        bias_B = low + level_B3[:, 1] * (high - low)
        most = self.legal_DK.shape[1]
        place_K = torch.linspace(-1.0, 1.0, most, dtype=torch.float64)
        weights_BDK = (bias_B[:, None] * place_K).exp()[:, None, :] * self.legal_DK
        for decision, (kind, _) in enumerate(self._values):
            if kind != "width":
                up_B = keep_B if kind == "unit" else level_B3[:, 2]
                last = int(self.last_D[decision])
                weights_BDK[:, decision] = 0.0
                weights_BDK[:, decision, :last] = ((1.0 - up_B) / last)[:, None]
                weights_BDK[:, decision, last] = up_B
        return self.canonical(self._drawn(weights_BDK, generator))

    def near(self, choices_BD: Int[Tensor, "b d"], changes: float, generator: torch.Generator) -> Int[Tensor, "b d"]:
        """Draw anew, of each architecture, every decision with a chance that changes so many in the mean."""
        chance = min(changes / max(choices_BD.shape[1], 1), 1.0)
        change_BD = torch.rand(choices_BD.shape, generator=generator, dtype=torch.float64) < chance
        weights_BDK = self.legal_DK.double().expand(len(choices_BD), -1, -1)
        return self.canonical(torch.where(change_BD, self._drawn(weights_BDK, generator), choices_BD))

    @staticmethod
    def _drawn(weights_BDK: Tensor, generator: torch.Generator) -> Tensor:
        uniform_BD1 = torch.rand((*weights_BDK.shape[:2], 1), generator=generator, dtype=torch.float64)
        sums_BDK = weights_BDK.cumsum(-1)
        # Strictly below the whole sum, so that no class of weight 0 is drawn at the end.
        chosen_BD = (uniform_BD1 * sums_BDK[..., -1:] >= sums_BDK).sum(-1)
        return chosen_BD.clamp_max(weights_BDK.shape[-1] - 1)
