"""Small known landscapes in place of training: toy Spaces, their costs, scores and rewards."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from understudy.core.architecture import Architecture, Group, Layer, Space, Unit
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.goal import Goal, Reward
from understudy.methods.base import Problem

ToyKind = Literal["chain", "residual"]

_TEACHER_SCORE = 0.95
_CHANCE = 0.1
_SHARED_LOSS = 2.0  # of all convolutions together, whatever their number
_CHAIN = (64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)  # VGG-13; 0: a pooling layer
_STAGES = (64, 128, 256, 512)
_BLOCKS = 3  # of each stage; the first one is strided and stays, but for the first stage's


def toy_space(kind: ToyKind = "chain") -> Space:
    """Return the Space of a VGG-13 ("chain", 9.4M parameters) or a ResNet of 12 blocks ("residual", 17.4M)."""
    return _chain() if kind == "chain" else _residual()


def toy_cost(architecture: Architecture) -> Cost:
    """Return the exact parameters of an architecture of a toy Space, by walking its layers.

    Spatial sizes are not modelled, so MACs are those of one position.
    """
    parameters, macs, width, entering, block = 0, 0, 3, 3, ""
    for layer in _kept(architecture):
        if layer.name.rsplit(".", 1)[0] != block:
            block, entering = layer.name.rsplit(".", 1)[0], width
        if layer.type == "norm":
            parameters += 2 * width
        elif layer.type in ("conv", "linear"):
            arriving = entering if layer.name.endswith("shortcut") else width
            width = architecture.width(layer.group) if layer.group else layer.outputs
            weights = arriving * width * max(architecture.kernel(layer.name), 1) ** 2
            parameters += weights + (width if layer.type == "linear" else 0)
            macs += weights
    return Cost(parameters=parameters, macs=macs, weight_bytes=4 * parameters)


def toy_score(architecture: Architecture, *, landscape: int = 0, noise: float = 0.004, shared: bool = False) -> float:
    """Return a known score, in 0..1, in place of a trained student's.

    Each layer of the teacher has an importance, a width at which it saturates and a need for its full
    kernel, drawn once for each `landscape`. Dropping a layer loses its importance, narrowing it a part
    of that, a smaller kernel another part; too few convolutions lose more than the sum of them. A loss
    l makes the score `chance + (teacher - chance) exp(-l)`, give or take `noise` (a standard
    deviation): the luck of training, which is the architecture's own.

    A `shared` landscape draws a smooth function of what a layer is (its relative depth, width, stride, kernel and
    place beside a skip) in place of numbers for each layer: what is learned on one teacher holds for another.
    """
    space, kept = architecture.space, {layer.name for layer in _kept(architecture)}
    loss = 0.0
    traits = _shared_traits(space, landscape) if shared else _traits(space.digest, len(space.layers), landscape)
    for layer, (importance, saturation, spatial) in zip(space.layers, traits, strict=True):
        if layer.name not in kept:
            loss += importance * {"conv": 1.0, "pool": 0.3}.get(layer.type, 0.1)
        elif layer.type == "conv" and layer.group is not None:
            share = architecture.width(layer.group) / space.group(layer.group).width
            saturated = math.expm1(-saturation * share) / math.expm1(-saturation)
            loss += (importance + 0.02) * (1.0 - saturated)
            loss += importance * spatial * (architecture.kernel(layer.name) < layer.kernel)
    convolutions = {layer.name for layer in space.layers if layer.type == "conv"}
    loss += 4.0 * max(0.0, 0.4 - len(kept & convolutions) / len(convolutions)) ** 2
    luck = np.random.default_rng(_number(f"{landscape} {architecture.digest}")).standard_normal()
    return min(max(_CHANCE + (_TEACHER_SCORE - _CHANCE) * math.exp(-loss) + noise * luck, 0.0), 1.0)


def toy_evaluation(architecture: Architecture, *, landscape: int = 0, noise: float = 0.004) -> Evaluation:
    """Return the evaluation of an architecture of a toy Space on that landscape."""
    return Evaluation(
        architecture=architecture,
        teacher="toy",
        data="toy",
        recipe=f"{landscape}/{noise}",
        cost=toy_cost(architecture),
        score=toy_score(architecture, landscape=landscape, noise=noise),
        seconds=0.0,
        seed=0,
    )


def toy_reward(space: Space, goal: Goal | None = None) -> Reward:
    """Return N2N's reward for a toy Space and a goal (none: no budgets)."""
    cost = toy_cost(space.full)
    budgets = (goal or Goal()).budgets(cost, _TEACHER_SCORE)
    return Reward(teacher_cost=cost, teacher_score=_TEACHER_SCORE, budgets=budgets)


def toy_problem(space: Space | ToyKind = "chain", params: str | None = None, **fields: Any) -> Problem:
    """Return the problem of making a toy Space's teacher smaller, of at most `params`; `fields` are a Problem's."""
    space = toy_space(space) if isinstance(space, str) else space
    return Problem(**{"space": space, "reward": toy_reward(space, Goal(params=params)), "predict": toy_cost, **fields})


def _kept(architecture: Architecture) -> list[Layer]:
    space = architecture.space
    gone = {layer for unit in architecture.removed for layer in space.unit(unit).layers}
    return [layer for layer in space.layers if layer.name not in gone]


