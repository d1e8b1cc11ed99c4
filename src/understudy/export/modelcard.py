"""README.md of a student's folder: what it is, how good, and how to load each format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from understudy.core.figures import BY_GOAL, amount, digits, share
from understudy.core.summary import Score
from understudy.core.timing import Timing
from understudy.export.interface import Interface, specs
from understudy.export.source import Source
from understudy.models.card import StudentCard

_PYTORCH = """\
### PyTorch: `model.py`, `model.safetensors`

```python
from model import {name}
from safetensors.torch import load_file
model = {name}()
model.load_state_dict(load_file("model.safetensors"))
{outputs} = model.eval()({arguments})
```
"""
_PT2 = """\
### torch.export: `model.pt2`

```python
import torch
model = torch.export.load("model.pt2").module()
{outputs} = model({arguments})
```
"""
_ONNX = """\
### ONNX Runtime: `{file}`{note}

```python
import onnxruntime
session = onnxruntime.InferenceSession("{file}")
{outputs} = session.run(None, {{{feed}}}){first}
```
"""
_HF = """\
### Hugging Face: `hf/`

```python
from transformers import {name}
model = {name}.from_pretrained("hf")
{outputs} = model({arguments})
```
"""
_HF_CODE = """\
### Hugging Face: `hf/`

{why}. So they are in `model.py`; `config.json` is the teacher's, for the names of classes and the tokenizer.

```python
from hf.model import {name}
from safetensors.torch import load_file
model = {name}()
model.load_state_dict(load_file("hf/model.safetensors"))
{outputs} = model.eval()({arguments})
```
"""
_KINDS = {
    "multilabel": "A classifier of any number of labels",
    "regression": "A regression",
    "segmentation": "A segmentation",
    "pixels": "A segmentation",
    "embedding": "An embedding",
    "retrieval": "An embedding",
    "language": "A language model",
}


def readme(card: StudentCard, certificate: Mapping[str, Any], source: Source | None, interface: Interface) -> str:
    """Return the model card as Markdown; `certificate` is what the certificate says of the formats."""
    used = _loading(certificate, source, interface)
    parts = [_head(card), _figures(card), _goal(card), used, _input(card, interface)]
    parts += [_parity(certificate), _int8(certificate["int8"])]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def _head(card: StudentCard) -> str:
    teacher = card.model or "a network made in Python"
    what = f"A classifier of {len(card.classes)} classes" if card.classes else _KINDS.get(card.objective, "A network")
    return (
        f"# Student of {str(teacher).rpartition('/')[2]}\n\n"
        f"{what}, trained on {card.data_source} by distillation from the teacher. Written by Understudy; nothing here "
        "needs it.\n"
    )


def _figures(card: StudentCard) -> str:
    rows = ["| | teacher | student |", "|-|-|-|"]
    both = [card.teacher, card.student]
    columns = {
        f"{card.metric} on test": [_accuracy(network.test) for network in both],
        f"{card.metric} on validation": [_accuracy(network.val) for network in both],
        "parameters": [amount(network.cost.parameters) for network in both],
        f"MACs for one {'image' if card.mean else 'example'}": [amount(network.cost.macs) for network in both],
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
        form = " (in 8 bits)" if budget.int8 else ""
        obtained = f"{budget.obtained:.4g}" if budget.is_floor else BY_GOAL[budget.name].number(budget.obtained)
        rows.append(f"| {budget.name} {budget.asked}{form} | {obtained} | {kept} |")
    return "## Budgets\n\n" + "\n".join(rows) + "\n"


def _loading(certificate: Mapping[str, Any], source: Source | None, interface: Interface) -> str:
    formats, lone = certificate["formats"], len(interface.outputs) == 1
    names = {
        "outputs": interface.outputs[0] if lone and interface.outputs[0].isidentifier() else "outputs",
        "arguments": interface.arguments,
        "feed": ", ".join(f'"{name}": {name}' for name in interface.inputs),
        "first": "[0]" if lone else "  # " + ", ".join(interface.outputs),
    }
    parts = ["## Use\n"]
    if "source" in formats and source is not None:
        parts.append(_PYTORCH.format(name=source.name, **names))
    if "onnx" in formats:
        parts.append(_ONNX.format(file="model.onnx", note="", **names))
    if "pt2" in formats:
        parts.append(_PT2.format(**names))
    if "int8" in formats:
        parts.append(_ONNX.format(file="model.int8.onnx", note=", 8 bits", **names))
    if "hf" in formats:
        found = certificate["hf"]
        text = _HF_CODE if found["no_configuration"] else _HF
        parts.append(text.format(name=found["class"], why=found["no_configuration"], **names))
    parts += [f"Not here, {name}: {reason}.\n" for name, reason in certificate["skipped"].items()]
    return "\n".join(parts)


def _input(card: StudentCard, interface: Interface) -> str:
    if not card.mean:
        shapes = (
            f"- `{name}`: {spec['dtype']}, {' x '.join(['B', *map(str, spec['shape'])])}"
            for name, spec in zip(interface.inputs, specs(card.input), strict=True)
        )
        return (
            "## Input\n\nAny batch size B; `input.json` has this and what comes out for a program.\n\n"
            + "\n".join(shapes)
            + "\n"
        )
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
    accuracy, megabytes = found.get("accuracy"), found["megabytes"]
    quality = f"outputs within {share(found.get('relative_error', 0.0))} of those in floats, root mean square"
    if accuracy is not None:
        quality = f"{share(accuracy['int8'])} right (float: {share(accuracy['float'])})"
    return (
        f"int8: {quality}, {digits(megabytes['int8'])} MB "
        f"(float: {digits(megabytes['float'])} MB), {found['latency']} in ONNX Runtime with 1 thread"
    )


def _int8(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    rows = ["| | float | int8 |", "|-|-|-|"]
    if "accuracy" in found:
        rows.append(f"| accuracy | {share(found['accuracy']['float'])} | {share(found['accuracy']['int8'])} |")
    else:
        rows.append(f"| distance of the outputs, root mean square | 0 | {share(found['relative_error'])} |")
    rows.append(f"| megabytes | {digits(found['megabytes']['float'])} | {digits(found['megabytes']['int8'])} |")
    times = [str(Timing(low=low, median=m, high=high)) for low, m, high in found["latency_ms"].values()]
    rows.append(f"| ms for one example, 1 thread | {times[0]} | {times[1]} |")
    return (
        f"## 8 bits\n\nWeights and activations in 8 bits, in ONNX Runtime: {found['latency']}.\n\n"
        + "\n".join(rows)
        + "\n"
    )
