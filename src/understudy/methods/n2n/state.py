"""The state of N2N's policies (Ashok et al., ICLR 2018, section 3.1): a network as a sequence of rows.

Shapes: L = rows, I = columns of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from understudy.core.architecture import Architecture, Layer, Space
from understudy.methods.n2n.rules import Rules
from understudy.methods.proposals import offered_units

TYPES = ("block", "conv", "linear", "norm", "activation", "pool", "other")


def teacher_rows(space: Space, granularity: str) -> tuple[list[Layer], list[tuple[int, str]]]:
    """Return the rows of stage 1 and, for each unit that may go, the row where that is decided.

    Rows are the teacher's layers in order and, before its first layer, each block that may go (`Unit.is_block`). Other
    units are decided at their first layer.
    """
    rows: list[Layer] = []
    decided: list[tuple[int, str]] = []
    units = sorted(offered_units(space, granularity), key=lambda unit: -len(unit.layers))
    for layer in space.layers:
        here = [unit for unit in units if unit.layers[0] == layer.name]
        for block in (unit for unit in here if unit.is_block):
            outputs = [space.layer(name).outputs for name in block.layers if space.layer(name).outputs]
            decided.append((len(rows), block.name))
            rows.append(Layer(name=block.name, type="block", outputs=outputs[-1] if outputs else 0))
        decided += [(len(rows), unit.name) for unit in here if not unit.is_block]
        rows.append(layer)
    return rows, decided


def rows_of(architecture: Architecture) -> list[Layer]:
    """Return the layers that an architecture keeps, with the sizes and skips that they have in it."""
    space = architecture.space
    gone = {layer for unit in architecture.removed for layer in space.unit(unit).layers}
    kept = [layer.name not in gone for layer in space.layers]

    def now(index: int, layer: Layer) -> Layer:
        kernel = architecture.kernel(layer.name)
        return replace(
            layer,
            kernel=kernel,
            padding=max(layer.padding - (layer.kernel - kernel) // 2, 0),
            outputs=architecture.width(layer.group) if layer.group and layer.outputs else layer.outputs,
            skip_start=sum(kept[index - layer.skip_start : index]),
            skip_end=sum(kept[index + 1 : index + 1 + layer.skip_end]),
        )

    return [now(index, layer) for index, layer in enumerate(space.layers) if kept[index]]


def encode(rows: Sequence[Layer], rules: Rules) -> Float[Tensor, "l i"]:
    """Return the state of a network: type (one-hot), the six numbers, and where in the network the row stands.

    Scaled numbers lie in 0..1 and mean the same for every teacher. The place is given by the first
    harmonics of depth, as many for any number of layers. So a policy can be carried to another teacher.
    """
    columns = []
    for index, layer in enumerate(rows):
        sizes = [layer.kernel, layer.stride, layer.padding, layer.skip_start, layer.skip_end]
        outputs = math.log2(1 + layer.outputs) / 12.0 if rules.scaled else float(layer.outputs)
        numbers = [size / (size + 4.0) if rules.scaled else float(size) for size in sizes]
        depth = math.pi * (index + 0.5) / len(rows)
        place = [math.cos(depth * harmonic) for harmonic in range(1, rules.harmonics + 1)]
        columns.append([*(float(layer.type == known) for known in TYPES), *numbers, outputs, *place])
    return torch.tensor(columns, dtype=torch.float64)
