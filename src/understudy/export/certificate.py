"""`certificate.json`: that all formats of a student compute the same, and that no file has changed since.

`check.safetensors` beside it holds inputs at three batch sizes and what the student gave for them, so that the folder
can be checked anywhere.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from understudy.core.errors import ExportError, ExtraError, ModelError
from understudy.core.files import check_format, read_json, read_text, understood, write_json, write_whole
from understudy.export.hugging_face import read_pretrained
from understudy.export.interface import Interface, filled, named, outputs_of
from understudy.export.onnx import OnnxModel
from understudy.export.pt2 import read_pt2
from understudy.export.source import Source
from understudy.models.weights import read_weights

FORMAT = 2
CERTIFICATE, CHECK = "certificate.json", "check.safetensors"
DESCRIBED = ("input.json", "architecture.json", "README.md")
BATCHES = (1, 2, 5)
FILES: dict[str, tuple[str, ...]] = {
    "source": ("model.py", "model.safetensors"),
    "onnx": ("model.onnx",),
    "pt2": ("model.pt2",),
    "int8": ("model.int8.onnx",),
    "hf": ("hf/config.json", "hf/model.safetensors", "hf/model.py"),  # the last one where a configuration cannot say it
}
# All that an export may write; other files in the folder are the user's.
WRITTEN = (*(name for names in FILES.values() for name in names), *DESCRIBED, CHECK, CERTIFICATE)
# Largest difference in proportion to the largest output. Source code is exact where it was written, and as close
# as other kernels are on other processors; what 8 bits cost is said, not judged.
TOLERANCE: dict[str, float | None] = {"source": 0.0, "onnx": 1e-4, "pt2": 1e-4, "int8": None, "hf": 1e-5}
_ELSEWHERE = 1e-4
_ALWAYS = ("formats", "files", "batches", "skipped")
_PACKAGES = ("torch", "numpy", "safetensors", "onnx", "onnxscript", "onnxruntime", "transformers")

Expected = tuple[Any, Sequence[Tensor]]
"""Inputs and what the student gave for them."""


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


def parity(
    model: nn.Module,
    expected: Sequence[Expected],
    examples: Iterable[tuple[Any, Tensor]] = (),
    *,
    predicted: Callable[[list[Tensor]], Tensor | None] = lambda outputs: None,
) -> Parity:
    """Compare a format with what the student gave.

    Args:
        model: the format.
        expected: inputs, each with the student's outputs.
        examples: more inputs, each with what the student predicts: predictions are compared on them as well.
        predicted: the classes that outputs stand for, None where they are none.
    """
    apart, scale, same, count = [0.0], 0.0, 0, 0
    for inputs, outputs in expected:
        found = outputs_of(model, inputs)
        if [t.shape for t in found] != [t.shape for t in outputs]:
            raise ExportError(
                f"a format must give what the student gives, {[tuple(t.shape) for t in outputs]}, but gives "
                f"{[tuple(t.shape) for t in found]}"
            )
        for mine, other in zip(found, outputs, strict=True):
            apart.append(_difference(mine.double(), other.double()))
            scale = max(scale, float(other.double().nan_to_num(0.0, 0.0, 0.0).abs().max()))
    firsts = ((inputs, predicted(list(outputs))) for inputs, outputs in expected)
    for inputs, wanted in (*firsts, *examples):
        if wanted is not None:
            found_too = predicted(outputs_of(model, inputs))
            assert found_too is not None, "outputs have the shapes of the student's"
            same, count = same + int(found_too.eq(wanted).sum()), count + wanted.numel()
    absolute = float(torch.tensor(apart, dtype=torch.float64).max())  # Python's `max` passes over what is no number
    relative = absolute / scale if scale else absolute
    return Parity(absolute=absolute, relative=relative, agreement=same / count if count else None, examples=count)


def _difference(mine: Tensor, other: Tensor) -> float:
    """Return the largest difference; no finite one where only one of both is infinite or no number."""
    alike = (mine == other) | (mine.isnan() & other.isnan())
    return float((mine - other).abs().masked_fill(alike, 0.0).max())


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


def write_certificate(folder: Path, expected: Sequence[Expected], content: Mapping[str, Any]) -> None:
    """Write the inputs and outputs to check with, and the certificate with the hash of every other file."""
    tensors: dict[str, Tensor] = {}
    for count, (inputs, outputs) in zip(BATCHES, expected, strict=True):
        tensors |= named(inputs, f"inputs.{count}")
        tensors |= {f"outputs.{count}.{i}": t.contiguous().clone() for i, t in enumerate(outputs)}
    write_whole(folder / CHECK, to_safetensors(tensors))
    names = [name for name in sorted(WRITTEN) if name != CERTIFICATE and (folder / name).is_file()]
    certificate = {
        "format": FORMAT,
        **content,
        "batches": list(BATCHES),
        "versions": versions(),
        "files": {name: _digest(folder / name) for name in names},
    }
    write_json(folder / CERTIFICATE, certificate)


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
        if not trust_code and (name == "source" or (name == "hf" and (folder / "hf" / "model.py").is_file())):
            not_run[name] = "model.py is code, which is run only where that is allowed: --trust-code"
            continue
        try:
            run[name] = parity(_opened(folder, name), expected, predicted=_predicted(certificate))
        except ExtraError as error:
            not_run[name] = str(error)
            continue
        check_tolerance(name, run[name], None if TOLERANCE[name] is None else _ELSEWHERE)
    return Verification(parity=run, not_run=not_run, files=len(certificate["files"]))


def _certificate(folder: Path) -> dict[str, Any]:
    if not (folder / CERTIFICATE).is_file():
        inside = [f for f in (folder / "export", folder / "student" / "export") if (f / CERTIFICATE).is_file()]
        meant = f": {inside[0]} is one" if inside else ""
        raise ExportError(
            f"a folder to verify must be one that `understudy export` wrote, but {folder} has no {CERTIFICATE}{meant}"
        )
    found = read_json(folder / CERTIFICATE, ExportError)
    check_format(found.get("format"), FORMAT, what=f"the certificate in {folder}", error=ExportError)
    lacking = [name for name in _ALWAYS if name not in found]
    unknown = [name for name in found.get("formats", ()) if name not in FILES]
    outside = [name for name in found.get("files", ()) if name not in WRITTEN]
    if lacking or unknown or outside:
        raise ExportError(f"{folder / CERTIFICATE} is damaged: {', '.join([*lacking, *unknown, *outside])}")
    return found


def _trouble(folder: Path, name: str, digest: str) -> str:
    if not (folder / name).is_file():
        return f"{name} is missing"
    return "" if _digest(folder / name) == digest else f"{name} has changed"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _expected(folder: Path, certificate: Mapping[str, Any]) -> list[Expected]:
    tensors = read_weights(folder / CHECK)
    found: list[Expected] = []
    for batch in certificate["batches"]:
        outputs = [tensors[f"outputs.{batch}.{i}"] for i in range(len(tensors)) if f"outputs.{batch}.{i}" in tensors]
        if not outputs:
            raise ExportError(f"{folder / CHECK} must have outputs for {batch} examples, but has none")
        with understood(folder / CERTIFICATE, ExportError):
            first_format = "input" not in certificate  # one tensor of images
            inputs = (
                tensors[f"images.{batch}"] if first_format else filled(certificate["input"], tensors, f"inputs.{batch}")
            )
        found.append((inputs, outputs))
    return found


def _predicted(certificate: Mapping[str, Any]) -> Callable[[list[Tensor]], Tensor | None]:
    place = certificate.get("classes_in", 1)
    return Interface(classes_in=place if isinstance(place, int) else None).predicted


def _opened(folder: Path, name: str) -> nn.Module:
    if name == "pt2":
        return read_pt2(folder / "model.pt2")
    if name == "hf" and not (folder / "hf" / "model.py").is_file():
        return read_pretrained(folder / "hf")
    if name in ("source", "hf"):
        folder = folder / "hf" if name == "hf" else folder
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
