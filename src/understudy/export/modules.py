"""A student's modules -> what each is made of, and which share a class."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from understudy.export.builds import Build, Container, Held, Single, Written
from understudy.export.classes import Class, Forward, Instance, classes_of
from understudy.export.expressions import access, is_list
from understudy.export.layers import Layer, layer_of
from understudy.graph.kinds import IN_FLOAT
from understudy.graph.recorder import LOOKED_INTO

_CONTAINERS = {
    nn.Sequential: "nn.Sequential",
    nn.ModuleList: "nn.ModuleList",
    nn.ModuleDict: "nn.ModuleDict",
}
_RESERVED = frozenset(("Tensor", "OrderedDict", "F", "nn", "torch", "math", "Module", "Sequential", "ModuleList"))
_EMPTY = Single(Layer("nn.Identity", {}))


class Modules:
    """The modules of a student.

    `forwards` has the forward of those that need one, by path; `constants` the tensors that no state dict has;
    `chains` are those that nn.Sequential runs, `leaves` those that were taken as one operation.
    """

    def __init__(
        self,
        root: nn.Module,
        forwards: Mapping[str, Forward],
        constants: Mapping[str, Tensor],
        chains: frozenset[str],
        leaves: frozenset[str],
    ) -> None:
        self._root, self._forwards, self._constants = root, forwards, constants
        self._chains, self._leaves = chains, leaves
        self._paths = {id(module): path for path, module in root.named_modules()}
        self._instances: dict[str, Instance] = {}
        self._aliases: list[str] = []
        self.classes: list[Class] = []

    def write(self) -> list[Class]:
        """Return the classes, each after those that it uses; the last is the student's."""
        by_height: dict[int, list[str]] = {}
        for path, module in self._root.named_modules():
            if self._is_written(path, module):
                by_height.setdefault(self._height(path, module), []).append(path)
        taken: set[str] = set(_RESERVED)
        for height in sorted(by_height):
            instances = [self._instance(path) for path in by_height[height]]
            self._instances |= {instance.path: instance for instance in instances}
            if any(instance.path == "" for instance in instances):
                self._instances[""].after = [*self._tied(), *self._aliases]
            self.classes += classes_of(instances, len(self.classes), taken)
        return self.classes

    def _is_written(self, path: str, module: nn.Module) -> bool:
        if path == "":
            return True
        if _is_container(module):
            return path in self._forwards and path not in self._chains
        return not _is_layer(module) and path not in self._leaves

    def _height(self, path: str, module: nn.Module) -> int:
        inner = [0]
        for name, member in module.named_children():
            below = f"{path}.{name}".lstrip(".")
            inner.append(self._height(below, member))
        return max(inner) + self._is_written(path, module)

    def _instance(self, path: str) -> Instance:
        module = self._root.get_submodule(path)
        base = next((text for kind, text in _CONTAINERS.items() if isinstance(module, kind)), "nn.Module")
        held = self._held(path, module)
        members = {**held, **{name: self._build(f"{path}.{name}".lstrip("."), m) for name, m in _children(module)}}
        numbered = all(name == str(index) for index, (name, _) in enumerate(_children(module)))
        buffers = frozenset(name for name, build in held.items() if not build.before.startswith("nn.Parameter"))
        return Instance(
            path=path,
            name=_class_name(module, path),
            base=base,
            members=members,
            forward=self._forwards.get(path),
            numbered=numbered,
            tensors=buffers,
        )

    def _build(self, path: str, module: nn.Module) -> Build:
        first = self._paths[id(module)]
        if first != path and any(True for _ in (*module.parameters(), *module.buffers())):
            self._aliases.append(f"{access(self._root, path)} = {access(self._root, first)}")
            return _EMPTY
        if self._is_written(path, module) or (first != path and self._is_written(first, module)):
            written = self._instances[first].build
            assert isinstance(written, Written)
            return written
        if isinstance(module, nn.ParameterList):
            return Container("nn.ParameterList", dict(_held_of(module)), numbered=True)
        if not _is_container(module):
            return Single(layer_of(module, path))
        name = next(text for kind, text in _CONTAINERS.items() if isinstance(module, kind))
        members = {inner: self._build(f"{path}.{inner}", member) for inner, member in _children(module)}
        numbered = is_list(module) and all(name == str(index) for index, name in enumerate(members))
        return Container(name, members, numbered=numbered)

    def _held(self, path: str, module: nn.Module) -> dict[str, Held]:
        held = _held_of(module)
        for target, tensor in self._constants.items():
            if target.rpartition(".")[0] == path:
                held[target.rpartition(".")[2]] = _held_tensor(tensor)
        return held

    def _tied(self) -> list[str]:
        """Return the lines that let parameters be one and the same which are in the student."""
        lines: list[str] = []
        known: dict[int, str] = {}
        owners = {path for path, _ in self._root.named_modules()}  # without the other paths of shared modules
        for name, parameter in self._root.named_parameters(remove_duplicate=False):
            first = known.setdefault(id(parameter), name)
            if first != name and name.rpartition(".")[0] in owners:
                lines.append(f"{access(self._root, name)} = {access(self._root, first)}")
        return lines


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, member) for name, member in module._modules.items() if member is not None]


def _held_of(module: nn.Module) -> dict[str, Held]:
    held = {}
    for name, parameter in module._parameters.items():
        if parameter is not None:
            inner = _held_tensor(parameter)
            grad = "" if parameter.requires_grad else ", requires_grad=False"
            held[name] = Held(f"nn.Parameter({inner.before}", inner.sizes, f"{inner.after}{grad})")
    return held | {name: _held_tensor(t) for name, t in module._buffers.items() if t is not None}


def _held_tensor(tensor: Tensor) -> Held:
    kind = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    return Held("torch.zeros(", tuple(str(size) for size in tensor.shape), f"{kind})")


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, tuple(_CONTAINERS))


def _is_layer(module: nn.Module) -> bool:
    """Return whether a trace takes a module as one operation, or holds only parameters."""
    if type(module) in (nn.Module, *IN_FLOAT, *LOOKED_INTO):
        return False
    return type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))


def _class_name(module: nn.Module, path: str) -> str:
    name = type(module).__name__
    if type(module).__module__.startswith("torch."):  # a graph module, or a container that was given a forward
        last = [part for part in path.split(".") if part and not part.isdigit()]
        name = "".join(part.capitalize() for part in re.split(r"\W|_", last[-1])) if last else "Student"
    return re.sub(r"\W", "_", name).strip("_") or "Student"
