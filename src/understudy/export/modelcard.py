"""README.md of a student's folder: what it is, how good, and how to load each format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from understudy.core.figures import amount, share
from understudy.core.summary import Score
from understudy.export.source import Source
from understudy.models.card import StudentCard

_PYTORCH = """\
### PyTorch: `model.py`, `model.safetensors`

```python
from model import {name}
from safetensors.torch import load_file
model = {name}()
model.load_state_dict(load_file("model.safetensors"))
logits = model.eval()(images)
```
"""
_PT2 = """\
### torch.export: `model.pt2`

```python
import torch
model = torch.export.load("model.pt2").module()
logits = model(images)
```
"""
_ONNX = """\
### ONNX Runtime: `{file}`{note}

```python
import onnxruntime
session = onnxruntime.InferenceSession("{file}")
logits = session.run(None, {{"images": images}})[0]
```
"""


def readme(card: StudentCard, certificate: Mapping[str, Any], source: Source | None) -> str:
    """Return the model card as Markdown; `certificate` is what the certificate says of the formats."""
    parts = [_head(card), _figures(card), _goal(card), _loading(certificate, source), _input(card)]
    parts += [_parity(certificate), _int8(certificate["int8"])]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def _head(card: StudentCard) -> str:
    teacher = card.model or "a network made in Python"
    return (
        f"# Student of {str(teacher).rpartition('/')[2]}\n\n"
        f"A classifier of {len(card.classes)} classes, trained on {card.data_source} by distillation from the "
        "teacher. Written by Understudy; nothing here needs it.\n"
    )


def _figures(card: StudentCard) -> str:
    rows = ["| | teacher | student |", "|-|-|-|"]
    both = [card.teacher, card.student]
    columns = {
        "accuracy on test": [_accuracy(network.test) for network in both],
        "accuracy on validation": [_accuracy(network.val) for network in both],
        "parameters": [amount(network.cost.parameters) for network in both],
        "MACs for one image": [amount(network.cost.macs) for network in both],
    }
    rows += [f"| {name} | {teacher} | {student} |" for name, (teacher, student) in columns.items()]
    return "\n".join(rows) + "\n"


def _accuracy(found: Score | None) -> str:
    return "-" if found is None else f"{share(found.value)} of {found.examples:,}"


def _goal(card: StudentCard) -> str:
    if not card.goal:
        return ""
    rows = ["| asked | obtained | kept |", "|-|-|-|"]
    for budget in card.goal:
        kept = "yes" if budget.kept else "no"
        rows.append(f"| {budget.name} {budget.asked} | {budget.obtained:,.4g} | {kept} |")
    return "## Budgets\n\n" + "\n".join(rows) + "\n"


def _loading(certificate: Mapping[str, Any], source: Source | None) -> str:
    formats = certificate["formats"]
    parts = ["## Use\n"]
    if "source" in formats and source is not None:
        parts.append(_PYTORCH.format(name=source.name))
    if "onnx" in formats:
        parts.append(_ONNX.format(file="model.onnx", note=""))
    if "pt2" in formats:
        parts.append(_PT2)
    if "int8" in formats:
        parts.append(_ONNX.format(file="model.int8.onnx", note=", 8 bits"))
    parts += [f"Not here, {name}: {reason}.\n" for name, reason in certificate["skipped"].items()]
    return "\n".join(parts)


def _input(card: StudentCard) -> str:
    shape = " x ".join(str(size) for size in card.input)
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (card.mean, card.std))
    return (
        "## Input\n\n"
        f"Images as float32, B x {shape}, any batch size B: pixels in 0..1, then minus the mean ({mean}), divided "
        f"by the deviation ({std}) of each channel. `input.json` has this and the names of the classes for a program.\n"
    )


def _parity(certificate: Mapping[str, Any]) -> str:
    rows = ["| format | largest difference | relative | same predictions |", "|-|-|-|-|"]
    for name, found in certificate["formats"].items():
        same = "-" if found["agreement"] is None else f"{share(found['agreement'])} of {found['examples']:,}"
        rows.append(f"| {name} | {found['absolute']:.2g} | {found['relative']:.2g} | {same} |")
    return (
        f"## Checked\n\nEach format beside the trained student, on {certificate['inputs']}. "
        "`understudy verify` on this folder checks it again.\n\n" + "\n".join(rows) + "\n"
    )


def int8_line(found: Mapping[str, Any]) -> str:
    """Return what 8 bits cost and bring, as one line."""
    accuracy, megabytes = found["accuracy"], found["megabytes"]
    return (
        f"int8: {share(accuracy['int8'])} right (float: {share(accuracy['float'])}), {megabytes['int8']:.3g} MB "
        f"(float: {megabytes['float']:.3g} MB), {found['latency']} in ONNX Runtime with 1 thread"
    )


def _int8(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    rows = ["| | float | int8 |", "|-|-|-|"]
    rows.append(f"| accuracy | {share(found['accuracy']['float'])} | {share(found['accuracy']['int8'])} |")
    rows.append(f"| megabytes | {found['megabytes']['float']:.3g} | {found['megabytes']['int8']:.3g} |")
    times = [f"{m:.3g} ({low:.3g}-{high:.3g})" for low, m, high in found["latency_ms"].values()]
    rows.append(f"| ms for one image, 1 thread | {times[0]} | {times[1]} |")
    return (
        f"## 8 bits\n\nWeights and activations in 8 bits, in ONNX Runtime: {found['latency']}.\n\n"
        + "\n".join(rows)
        + "\n"
    )
