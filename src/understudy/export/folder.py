"""The folder that a user takes home: a student in several formats, what goes in, and a certificate.

model.py, model.safetensors   plain PyTorch and its weights      model.onnx        for any batch size
model.pt2                     a program of torch.export          model.int8.onnx   8 bits, of model.onnx
input.json                    what goes in, and the classes      architecture.json what was kept of the teacher
README.md                     a model card                       certificate.json  see `certificate`
hf/                           what `from_pretrained` reads, for models of Hugging Face
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from understudy.core.caller import as_usual, outside_inference
from understudy.core.errors import ConfigError, ExportError, did_you_mean
from understudy.core.extras import optional
from understudy.core.files import one_writer, path_of, remove, write_whole
from understudy.core.nested import called, mapped
from understudy.core.timing import Comparison
from understudy.cost.measure import compare
from understudy.data import AnySplit, Data
from understudy.data.data import first_images
from understudy.export.certificate import (
    BATCHES,
    CERTIFICATE,
    FILES,
    TOLERANCE,
    WRITTEN,
    Parity,
    check_tolerance,
    parity,
    to_json,
    write_certificate,
)
from understudy.export.hugging_face import config_text, is_pretrained, write_pretrained
from understudy.export.int8 import calibration
from understudy.export.interface import Interface, drawn, fits, giving_plainly, outputs_of, told
from understudy.export.modelcard import readme
from understudy.export.onnx import OnnxModel, quantise, write_onnx
from understudy.export.pt2 import program_of, read_pt2, write_pt2
from understudy.export.source import Source, source_of
from understudy.graph.copies import copied
from understudy.models.card import StudentCard
from understudy.models.inputs import inputs_spec

FORMATS = tuple(FILES)
_UNFINISHED = ".export"  # is there while an export is being written, and after one that was killed
_MOST_EXAMPLES = 2000  # whose predictions are compared
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    folder: Path
    parity: dict[str, Parity]  # by format
    skipped: dict[str, str]  # why a format is not there
    int8: dict[str, Any] | None  # accuracy, megabytes and latency of int8 beside float


@outside_inference
@as_usual
def export_student(
    folder: str | Path,
    student: nn.Module,
    *,
    card: StudentCard,
    architecture: str,
    formats: Sequence[str] = ("source", "onnx", "pt2"),
    data: Data | None = None,
) -> Exported:
    """Write a student in several formats, each checked beside it.

    Args:
        folder: where to, a folder of its own; what an earlier export left there goes.
        student: float32, on the CPU; it is not touched.
        card: as model.json has it.
        architecture: JSON.
        formats: of source, onnx, pt2, int8 and hf.
        data: whose inputs are what the formats are compared on; without it, random ones. int8 needs it.

    Raises:
        ConfigError: a format is unknown, or int8 is asked for without data.
        ExtraError: a package that a format needs is missing; nothing is written.
        ExportError: the folder holds files of something else that would be replaced, or is being written by another
            export; no format can be written, or one gives other outputs than the student.
    """
    formats = (formats,) if isinstance(formats, str) else formats
    _check(formats, data)
    folder = path_of(folder, "the folder of an export", ExportError)
    _refuse_what_is_of_others(folder, architecture)
    fitted = None if data is None else _fitted(data, card)
    job = _Job(folder, copied(student).eval(), card, fitted)
    described = _input(card, job)
    with one_writer(folder, "an export", ExportError):
        _clear(folder)
        for name in [name for name in FORMATS if name in formats]:
            job.write(name)
        if not job.parity:
            raise ExportError("; ".join(job.skipped.values()))
        content = job.described()
        write_whole(folder / "input.json", json.dumps(described, indent=1) + "\n")
        write_whole(folder / "architecture.json", architecture)
        write_whole(folder / "README.md", readme(card, content, job.source, job.interface))
        write_certificate(folder, job.expected, content)
        remove(folder / _UNFINISHED)
    return Exported(folder=folder, parity=job.parity, skipped=job.skipped, int8=job.int8)


def _check(formats: Sequence[str], data: Data | None) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        first = unknown[0] if unknown else ""
        raise ConfigError(
            f"a format must be one of {', '.join(FORMATS)}, but got {first!r}{did_you_mean(first, FORMATS)}"
        )
    if "int8" in formats and data is None:
        raise ConfigError("int8 must be calibrated on training images, but no data were given: --data")
    if "hf" in formats:
        optional("transformers", extra="hf")
    if {"onnx", "int8"} & set(formats):
        for package in ("onnx", "onnxscript", "onnxruntime"):
            optional(package, extra="export")


def _refuse_what_is_of_others(folder: Path, architecture: str) -> None:
    """Refuse a folder with files that no export left, such as the model.py of a project, which this one would replace.

    The very student may have been saved there.

    Raises:
        ExportError: it is one; nothing was changed.
    """
    if any((folder / name).is_file() for name in (CERTIFICATE, _UNFINISHED)):
        return
    found = [name for name in WRITTEN if (folder / name).exists()]
    saved = folder / "architecture.json"
    own = {saved.name} if saved.is_file() and saved.read_bytes() == architecture.encode() else set()
    if others := [name for name in found if name not in own]:
        raise ExportError(
            f"an export must go into a folder of its own, but {folder} holds {', '.join(others[:3])} that no export "
            "has left, and would lose it: give another folder (--out FOLDER)"
        )


def _clear(folder: Path) -> None:
    """Remove what an earlier export left, so that nothing of it stands beside a part of this one."""
    write_whole(folder / _UNFINISHED, "")
    for name in WRITTEN:
        remove(folder / name)
    with suppress(OSError):  # files of the user's own are in it
        (folder / "hf").rmdir()


def _fitted(data: Data, card: StudentCard) -> Data:
    if card.mean and tuple(data.shape) != card.input:
        raise ConfigError(f"data must be images of {card.input}, but these are {data.shape}: --size, --grey")
    own = data.with_normalisation(card.mean, card.std) if card.mean and data.train.dtype == torch.uint8 else data
    own = own.to("cpu")  # where formats are compared
    one = first_images(own, own.val, 1)
    if not fits(one, card.input):
        raise ConfigError(f"data must hold what the student takes, {card.input}, but hold {inputs_spec(one)}")
    return own


def _input(card: StudentCard, job: _Job) -> dict[str, Any]:
    if not card.mean:
        return {**told(job.interface, *job.expected[0]), "classes": card.classes}
    return {
        "shape": ["batch", *card.input],
        "layout": "NCHW",
        "dtype": "float32",
        "range": [0.0, 1.0],
        "mean": card.mean,
        "std": card.std,
        "normalise": "(image - mean) / std for each channel, of pixels divided by 255",
        "classes": card.classes,
    }


class _Job:
    """One export, format by format."""

    def __init__(self, folder: Path, student: nn.Module, card: StudentCard, data: Data | None) -> None:
        self.folder, self.student, self.card, self.data = folder, student, card, data
        self.parity: dict[str, Parity] = {}
        self.skipped: dict[str, str] = {}
        self.source: Source | None = None
        self.pretrained, self.unsaid = "", ""  # class of the Hugging Face model, and why a configuration cannot say it
        self.int8: dict[str, Any] | None = None
        inputs = self._inputs(sum(BATCHES))
        batches = [
            mapped(inputs, itemgetter(slice(sum(BATCHES[:i]), sum(BATCHES[: i + 1])))) for i in range(len(BATCHES))
        ]
        self.expected = [(batch, outputs_of(student, batch)) for batch in batches]
        example = batches[1]
        with torch.no_grad():
            given = called(student, example)
        images, objective = bool(card.mean), card.objective
        self.interface = Interface.between(example, given, images=images, objective=objective)
        self.plain = giving_plainly(student, given)
        self._program: torch.export.ExportedProgram | None = None

    def write(self, name: str) -> None:
        """Write one format and compare it with the student; one that cannot be written is skipped with the reason.

        Raises:
            ExportError: it gives something else than the student.
        """
        try:
            model = {"source": self._source, "onnx": self._onnx, "pt2": self._pt2, "int8": self._int8, "hf": self._hf}[
                name
            ]()
        except ExportError as error:
            self.skipped[name] = str(error)
            return
        found = parity(model, self.expected, self._predicted(), predicted=self.interface.predicted)
        check_tolerance(name, found, TOLERANCE[name])
        self.parity[name] = found

    def described(self) -> dict[str, Any]:
        """Return what the certificate says besides hashes and versions."""
        what = "images" if self.card.mean else "examples"
        split = "random" if self.data is None else f"{self._split_name} {what} of {self.card.data_source}"
        return {
            "inputs": split,
            "input": self.card.input,
            "classes_in": self.interface.classes_in,
            "formats": {name: {**to_json(p), "tolerance": TOLERANCE[name]} for name, p in self.parity.items()},
            "skipped": self.skipped,
            "int8": self.int8,
            "hf": {"class": self.pretrained, "no_configuration": self.unsaid} if "hf" in self.parity else None,
        }

    def _source(self) -> nn.Module:
        self.source = source_of(self.plain, self.expected[1][0])
        write_whole(self.folder / "model.py", self.source.text)
        write_whole(self.folder / "model.safetensors", to_safetensors(dict(self.source.tensors)))
        return self.source.build()

    def _pt2(self) -> nn.Module:
        write_pt2(self._exported(), self.folder / "model.pt2")
        return read_pt2(self.folder / "model.pt2")

    def _onnx(self) -> nn.Module:
        path = self.folder / "model.onnx"
        metadata: dict[str, Any] = {"classes": self.card.classes} if self.card.classes else {}
        if self.card.mean:
            metadata |= {"mean": self.card.mean, "std": self.card.std, "range": [0.0, 1.0], "layout": "NCHW"}
        write_onnx(self._exported(), path, metadata=metadata, interface=self.interface)
        model = OnnxModel(path)
        try:
            for inputs, _ in self.expected:
                called(model, inputs)
        except ExportError:
            path.unlink()  # what runs on some batches alone is of no use
            raise
        return model

    def _hf(self) -> nn.Module:
        folder = self.folder / "hf"
        try:
            self.pretrained = type(self.student).__name__
            return write_pretrained(self.student, folder)
        except ExportError as unsaid:
            if not is_pretrained(self.student):
                raise
            self.unsaid = str(unsaid)
            try:
                source = self.source or source_of(self.plain, self.expected[1][0])
            except ExportError as error:
                raise ExportError(f"{unsaid}; and {error}") from error
        self.pretrained = source.name
        write_whole(folder / "config.json", config_text(self.student))
        write_whole(folder / "model.py", source.text)
        write_whole(folder / "model.safetensors", to_safetensors(dict(source.tensors)))
        return source.build()

    def _int8(self) -> nn.Module:
        source, target = self.folder / "model.onnx", self.folder / "model.int8.onnx"
        alone = "onnx" not in self.parity
        if alone:
            self._onnx()
        try:
            quantise(source, target, calibration(self._calibrated))
            floats, model = OnnxModel(source), OnnxModel(target)
            self.int8 = self._beside(floats, model, source, target)
        finally:
            if alone:
                source.unlink(missing_ok=True)
        return model

    def _beside(self, floats: nn.Module, model: nn.Module, source: Path, target: Path) -> dict[str, Any]:
        found: Comparison = compare(floats, model, self.expected[0][0])
        return {
            **self._judged(floats, model),
            "megabytes": {"float": source.stat().st_size / 1e6, "int8": target.stat().st_size / 1e6},
            "latency_ms": {
                "float": [found.first.low, found.first.median, found.first.high],
                "int8": [found.second.low, found.second.median, found.second.high],
            },
            "latency": str(found),
            "runtime": "onnxruntime, one example, 1 thread; quartiles and median",
        }

    def _exported(self) -> torch.export.ExportedProgram:
        if self._program is None:
            self._program = program_of(self.plain, self.expected[1][0])
        return self._program

    @property
    def _split_name(self) -> str:
        return "test" if self.data is not None and self.data.test is not None else "validation"

    @property
    def _split(self) -> AnySplit | None:
        return None if self.data is None else self.data.test or self.data.val

    def _inputs(self, count: int) -> Any:
        split = self._split
        if split is None or self.data is None:
            return drawn(self.card.input, count)
        inputs, _ = split.batch(torch.arange(count) % len(split))
        return self.data.normalise(inputs)

    def _batches(self, split: AnySplit, most: int) -> Iterator[tuple[Any, Any]]:
        assert self.data is not None
        for start in range(0, min(most, len(split)), _BATCH):
            images, labels = split.batch(torch.arange(start, min(start + _BATCH, most, len(split))))
            yield self.data.normalise(images), labels

    def _predicted(self) -> Iterator[tuple[Any, Tensor]]:
        """Yield inputs of the split, with the classes that the student sees in them, if its outputs are any."""
        split = self._split
        for inputs, _ in () if split is None else self._batches(split, _MOST_EXAMPLES):
            wanted = self.interface.predicted(outputs_of(self.student, inputs))
            if wanted is None:
                return
            yield inputs, wanted

    @property
    def _calibrated(self) -> Data:
        assert self.data is not None, "int8 is refused without data"
        return self.data

    def _judged(self, floats: nn.Module, model: nn.Module) -> dict[str, Any]:
        """Return how many classes both find rightly, or how far 8 bits are from floats where there are none."""
        split, predicted = self._split, self.interface.predicted
        assert split is not None
        targets = split.batch(torch.arange(1))[1]
        found = predicted(self.expected[0][1])
        if found is None or not isinstance(targets, Tensor) or targets.shape != found.shape:
            return {"relative_error": self._error(floats, model)}
        right, count = [0, 0], 0
        for inputs, wanted in self._batches(split, len(split)):
            both = [predicted(outputs_of(network, inputs)) for network in (floats, model)]
            right = [n + int((p == wanted).sum()) for n, p in zip(right, both, strict=True)]
            count += int((wanted >= 0).sum())
        return {"accuracy": {"float": right[0] / count, "int8": right[1] / count}}

    def _error(self, floats: nn.Module, model: nn.Module) -> float:
        """Return the distance of outputs in 8 bits from those in floats, over the size of those."""
        error, size = 0.0, 0.0
        assert self._split is not None
        for inputs, _ in self._batches(self._split, _MOST_EXAMPLES):
            for own, other in zip(outputs_of(floats, inputs), outputs_of(model, inputs), strict=True):
                error += float((own.double() - other.double()).square().sum())
                size += float(own.double().square().sum())
        return math.sqrt(error / size) if size else math.sqrt(error)
