"""`certificate.json`: that all formats of a student compute the same, and that no file has changed since.

`check.safetensors` beside it holds inputs at three batch sizes and what the student gave for them, so that the folder
can be checked anywhere.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from understudy.core.errors import ExportError, ExtraError, ModelError
from understudy.core.files import check_format, read_json, read_text, write_whole
from understudy.export.onnx import OnnxModel
from understudy.export.pt2 import read_pt2
from understudy.export.source import Source
from understudy.models.weights import read_weights
from understudy.surgery.masked import tensors_of

FORMAT = 1
CERTIFICATE, CHECK = "certificate.json", "check.safetensors"
DESCRIBED = ("input.json", "architecture.json", "README.md")
BATCHES = (1, 2, 5)
FILES: dict[str, tuple[str, ...]] = {
    "source": ("model.py", "model.safetensors"),
    "onnx": ("model.onnx",),
    "pt2": ("model.pt2",),
    "int8": ("model.int8.onnx",),
}
# All that an export may write; other files in the folder are the user's.
WRITTEN = (*(name for names in FILES.values() for name in names), *DESCRIBED, CHECK, CERTIFICATE)
# Largest difference in proportion to the largest output. Source code is exact where it was written, and as close
# as other kernels are on other processors; what 8 bits cost is said, not judged.
TOLERANCE: dict[str, float | None] = {"source": 0.0, "onnx": 1e-4, "pt2": 1e-4, "int8": None}
_ELSEWHERE = 1e-4
_PACKAGES = ("torch", "numpy", "safetensors", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a format is from the student."""

    absolute: float  # largest difference of an output
    relative: float  # that, in proportion to the largest output
    agreement: float | None  # share of examples with the same prediction; None where there are no classes
    examples: int

    def __str__(self) -> str:
        """Return it as one line."""
        same = "" if self.agreement is None else f", {self.agreement:.2%} of {self.examples:,} predictions the same"
        if self.absolute == 0.0:
            return f"equal to the student bit for bit{same}"
        return f"within {self.absolute:.2g} of the student's outputs, {self.relative:.2g} of the largest{same}"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found: the formats that were run, and why others were not."""

    parity: dict[str, Parity]
    not_run: dict[str, str]
    files: int


def outputs_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the tensors that a network gives for images (B, c, h, w)."""
    with torch.no_grad():
        return list(tensors_of(model(images)))


def parity(
    model: nn.Module,
    expected: Sequence[tuple[Tensor, Sequence[Tensor]]],
    examples: Iterable[tuple[Tensor, Tensor]] = (),
) -> Parity:
    """Compare a format with what the student gave.

    Args:
        model: the format.
        expected: batches of images, each with the student's outputs.
        examples: more batches, each with the student's first output: predictions are compared on them as well.
    """
    absolute, scale, same, count, classes = 0.0, 0.0, 0, 0, True
    for images, outputs in expected:
        found = outputs_of(model, images)
        if [t.shape for t in found] != [t.shape for t in outputs]:
            raise ExportError(
                f"a format must give what the student gives, {[tuple(t.shape) for t in outputs]}, but gives "
                f"{[tuple(t.shape) for t in found]}"
            )
        for mine, other in zip(found, outputs, strict=True):
            absolute = max(absolute, float((mine.double() - other.double()).abs().max()))
            scale = max(scale, float(other.abs().max()))
    firsts = [(images, outputs[0]) for images, outputs in expected]
    for images, wanted in (*firsts, *examples):
        if wanted.dim() != 2:
            classes = False
            break
        same += int((outputs_of(model, images)[0].argmax(1) == wanted.argmax(1)).sum())
        count += len(images)
    relative = absolute / scale if scale else absolute
    return Parity(
        absolute=absolute, relative=relative, agreement=same / count if classes and count else None, examples=count
    )


def check_tolerance(name: str, found: Parity, most: float | None) -> None:
    """Refuse a format that is too far from the student.

    Raises:
        ExportError: it is, or gives what is no number.
    """
    if most is not None and not found.relative <= most:
        raise ExportError(
            f"{' and '.join(FILES[name])} must give the student's outputs within {most:g} of the largest, but the "
            f"difference is {found.relative:.2g}"
        )