@lru_cache(maxsize=64)
def _traits(space: str, layers: int, landscape: int) -> tuple[tuple[float, float, float], ...]:
    """Return (importance, saturation, need for its kernel) of each layer, drawn once."""
    numbers = np.random.default_rng(_number(f"{space} {landscape}"))
    importance = 0.06 * np.exp(1.2 * numbers.standard_normal(layers))
    saturation = np.exp(numbers.uniform(math.log(3.0), math.log(40.0), layers))
    return tuple(zip(importance.tolist(), saturation.tolist(), numbers.uniform(0.0, 1.0, layers).tolist(), strict=True))


@lru_cache(maxsize=64)
def _shared_traits(space: Space, landscape: int) -> tuple[tuple[float, float, float], ...]:
    """Return the same three as a function of each layer's properties; importances of any teacher have one sum."""
    depths = np.linspace(0.0, 1.0, len(space.layers))
    widths = np.array([math.log2(1 + layer.outputs) / 6.0 for layer in space.layers])
    flags = [[layer.stride > 1, layer.kernel == 1, layer.skip_start > 0, layer.skip_end > 0] for layer in space.layers]
    waves = [np.cos(np.pi * harmonic * depths) for harmonic in (1, 2, 3)]
    properties = np.column_stack([*waves, widths, np.array(flags, dtype=float)])
    directions = np.random.default_rng(_number(f"shared {landscape}")).standard_normal((properties.shape[1], 3))
    heights = properties @ directions / 2.0
    convolutions = np.array([layer.type == "conv" for layer in space.layers])
    importance = np.exp(1.2 * heights[:, 0])
    importance *= _SHARED_LOSS / importance[convolutions].sum()
    shares = 1.0 / (1.0 + np.exp(-2.0 * (heights[:, 1:] - heights[convolutions, 1:].mean(0))))
    saturation = np.exp(math.log(3.0) + math.log(40.0 / 3.0) * shares[:, 0])
    return tuple(zip(importance.tolist(), saturation.tolist(), shares[:, 1].tolist(), strict=True))


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def _conv(name: str, arriving: int, width: int, group: str, **fields: int) -> list[Layer]:
    """Return the rows of a 3x3 convolution without bias, its norm and its activation."""
    parameters = 9 * arriving * width
    return [
        Layer(
            name=name, type="conv", kernel=3, stride=fields.pop("stride", 1), padding=1, outputs=width,
            parameters=parameters, group=group, kernels=(1, 3), **fields,
        ),
        Layer(name=f"{name}_norm", type="norm", parameters=2 * width, group=group),
        Layer(name=f"{name}_relu", type="activation", group=group),
    ]  # fmt: skip


def _single_layers(layers: list[Layer], whole: list[Unit]) -> list[Unit]:
    """Return a unit of kind "layer" for each layer of the other units."""
    names = {name for unit in whole for name in unit.layers}
    return [Unit(name=f"{x.name}!", kind="layer", layers=(x.name,)) for x in layers if x.name in names]


def _chain() -> Space:
    layers: list[Layer] = []
    units: list[Unit] = []
    width, readers = 3, dict[str, list[str]]()
    for number, outputs in enumerate(_CHAIN):
        name = f"features.{number}" if outputs else f"features.pool{number}"
        if outputs:
            rows = _conv(name, width, outputs, name)
            width = outputs
            readers[name] = [name]
        else:
            rows = [Layer(name=name, type="pool", kernel=2, stride=2)]
        if number:
            units.append(Unit(name=name, kind="conv" if outputs else "pool", layers=tuple(r.name for r in rows)))
        layers += rows
    layers.append(Layer(name="classifier", type="linear", outputs=10, parameters=10 * width + 10))
    groups = [
        Group(name=n, width=next(x.outputs for x in layers if x.name == n), layers=tuple(r)) for n, r in readers.items()
    ]
    return Space(layers=tuple(layers), groups=tuple(groups), units=(*units, *_single_layers(layers, units)))


def _residual() -> Space:
    layers = _conv("stem.conv", 3, 64, "stem.conv")
    groups = {"stem.conv": 64}
    units: list[Unit] = []
    arriving, shared = 64, "stem.conv"
    for stage, width in enumerate(_STAGES):
        for number in range(_BLOCKS):
            name, strided = f"stage{stage}.{number}", stage > 0 and number == 0
            inner = f"{name}.conv1"
            shared = f"{name}.conv2" if strided else shared
            groups |= {inner: width, shared: width}
            block = _conv(inner, arriving, width, inner, stride=2 if strided else 1, skip_end=4)
            block += _conv(f"{name}.conv2", width, width, shared, skip_start=3, skip_end=1)
            if strided:
                block.append(
                    Layer(
                        name=f"{name}.shortcut", type="conv", kernel=1, stride=2, outputs=width,
                        parameters=arriving * width, group=shared, kernels=(1,),
                    )
                )  # fmt: skip
            else:
                units.append(Unit(name=name, kind="block", layers=tuple(x.name for x in block)))
                units.append(Unit(name=inner, kind="conv", layers=tuple(x.name for x in block[:3])))
            layers += block
            arriving = width
    layers.append(Layer(name="pool", type="pool"))
    layers.append(Layer(name="classifier", type="linear", outputs=10, parameters=10 * arriving + 10))
    tied = {g: tuple(x.name for x in layers if x.group == g and x.type == "conv") for g in groups}
    single = _single_layers(layers, [u for u in units if u.kind == "conv"])
    return Space(
        layers=tuple(layers),
        groups=tuple(Group(name=name, width=width, layers=tied[name]) for name, width in groups.items()),
        units=(*units, *single),
    )
