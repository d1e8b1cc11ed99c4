"""`understudy export` and `understudy verify`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from understudy.cli.common import Command, Folder, Student, next_step, open_data, opened, out
from understudy.cli.evaluate import student_folder


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write a student as plain PyTorch, ONNX and torch.export, each checked beside it.

    Examples:
      understudy export runs/first --data photos/
      understudy export runs/first --to onnx,int8 --data photos/ --out app/model
      understudy export runs/texts --to hf --trust-code
    """

    student: Student
    """Folder of the student, or of the run that found it."""
    to: str = "source,onnx,pt2"
    """Formats, with commas: source (model.py), onnx, pt2 (torch.export), int8 (ONNX in 8 bits, which needs
    --data), hf (what `from_pretrained` of transformers reads)."""
    out: Path | None = None
    """Folder to write to. Default: `export` in the student's folder."""
    data: str | None = None
    """A folder of images, FILE.npz, torchvision:NAME or digits, to compare the formats on. Default: random images."""
    size: int | None = None
    """Resize the images of a folder to this height and width, in pixels. Default: what the student takes."""
    grey: bool | None = None
    """Read the images of a folder as greyscale. Default: what the student takes."""

    trust_code: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the Python file in the student's folder that makes its teacher; read it first."""
    model: str | None = None
    """FILE.py:FACTORY to run in its place."""

    def run(self, typed: Sequence[str]) -> int:
        """Write the folder and print how far each format is from the student."""
        from understudy.export.modelcard import int8_line
        from understudy.jobs.export import export_folder
        from understudy.models.card import StudentCard

        folder = student_folder(self.student)
        card = StudentCard.read(folder)
        data = None if self.data is None else open_data(opened(self.data, self.size, self.grey, card.input))
        target = folder / "export" if self.out is None else self.out
        formats = [name.strip() for name in self.to.split(",")]
        found = export_folder(folder, target, formats, data=data, trust_code=self.trust_code, model=self.model)
        for name, parity in found.parity.items():
            out.print(f"{name}: {parity}", soft_wrap=True, markup=False)
        for name, reason in found.skipped.items():
            out.print(f"{name} was not written: {reason}", soft_wrap=True, markup=False)
        if found.int8 is not None:
            out.print(int8_line(found.int8), soft_wrap=True, markup=False)
        next_step("verify", str(target))
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify(Command):
    """Check an exported student by itself, on any machine: no file has changed, each format gives what it should.

    Examples:
      understudy verify runs/first/student/export
    """

    folder: Folder
    """Folder that `understudy export` wrote."""
    trust_code: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run model.py as well, which is Python code; read it first."""

    def run(self, typed: Sequence[str]) -> int:
        """Print what was found."""
        from understudy.export.certificate import verify

        found = verify(self.folder, trust_code=self.trust_code)
        out.print(f"{self.folder}: {found.files} files are as they were written", soft_wrap=True, markup=False)
        for name, parity in found.parity.items():
            out.print(f"{name}: {parity}", soft_wrap=True, markup=False)
        for name, reason in found.not_run.items():
            out.print(f"{name} was not run: {reason}", soft_wrap=True, markup=False)
        return 0
