"""The teacher's outputs, such as logits, computed once."""

from __future__ import annotations

import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from understudy.core.files import write_whole
from understudy.data import AnySplit, Views
from understudy.training.aim import CLASSES, Aim
from understudy.training.loop import Compute, Normalise, OnPart, predict

_SUM = 4  # bytes of the checksum at the end of a file


@dataclass(frozen=True, kw_only=True, eq=False)
class TeacherLogits:
    """The teacher's outputs on every epoch's views of a split: computed once, kept in files.

    Any process may compute what is missing: a file is whole or not there, and always the same.
    """

    teacher: nn.Module  # on the compute's device
    split: AnySplit
    views: Views
    normalise: Normalise
    compute: Compute
    folder: Path
    key: str  # digest of all that decides them
    aim: Aim = CLASSES
    exact: bool = False  # kept in float32, to score by

    def epoch(self, number: int) -> Float[Tensor, "n k"]:
        """Return the outputs (n, k) of one epoch by example, memory-mapped; see `Aim`.

        They are float16, which rounds by 1 part in 2000 at most; where one of the epoch is beyond its range, float32.
        """
        path = self._file(number)
        if not _intact(path):
            self._compute(number, path)
        # Copy on write, because torch has no read-only tensors; nothing writes.
        return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))

    def prepare(self, epochs: int, *, on_part: OnPart = lambda done: None) -> None:
        """Compute the logits of so many epochs where they are missing; `on_part` hears of every batch."""
        for number in range(epochs):
            if not _intact(self._file(number)):
                self._compute(number, self._file(number), on_part)
            on_part(number + 1)

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.key}-{self.views.look(number)}.npy"

    def _compute(self, number: int, path: Path, on_part: OnPart = lambda done: None) -> None:
        def told(part: float) -> None:
            on_part(number + part)

        epoch = self.views.epoch(number)
        logits = predict(
            self.teacher,
            self.split,
            normalise=self.normalise,
            compute=self.compute,
            aim=self.aim,
            epoch=epoch,
            on_part=told,
        )
        short, content = logits.half(), io.BytesIO()
        # Beyond 65504 a float16 is infinite, and so would be the loss.
        kept = short if not self.exact and bool(short.isfinite().all()) else logits
        np.save(content, kept.cpu().numpy())
        content.write(zlib.crc32(content.getbuffer()).to_bytes(_SUM, "little"))
        write_whole(path, content.getbuffer())


def _intact(path: Path) -> bool:
    """Say whether the file is there, and is what its checksum was taken of."""
    found, left = 0, 0
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - _SUM
            while left > 0:
                part = file.read(min(left, 1 << 20))
                found, left = zlib.crc32(part, found), left - len(part)
            return left == 0 and file.read() == found.to_bytes(_SUM, "little")
    except FileNotFoundError:
        return False
