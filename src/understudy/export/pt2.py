"""Student -> `model.pt2`: a program of torch.export for batches of any size, without pickled parts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from understudy.core.errors import ExportError, UnderstudyError
from understudy.core.files import write_whole
from understudy.core.nested import mapped
from understudy.export.quiet import quiet_exporters
from understudy.graph.record import record

# What torch notes of the Python files that a program comes from.
_TRACES = ("stack_trace", "source_fn_stack", "from_node", "torch_fn")


def program_of(student: nn.Module, example: Any) -> torch.export.ExportedProgram:
    """Return a student as a program that takes batches of any size.

    Args:
        student: it is not touched. What it gives is tensors, tuples and dicts of them.
        example: its inputs, (B, ...), B at least 2: a tensor, a tuple of positional ones, or a dict by name.

    Raises:
        ExportError: torch.export refuses it; with its reason.
    """
    batch = torch.export.Dim("batch", min=1)
    by_name = isinstance(example, Mapping)
    args = () if by_name else example if isinstance(example, tuple) else (example,)
    shapes = mapped(example if by_name else args, lambda tensor: {0: batch})
    try:
        with quiet_exporters():
            program = torch.export.export(
                student, args, dict(example) if by_name else None, dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        if _packs(student, example):
            raise ExportError(
                "a student must be one that torch.export takes, but it packs sequences (pack_padded_sequence), whose "
                "steps depend on the values of their lengths; model.py and the student's folder hold it as it is"
            ) from error
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"a student must be one that torch.export takes, but it says: {reason}") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for name in _TRACES:
                node.meta.pop(name, None)
    return program


def _packs(student: nn.Module, example: Any) -> bool:
    """Return whether a forward pass leaves the padding of sequences out."""
    try:
        recording = record(student, example, training=False)
    except UnderstudyError:
        return False
    return any(node.target is pack_padded_sequence for node in recording.graph.nodes)


def write_pt2(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program, whole or not at all."""
    example, program.example_inputs = program.example_inputs, None  # torch would pickle it
    try:
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    finally:
        program.example_inputs = example
    write_whole(path, buffer.getvalue())


def read_pt2(path: Path) -> nn.Module:
    """Return the network of a program.

    Raises:
        ExportError: the file is none.
    """
    try:
        return torch.export.load(path).module()
    except Exception as error:
        raise ExportError(f"{path} must be a program that torch.export wrote, but cannot be read: {error}") from error
