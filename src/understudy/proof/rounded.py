"""The masked teacher, rounded otherwise: how far do its values move by that alone?

Where a network takes from a channel what is equal to it (the mean over channels of which one is left) and a norm
follows, all that is left is rounding, blown up to any size, in the teacher as in the student. So the masked teacher
runs again with the result of each operation off by a few units in the last place, as in Monte Carlo arithmetic (Parker
1997, "Monte Carlo Arithmetic"): what moves as far as a student differs says nothing of the student.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from understudy.core.architecture import Architecture
from understudy.graph.analysis import Analysis
from understudy.graph.fake import map_structure
from understudy.surgery.masked import Masked, tensors_of

_UNITS = 4  # in the last place


class Rounded(Masked):
    """A masked teacher whose every new result is multiplied by a number next to 1; zeros stay zero.

    Args:
        analysis, architecture, graph: as of `Masked`.
        generator: of these numbers.
    """

    def __init__(
        self, analysis: Analysis, architecture: Architecture, *, graph: fx.Graph | None, generator: torch.Generator
    ) -> None:
        super().__init__(analysis, architecture, graph=graph, record=True)
        self._generator = generator
        self._held = {_place(t) for t in (*self.module.parameters(), *self.module.buffers())}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and move what it computes; what is only another view of something is left alone."""
        value = super().run_node(n)
        if not n.op.startswith("call_"):
            return value
        read = (self.env[m] for m in n.all_input_nodes if m in self.env)
        old = self._held | {_place(t) for t in tensors_of(list(read))}

        def moved(part: Any) -> Any:
            if not isinstance(part, Tensor) or not part.is_floating_point() or _place(part) in old:
                return part
            noise = torch.randn(part.shape, generator=self._generator, dtype=part.dtype)
            return part * (1 + _UNITS * torch.finfo(part.dtype).eps * noise)

        return map_structure(value, moved)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
