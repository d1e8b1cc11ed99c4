"""Images that only one of both networks gets right, for the page. No torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from understudy.core.figures import share
from understudy.runs.predictions import Numbers, Predictions


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image and what both networks say of it."""

    source: str  # PNG, as a data URI
    label: str
    teacher: str
    student: str


def pictures(found: Predictions, places: Numbers) -> list[Picture]:
    """Return the pictures of those examples, as far as the run has kept them."""
    return list(_pictures(found, places))


def _pictures(found: Predictions, places: Numbers) -> Iterator[Picture]:
    kept = {place: number for number, place in enumerate(found.shown.tolist())}
    names = (*found.classes, "(none)")  # -1 is the last one
    for place in places.tolist():
        if place in kept:
            pixels, buffer = found.pictures[kept[place]], io.BytesIO()
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
            yield Picture(
                source=f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}",
                label=names[found.labels[place]],
                teacher=f"{names[found.teacher[place]]} ({share(float(found.teacher_confidence[place]))})",
                student=f"{names[found.student[place]]} ({share(float(found.student_confidence[place]))})",
            )