def write_certificate(
    folder: Path, expected: Sequence[tuple[Tensor, Sequence[Tensor]]], content: Mapping[str, Any]
) -> None:
    """Write the inputs and outputs to check with, and the certificate with the hash of every other file."""
    tensors: dict[str, Tensor] = {}
    for images, outputs in expected:
        tensors[f"images.{len(images)}"] = images.contiguous()
        tensors |= {f"outputs.{len(images)}.{i}": t.contiguous().clone() for i, t in enumerate(outputs)}
    write_whole(folder / CHECK, to_safetensors(tensors))
    names = [name for name in sorted(WRITTEN) if name != CERTIFICATE and (folder / name).is_file()]
    certificate = {
        "format": FORMAT,
        **content,
        "batches": [len(images) for images, _ in expected],
        "versions": versions(),
        "files": {name: _digest(folder / name) for name in names},
    }
    write_whole(folder / CERTIFICATE, json.dumps(certificate, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that had a part in it."""
    found = {"python": platform.python_version()}
    for package in ("understudy", *_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def verify(folder: str | Path, *, trust_code: bool = False) -> Verification:
    """Check a student's folder by itself: that no file has changed, and that what can be run gives what it should.

    Args:
        folder: what `Result.export` or `understudy export` left, on any machine.
        trust_code: run model.py as well, which is Python code.

    Raises:
        ExportError: the folder is none, a file is missing or has changed, or a format gives something else.
    """
    folder = Path(folder)
    certificate = _certificate(folder)
    trouble = [_trouble(folder, name, digest) for name, digest in certificate["files"].items()]
    found = [text for text in trouble if text]
    if found:
        raise ExportError(f"{folder} must be as its certificate says, but {', '.join(found)}")
    expected = _expected(folder, certificate)
    run: dict[str, Parity] = {}
    not_run: dict[str, str] = dict(certificate["skipped"])
    for name in certificate["formats"]:
        if name == "source" and not trust_code:
            not_run[name] = "model.py is code, which is run only where that is allowed: --trust-code"
            continue
        try:
            run[name] = parity(_opened(folder, name), expected)
        except ExtraError as error:
            not_run[name] = str(error)
            continue
        check_tolerance(name, run[name], None if TOLERANCE[name] is None else _ELSEWHERE)
    return Verification(parity=run, not_run=not_run, files=len(certificate["files"]))


def _certificate(folder: Path) -> dict[str, Any]:
    if not (folder / CERTIFICATE).is_file():
        raise ExportError(
            f"a folder to verify must be one that `understudy export` wrote, but {folder} has no {CERTIFICATE}"
        )
    found = read_json(folder / CERTIFICATE, ExportError)
    check_format(found.get("format"), FORMAT, what=f"the certificate in {folder}", error=ExportError)
    lacking = [name for name in ("formats", "files", "batches", "skipped") if name not in found]
    unknown = [name for name in found.get("formats", ()) if name not in FILES]
    outside = [name for name in found.get("files", ()) if Path(name).name != name]
    if lacking or unknown or outside:
        raise ExportError(f"{folder / CERTIFICATE} is damaged: {', '.join([*lacking, *unknown, *outside])}")
    return found


def _trouble(folder: Path, name: str, digest: str) -> str:
    if not (folder / name).is_file():
        return f"{name} is missing"
    return "" if _digest(folder / name) == digest else f"{name} has changed"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _expected(folder: Path, certificate: Mapping[str, Any]) -> list[tuple[Tensor, list[Tensor]]]:
    tensors = read_weights(folder / CHECK)
    found = []
    for batch in certificate["batches"]:
        outputs = [tensors[name] for name in sorted(tensors) if name.startswith(f"outputs.{batch}.")]
        if f"images.{batch}" not in tensors or not outputs:
            raise ExportError(f"{folder / CHECK} must have inputs and outputs of {batch} images, but has none")
        found.append((tensors[f"images.{batch}"], outputs))
    return found


def _opened(folder: Path, name: str) -> nn.Module:
    if name == "pt2":
        return read_pt2(folder / "model.pt2")
    if name == "source":
        text = read_text(folder / "model.py", ExportError)
        try:
            return Source(name=class_in(text), text=text, tensors=read_weights(folder / "model.safetensors")).build()
        except (ModelError, RuntimeError, KeyError, SyntaxError) as error:
            raise ExportError(f"{folder / 'model.py'} must make the student, but does not: {error}") from error
    return OnnxModel(folder / FILES[name][0])


def class_in(text: str) -> str:
    """Return the name of the student's class in model.py: the last one."""
    names = [line.split("(")[0].removeprefix("class ") for line in text.splitlines() if line.startswith("class ")]
    if not names:
        raise ExportError("model.py must have a class, but has none")
    return names[-1]


def to_json(found: Parity) -> dict[str, Any]:
    """Return it for a JSON file."""
    return asdict(found)
