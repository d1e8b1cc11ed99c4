"""Student -> `model.py`: plain PyTorch that a person could have written, and that needs nothing but torch.

The student's forward pass is recorded in evaluation and in training mode. Every module that the trace looked into
becomes a class with the forward that was recorded there; modules that are alike share one. What was written is run
beside the student, and must give the same bit for bit, before it is handed out.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from understudy.core.errors import ExportError, TraceError
from understudy.core.memory import out_of_memory
from understudy.export.body import Body, Takes, takes
from understudy.export.classes import Forward, class_text
from understudy.export.expressions import HELPERS
from understudy.export.interface import unfused
from understudy.export.lines import looped, merged
from understudy.export.modules import Modules
from understudy.export.scopes import Calls, Scope, is_chain, same_results
from understudy.graph.copies import copied
from understudy.graph.fake import Signature, source_line
from understudy.graph.nodes import tells_values
from understudy.graph.record import record
from understudy.graph.seeds import seeded
from understudy.graph.trace import Example
from understudy.surgery.masked import tensors_of

Found = dict[str, list[tuple[Calls, Scope]]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A student as source code: the class to make, the text of the file, and the tensors to load into it."""

    name: str
    text: str
    tensors: Mapping[str, Tensor]

    def build(self) -> nn.Module:
        """Return the module that the text makes, with its tensors, in evaluation mode."""
        namespace: dict[str, Any] = {"__name__": "model"}
        exec(compile(self.text, "model.py", "exec"), namespace)
        with torch.random.fork_rng(devices=[]):  # of the weights that its layers start with
            module: nn.Module = namespace[self.name]()
        module.load_state_dict(dict(self.tensors), strict=True)
        return module.eval()


def source_of(student: nn.Module, example: Example, *, leaf_modules: tuple[type[nn.Module], ...] = ()) -> Source:
    """Write a student as source code and prove it on random inputs; the student is not touched.

    Args:
        student: any module that can be traced, a graph module as well.
        example: the input: a tensor (B, ...), a tuple of positional ones, or keyword arguments by name.
        leaf_modules: classes that are taken as one operation; there is no source code for them.

    Raises:
        ExportError: it cannot be written in plain PyTorch, or what was written computes something else; says why.
    """
    try:
        modes = [Calls(record(student, example, training=mode, leaf_modules=leaf_modules)) for mode in (False, True)]
    except TraceError as error:
        raise ExportError(f"model.py is written from the forward pass in both modes, but {error}") from error
    _check_branches(modes)
    source = _written(student, modes)
    _prove(student, source, example)
    return source


def _check_branches(modes: list[Calls]) -> None:
    """Refuse a forward pass in which Python goes by what numbers an input holds: one example shows one way."""
    for calls in modes:
        for node in calls.recording.graph.nodes:
            if node.meta.get("escapes") and tells_values(node):
                raise ExportError(
                    "model.py must do the same for all inputs, but the forward pass goes by the numbers in one "
                    f"({source_line(node) or node.name}); the other formats can still be written"
                )


def _written(student: nn.Module, modes: list[Calls]) -> Source:
    found: Found = {}
    for calls in modes:
        for path, scopes in calls.by_path.items():
            found.setdefault(path, []).extend((calls, scope) for scope in scopes)
    chains = frozenset(path for path, calls in found.items() if path and all(is_chain(*call) for call in calls))
    takes_of = {path: takes(calls) for path, calls in found.items() if path}
    takes_of[""] = Takes(
        names=tuple(str(node.target) for node in modes[0].inputs),
        types=tuple(map(_kind, modes[0].inputs)),
    )
    forwards = {path: _forward(path, found[path], takes_of) for path in found if path not in chains}
    for path in set().union(*(calls.called - calls.leaves for calls in modes)) - set(found):
        if type(student.get_submodule(path)).forward is not nn.Sequential.forward:
            forwards[path] = Forward(("x",), ("Tensor",), " -> Tensor", ("return x",))
    constants = _constants(student, modes)
    classes = Modules(student, forwards, constants, chains, modes[0].leaves | modes[1].leaves).write()
    state = {name: value.detach().cpu().contiguous().clone() for name, value in student.state_dict().items()}
    return Source(name=classes[-1].name, text=_file(classes), tensors={**state, **constants})


def _kind(given: fx.Node) -> str:
    """Return the type of an input as text."""
    value = given.meta["value"]
    return "Tensor" if isinstance(value, Signature) else "None" if value is None else ""


def _forward(path: str, found: list[tuple[Calls, Scope]], takes_of: Mapping[str, Takes]) -> Forward:
    """Return a module's forward from its calls in both modes, which must be alike within a mode."""
    by_mode: dict[Calls, set[tuple[str, ...]]] = {}
    for calls, scope in found:
        by_mode.setdefault(calls, set()).add(tuple(Body(calls, scope, takes_of).lines()))
    for each_call in by_mode.values():
        if len(each_call) > 1:
            raise ExportError(
                f"model.py must have one forward for each module, but {path!r} computes different things when it is "
                "called again; the other formats can still be written"
            )
    each = [list(next(iter(calls))) for calls in by_mode.values()]
    lines = each[0] if len(each) == 1 else merged(*each)
    root = found[0][0].recording.root.get_submodule(path)
    sizes = {f"self.{name}": len(m) for name, m in root.named_modules() if isinstance(m, nn.Sequential | nn.ModuleList)}
    own = takes_of[path]
    return Forward(own.names, own.types, _gives(path, found), tuple(looped(lines, sizes)))


