"""A student's folder -> the formats that users take home."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from understudy.core.errors import ModelError
from understudy.core.files import read_text
from understudy.data import Data
from understudy.export.folder import Exported, export_student
from understudy.models.card import StudentCard
from understudy.models.student import load_student


def export_folder(
    student: str | Path,
    target: str | Path,
    formats: Sequence[str] = ("source", "onnx", "pt2"),
    *,
    data: Data | None = None,
    trust_code: bool = False,
    model: str | None = None,
) -> Exported:
    """Write the student of a folder in formats that need no tool of ours, each checked beside it.

    Args:
        student: folder of the student.
        target: folder to write to.
        formats: of "source", "onnx", "pt2", "int8" and "hf".
        data: whose images the formats are compared on, and int8 is calibrated on; without it, random ones.
        trust_code: as of `load_student`.
        model: likewise.

    Raises:
        ModelError: as `load_student`.
        ConfigError, ExtraError, ExportError: as `export_student`.
    """
    folder = Path(student)
    card = StudentCard.read(folder)
    loaded = load_student(folder, trust_code=trust_code, model=model)
    plan = read_text(folder / "architecture.json", ModelError)
    return export_student(target, loaded, card=card, architecture=plan, formats=formats, data=data)
