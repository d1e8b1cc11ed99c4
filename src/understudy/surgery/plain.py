"""Students that the teacher's class cannot express: the recorded forward pass over the layers that it uses."""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import linecache
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, fx, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from understudy.core.architecture import Architecture
from understudy.graph.analysis import Analysis
from understudy.graph.plain import rewritten
from understudy.graph.recorder import LOOKED_INTO
from understudy.graph.units import silenced_path

# What torch makes of layers, where a graph has its steps.
_TAKEN_APART = (*LOOKED_INTO, nn.MultiheadAttention, NonDynamicallyQuantizableLinear)
_TRAINING = "_forward_in_training"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_plain(architecture: Architecture) -> bool:
    """Return whether an architecture's student is a plain graph, as the teacher's class cannot have its widths."""
    return any(architecture.space.group(name).plain for name, _ in architecture.widths)


@dataclass(frozen=True)
class Code:
    """A forward pass as text: of which class, what it takes, and the bodies of both modes with the names in them."""

    owner: str
    takes: str
    evaluation: str
    training: str
    names: Mapping[str, Any] = field(hash=False)
    modules: Mapping[str, str] = field(hash=False)  # imported Python modules by their names in the text

    def compiled(self) -> dict[str, Any]:
        """Return the methods: `forward`, and another one for training, if that is something else.

        In a branch of one method TorchScript would not let the text set the inputs free (`x = None`).
        """
        methods = {"forward": self.evaluation}
        if self.training != self.evaluation:
            given = ", ".join(_passed_on(self.takes))
            methods["forward"] = f"if self.training:\n    return self.{_TRAINING}({given})\n{self.evaluation}"
            methods[_TRAINING] = self.training
        space = {**self.names, **{name: importlib.import_module(full) for name, full in self.modules.items()}}
        text = "\n\n".join(
            f"def {name}({self.takes}):\n{textwrap.indent(body, '    ')}" for name, body in methods.items()
        )
        file = f"<student {hashlib.sha256(text.encode()).hexdigest()[:8]}>"
        linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file  # what a traceback shows
        exec(compile(text, file, "exec"), space)
        return {name: space[name] for name in methods}


def _passed_on(takes: str) -> Iterator[str]:
    """Yield what hands a method's arguments on to another of the same."""
    by_name = False
    for name in takes.split(", ")[1:]:
        by_name |= name == "*"
        if name != "*":
            yield f"{name}={name}" if by_name else name


class Plain(nn.Module):
    """A module whose forward pass is `code`; no class of the teacher's stands behind it, but for layers of its own.

    Every code has a class of its own, as `torch.fx` asks a module's class for its forward pass.
    """

    code: Code

    def __deepcopy__(self, memo: dict[int, Any]) -> Plain:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def __reduce__(self) -> Any:
        return plain_module, (self.code, self.__dict__)


def plain_module(code: Code, state: Mapping[str, Any]) -> Plain:
    """Return the module of a forward pass with the members of another module."""
    made: type[Plain] = type(code.owner, (Plain,), {"code": code, **code.compiled()})
    module = made.__new__(made)
    module.__dict__.update(state)
    return module


def plain_student(
    analysis: Analysis, architecture: Architecture, student: nn.Module, kept: npt.NDArray[np.bool_]
) -> nn.Module:
    """Return a student as the recorded forward pass over its layers.

    Args:
        analysis: of the teacher.
        architecture: the student's.
        student: a copy of the teacher with the student's layers; it is taken apart.
        kept: which slots of the analysis stay, (slots + 1,).
    """
    traced, refit = analysis.trace, analysis.refit(architecture)
    units = (analysis.space.unit(name) for name in architecture.removed)
    silenced = [path for path in map(silenced_path, units) if path is not None]
    other = traced.training or traced.flagged
    graphs = [rewritten(graph, refit, kept, silenced) for graph in (traced.graph, *((other,) if other else ()))]
    leaves = {str(node.target) for graph in graphs for node in graph.find_nodes(op="call_module")}
    root = _stripped(student, "", leaves, {})
    for graph in graphs:
        for node in graph.find_nodes(op="get_attr"):
            _hold(root, str(node.target), traced.root, student)
    return plain_module(_code(graphs, traced.root), root.__dict__)


def _stripped(module: nn.Module, path: str, leaves: set[str], known: dict[int, nn.Module]) -> nn.Module:
    """Return a module without its code: layers as they are, others as containers of what they hold."""
    if id(module) in known:
        return known[id(module)]
    known_to_torch = type(module).__module__.startswith("torch.nn")
    if path in leaves or (known_to_torch and not isinstance(module, (*_CONTAINERS, *_TAKEN_APART))):
        known[id(module)] = module
        return module
    bare = type(module)() if type(module) in _CONTAINERS else nn.Module()
    known[id(module)] = bare
    bare.training = module.training
    for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        setattr(bare, name, copy.copy(getattr(module, name)))
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        bare._modules[name] = _stripped(child, inner, leaves, known)
    return bare


def _hold(root: nn.Module, target: str, recorded: nn.Module, student: nn.Module) -> None:
    """Let the root hold a tensor that a recorded forward pass uses and that is neither parameter nor buffer."""
    path, _, name = target.rpartition(".")
    holder = root.get_submodule(path)
    if name in holder._parameters or name in holder._buffers or name in vars(holder):
        return
    owner = student.get_submodule(path)
    value = getattr(owner if hasattr(owner, name) else recorded.get_submodule(path), name)
    if isinstance(value, Tensor):
        holder.register_buffer(name, value.detach().clone(), persistent=False)
    else:
        setattr(holder, name, value)


def _code(graphs: list[fx.Graph], teacher: nn.Module) -> Code:
    takes = ["self"]
    known = inspect.signature(teacher.forward).parameters
    for node in graphs[0].find_nodes(op="placeholder"):
        given = known.get(str(node.target))
        takes += ["*"] if given is not None and given.kind is given.KEYWORD_ONLY and "*" not in takes else []
        takes.append(str(node.target))
    bodies, names = [], {}
    for graph in graphs:
        for node in graph.nodes:
            node.type = None
        python = graph.python_code("self")
        names.update(python.globals)
        places = ((node.name, node.target) for node in graph.find_nodes(op="placeholder"))
        renamed = [f"{name} = {target}\n" for name, target in places if name != target]  # "input" is Python's
        bodies.append("".join((*renamed, _body(python.src))))
    modules = {name: value.__name__ for name, value in names.items() if isinstance(value, types.ModuleType)}
    names = {name: value for name, value in names.items() if name not in modules}
    return Code(type(teacher).__name__, ", ".join(takes), bodies[0], bodies[-1], names, modules)


def _body(source: str) -> str:
    lines = source.strip("\n").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("def forward("))
    return textwrap.dedent("\n".join(lines[start + 1 :]))
