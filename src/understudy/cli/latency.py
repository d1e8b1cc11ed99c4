"""`understudy latency`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tyro

from understudy.cli.common import Command, Student, out
from understudy.cli.evaluate import student_folder

if TYPE_CHECKING:
    from understudy.cost.layers import Layer, Pair
    from understudy.jobs.speed import Speed


@dataclass(frozen=True, kw_only=True)
class Latency(Command):
    """Time a student beside its teacher, layer by layer, and say where fewer MACs do not mean less time.

    Examples:
      understudy latency runs/first --runtime onnxruntime --batch 1 8
    """

    student: Student
    """Folder of the student, or of the run that found it."""
    runtime: Literal["torch", "compile", "onnxruntime"] = "torch"
    """What runs them: PyTorch, torch.compile (the total only), or ONNX Runtime."""
    batch: tuple[int, ...] = (1,)
    """Sizes of the batch."""

    trust_code: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the Python file in the student's folder that makes its teacher; read it first."""
    model: str | None = None
    """FILE.py:FACTORY to run in its place."""

    def run(self, typed: Sequence[str]) -> int:
        """Print a table for each size of batch."""
        from understudy.core.errors import ConfigError
        from understudy.jobs.speed import speed

        if not self.batch or min(self.batch) < 1:
            raise ConfigError(f"batch must be sizes of at least 1, but got {self.batch}")
        folder = student_folder(self.student)
        found = speed(folder, runtime=self.runtime, batches=self.batch, trust_code=self.trust_code, model=self.model)
        for each in found:
            if each.layers:
                out.print(_table(each), soft_wrap=True, markup=False, highlight=False)
            size = "one image" if each.batch == 1 else f"{each.batch} images"
            out.print(
                f"{size}, {each.runtime}, {each.total.where}: teacher {each.total.first} ms, "
                f"student {each.total.second} ms, medians and quartiles",
                soft_wrap=True,
                markup=False,
            )
            out.print(each.sentence, soft_wrap=True, markup=False)
        return 0


def _table(found: Speed) -> str:
    """Return the layers as aligned lines: terminals are narrow, and a layer's path must not be cut."""
    rows = [("layer", "MACs", "after", "ms", "after", "")]
    for pair in found.layers:
        after = "removed" if pair.second is None else _time(pair.second)
        remark = _remark(pair, pair.reason(found.floor_ms))
        rows.append((pair.path, *_macs(pair.first, pair.second), _time(pair.first), after, remark))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = []
    for path, *numbers, remark in rows:
        cells = [text.rjust(width) for text, width in zip(numbers, widths[1:5], strict=True)]
        lines.append("  ".join([path.ljust(widths[0]), *cells, remark]).rstrip())
    return "\n".join(lines)


def _remark(pair: Pair, reason: str) -> str:
    return f"{pair.faster:.2g}x, not {pair.fewer:.2g}x: {reason}" if reason else ""


def _macs(first: Layer, second: Layer | None) -> tuple[str, str]:
    from understudy.core.figures import amount

    return amount(first.macs), "-" if second is None else amount(second.macs)


def _time(layer: Layer) -> str:
    return "-" if layer.time is None else f"{layer.time.median:.3f} +-{layer.time.spread / 2:.3f}"