def _gives(path: str, found: list[tuple[Calls, Scope]]) -> str:
    if path == "":
        result = found[0][0].output.args[0]
        single = isinstance(result, fx.Node) and isinstance(result.meta["value"], Signature)
        return " -> Tensor" if single and not isinstance(found[-1][0].output.args[0], tuple | dict) else ""
    count = same_results(path, [len(calls.given_by(scope)) for calls, scope in found])
    return {0: " -> None", 1: " -> Tensor"}.get(count, " -> tuple[Tensor, ...]")


def _constants(student: nn.Module, modes: list[Calls]) -> dict[str, Tensor]:
    """Return the tensors that the forward pass uses and no state dict has.

    Raises:
        ExportError: those of training are others than those of evaluation.
    """
    found: dict[str, Tensor] = {}
    state = student.state_dict()
    kept = {name for name, _ in student.named_buffers(remove_duplicate=False)}
    for calls in modes:
        for node in calls.recording.graph.find_nodes(op="get_attr"):
            target = str(node.target)
            if target in state or any(target == name for name, _ in student.named_parameters(remove_duplicate=False)):
                continue
            value = operator.attrgetter(target)(student if target in kept else calls.recording.root)
            known = found.setdefault(target, value.detach().cpu().contiguous().clone())
            if known.shape != value.shape or not torch.equal(known, value.cpu()):
                raise ExportError(f"model.py must have one value for the constant {target!r}, but training has another")
    return found


def _file(classes: list[Any]) -> str:
    body: list[str] = []
    for index, made in enumerate(classes):
        last = index == len(classes) - 1
        body += ["", "", *class_text(made, "The student." if last else _places(made))]
    text = "\n".join(body)
    helpers = [source for name, source in HELPERS.values() if f"{name}(" in text]
    imports = ["import math"] if "math." in text else []
    imports += ["from collections import OrderedDict"] if "OrderedDict(" in text else []
    imports += [""] if imports else []
    imports += ["import torch"] if "torch." in text or helpers else []
    imports += ["from torch import Tensor, nn"]
    imports += ["from torch.nn import functional as F"] if " F." in text or "(F." in text else []
    name = classes[-1].name
    head = [
        '"""The student in plain PyTorch. Its weights are in model.safetensors:',
        "",
        "    from safetensors.torch import load_file",
        f"    model = {name}()",
        '    model.load_state_dict(load_file("model.safetensors"))',
        '"""',
        "",
    ]
    parts = ["\n".join([*head, *imports]), *("\n\n" + helper.rstrip() for helper in helpers)]
    return "\n".join(parts) + "\n" + text.rstrip() + "\n"


def _places(made: Any) -> str:
    paths = [instance.path for instance in made.instances]
    return f"The student's {paths[0]}." if len(paths) == 1 else f"{len(paths)} of the student, from {paths[0]} on."


def _prove(student: nn.Module, source: Source, example: Example) -> None:
    """Run source code and student on the same random inputs, in both modes.

    Raises:
        ExportError: they differ in one bit.
    """
    try:
        own, written = copied(student).cpu().eval(), source.build()
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise ExportError(f"model.py must take the student's weights, but does not: {reason}") from error
    for mode, batches in ((False, (1, 2, 5)), (True, (3,))):
        for batch in batches:
            inputs = _inputs(example, batch)
            own_buffers = dict(own.named_buffers())
            results = [_outcome(module.train(mode), inputs) for module in (own, written)]
            buffers = {name: value for name, value in written.named_buffers() if name in own_buffers}
            if not _same(*results) or not _same(list(own_buffers.values()), [buffers[name] for name in own_buffers]):
                raise ExportError(
                    f"model.py must compute what the student does, but it does not in "
                    f"{'training' if mode else 'evaluation'} mode on a batch of {batch}; other formats can be written"
                )


def _inputs(example: Example, batch: int) -> Any:
    generator = torch.Generator().manual_seed(batch)

    def drawn(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim():
            return value
        shape = (batch, *value.shape[1:])
        if value.is_floating_point():
            return torch.randn(shape, generator=generator, dtype=value.dtype)
        return value.cpu()[torch.randint(len(value), (batch,), generator=generator)]

    if isinstance(example, Tensor):
        return ((drawn(example),), {})
    if isinstance(example, tuple):
        return (tuple(drawn(value) for value in example), {})
    return ((), {name: drawn(value) for name, value in example.items()})


def _outcome(module: nn.Module, inputs: Any) -> list[Tensor] | str:
    """Return outputs, or what kind of error there was; what Python draws is not what it drew when it was recorded."""
    with torch.no_grad(), seeded(1), unfused():
        try:
            outputs = list(tensors_of(module(*copy.deepcopy(inputs[0]), **copy.deepcopy(inputs[1]))))
        except Exception as error:
            if out_of_memory(error):
                raise
            return type(error).__name__
    return outputs


def _same(a: list[Tensor] | str, b: list[Tensor] | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return len(a) == len(b) and all(
        x.shape == y.shape and x.dtype == y.dtype and bool(((x == y) | ((x != x) & (y != y))).all())
        for x, y in zip(a, b, strict=True)
    )
