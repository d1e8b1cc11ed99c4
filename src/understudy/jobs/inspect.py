"""What a teacher allows, before any hour is spent: layers, units, groups, what is frozen and why, what it costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Group as Together
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from understudy.config.methods import N2N
from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Space
from understudy.core.errors import ConfigError, ModelError, SurgeryError
from understudy.core.evaluation import Cost
from understudy.core.figures import amount, share
from understudy.core.files import read_text
from understudy.cost.predict import LayerCost, per_layer, predict
from understudy.graph.analysis import Analysis, analyse
from understudy.jobs.task import computed, proved
from understudy.jobs.teach import load_teacher
from understudy.methods.archcomp.embedding import predicted_score
from understudy.methods.feasibility import smallest
from understudy.models.card import TeacherCard
from understudy.models.spec import ModelSpec
from understudy.models.weights import load_into, read_weights
from understudy.proof.prove import Proof
from understudy.runs.folder import Run


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is known of an architecture before it is trained."""

    architecture: str  # its digest
    cost: Cost  # exact
    score: float | None = None  # on validation after a candidate's training, 0..1; None: no run was asked
    deviation: float | None = None  # standard deviation of what the score may be


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """All that `understudy inspect` shows."""

    model: str
    input: tuple[int, ...]  # (C, H, W)
    space: Space
    costs: Mapping[str, LayerCost]
    full: Cost
    fewest_parameters: Cost  # of the architecture with the fewest
    fewest_macs: Cost
    shrinkable: float  # share of the parameters in layers whose width can shrink
    computed: tuple[str, ...] = ()  # weights that the model computes; students have them as plain ones
    proof: Proof | None = None  # None: not asked for
    forecast: Forecast | None = None

    @property
    def holds(self) -> bool:
        """Whether every student that was checked agrees with the masked network."""
        return self.proof is None or not self.proof.refused

    def to_json(self) -> str:
        """Return it as JSON text for machines."""
        fields: dict[str, Any] = {
            "model": self.model,
            "input": list(self.input),
            "cost": asdict(self.full),
            "fewest_parameters": asdict(self.fewest_parameters),
            "fewest_macs": asdict(self.fewest_macs),
            "shrinkable": self.shrinkable,
            "computed": list(self.computed),
            "costs": {name: asdict(cost) for name, cost in self.costs.items()},
            **json.loads(self.space.to_json()),
        }
        if self.forecast is not None:
            fields["forecast"] = asdict(self.forecast)
        if self.proof is not None:
            fields["proof"] = self.proof.to_dict()
        return json.dumps(fields, indent=1)


def inspect_model(
    name: str,
    *,
    weights: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    size: int | None = None,
    channels: int | None = None,
    check: bool = False,
    architecture: Path | None = None,
    forecast_by: Path | None = None,
    progress: bool = False,
    trust_code: bool = False,
) -> Inspection:
    """Analyse a model by its name.

    Args:
        name: zoo:NAME, torchvision:NAME, timm:NAME, FILE.py:FACTORY, or the folder of a teacher, which has its own
            weights and arguments.
        weights: a file to load into it; None for weights at random, which an inspection can do with.
        arguments: of the model's factory.
        size: height and width of an input image, pixels; None for the teacher's, 32 for the zoo and 224 for others.
        channels: of an input image; None for the teacher's and 3 for others.
        check: build students and hold them against the masked network, as a compression does before it starts.
        architecture: folder of a student or JSON of an architecture, whose cost is shown as well.
        forecast_by: run of architecture compression that predicts its score.
        progress: show how far the checks are.
        trust_code: run the Python file in a teacher's folder that makes it.

    Raises:
        ArchitectureError: the architecture is none of this model.
        ConfigError: there is no such file, or the run cannot say anything about this model.
        ModelError: there is no such model, or the weights do not fit.
        TraceError: it cannot be traced, or does not take such images.
    """
    if (size is not None and size < 1) or (channels is not None and channels < 1):
        raise ModelError(f"an image must have pixels and channels, but got size {size} and {channels} channels")
    module, shape = _subject(name, weights, arguments or {}, channels, trust_code)
    shape = (channels or shape[0], size or shape[1], size or shape[2])
    analysis = analyse(module, torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
    known = None if architecture is None else forecast(analysis, architecture, forecast_by)
    if architecture is None and forecast_by is not None:
        raise ConfigError("forecast_by predicts the score of an architecture, but no architecture was given")
    return replace(inspect_analysis(analysis, name=name, check=check, progress=progress), forecast=known)


def _subject(
    name: str, weights: Path | None, arguments: Mapping[str, Any], channels: int | None, trust_code: bool
) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a network and the usual shape of its images."""
    folder = Path(name)
    if not folder.is_dir():
        with chdir("."):  # a model's file may go elsewhere, but what a caller typed is seen from here
            module = ModelSpec.fitting(name, channels or 3, None, arguments).build()
        if weights is not None:
            load_into(module, read_weights(weights), source=str(weights))
        side = 32 if name.startswith("zoo:") else 224
        return module, (3, side, side)
    if weights is not None or arguments:
        raise ConfigError("a teacher folder says all that itself, but weights or arguments were given as well")
    teacher = load_teacher(folder, trust_code=trust_code)
    channels, height, width = TeacherCard.read(folder).input
    return teacher.module, (channels, height, width)


def forecast(analysis: Analysis, path: Path, run: Path | None) -> Forecast:
    """Return what an architecture on disk costs and, by a run of architecture compression, how good it may be.

    Raises:
        ArchitectureError, ConfigError, SurgeryError: as `inspect_model`; or the architecture cannot be built.
    """
    file = path / "architecture.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"an architecture must be a student's folder or a JSON file, but there is no {file}")
    architecture = Architecture.from_json(analysis.space, read_text(file, ConfigError))
    known = Forecast(architecture=architecture.digest, cost=predict(analysis, architecture))
    if run is None:
        return known
    source = Run(run)
    if not (source.policy.is_file() and source.settings.method.name == "archcomp"):
        raise ConfigError(f"a forecast must be by a run of the method 'archcomp' that has fitted, but {run} is none")
    teacher = source.recall("teacher")
    assert teacher is not None, "a run has measured its teacher before it searches"
    widths, policy = source.settings.widths, read_weights(source.policy)
    ((expected, deviation),) = predicted_score(policy, analysis.space, widths, [architecture])
    scale = teacher["score"]
    return replace(known, score=expected * scale, deviation=deviation * scale)


def inspect_analysis(analysis: Analysis, *, name: str, check: bool = False, progress: bool = False) -> Inspection:
    """Return what an analysis of a model that takes one image batch found."""
    proof = None
    if check:
        analysis, proof = proved(analysis, progress=progress)
    space, example = analysis.space, analysis.trace.example
    assert isinstance(example, Tensor)

    def predicted(architecture: Any) -> Cost | None:
        try:
            return predict(analysis, architecture)
        except SurgeryError:
            return None

    method, widths = N2N(), Widths(round_to=1, min_width=1)
    return Inspection(
        model=name,
        input=tuple(example.shape[1:]),
        space=space,
        costs=per_layer(analysis, space.full),
        full=predict(analysis, space.full),
        fewest_parameters=smallest(space, method, widths, predicted, "parameters")[1],
        fewest_macs=smallest(space, method, widths, predicted, "macs")[1],
        shrinkable=analysis.shrinkable,
        computed=analysis.folded,
        proof=proof,
    )


def inspection_tables(found: Inspection) -> Together:
    """Return the tables of an inspection."""
    tables: list[Any] = [_layers(found), _units(found), _groups(found), _frozen(found)]
    if found.proof is not None and found.proof.refused:
        tables.append(_refused(found.proof))
    return Together(*tables, _summary(found))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        numeric = column in ("outputs", "width", "step", "parameters", "MACs", "alive", "error")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    return table


def _layers(found: Inspection) -> Table:
    table = _table("Layers, in order", "name", "type", "kernel", "outputs", "parameters", "MACs", "alive", "group")
    for layer in found.space.layers:
        cost = found.costs[layer.name]
        kernel = f"{layer.kernel}, stride {layer.stride}" if layer.kernel else ""
        table.add_row(
            *(layer.name, layer.type, kernel, str(layer.outputs or "")),
            *(amount(cost.parameters), amount(cost.macs), f"{amount(cost.activation_bytes)}B", layer.group or ""),
        )
    return table


def _units(found: Inspection) -> Table:
    table = _table("Units that can be removed", "name", "kind", "layers")
    for unit in found.space.units:
        if unit.kind != "layer":
            layers = unit.layers if len(unit.layers) <= 4 else (*unit.layers[:3], f"and {len(unit.layers) - 3} more")
            table.add_row(unit.name, unit.kind, ", ".join(layers))
    return table


def _groups(found: Inspection) -> Table:
    table = _table("Groups of channels that can shrink", "name", "width", "step", "tied layers", "student")
    for group in found.space.groups:
        student = Text(f"plain graph: {group.plain}" if group.plain else "copy")
        table.add_row(group.name, str(group.width), str(group.step), ", ".join(group.layers), student)
    return table


def _frozen(found: Inspection) -> Table:
    table = _table("Channels that keep their width", "name", "width", "reason", "line")
    for frozen in found.space.frozen:
        table.add_row(Text(frozen.name), str(frozen.width), Text(frozen.reason), Text(frozen.source))
    return table


def _refused(proof: Proof) -> Table:
    table = _table("Left as it is, because students were wrong", "kind", "name", "reason")
    for found in proof.refused:
        table.add_row(found.kind, found.name, Text(found.reason))
    return table


def _summary(found: Inspection) -> str:
    removable = sum(unit.kind != "layer" for unit in found.space.units)
    alone = len(found.space.units) - removable
    cost, few, quick = found.full, found.fewest_parameters, found.fewest_macs
    lines: tuple[str, ...] = (
        f"{found.model} on images of {' x '.join(map(str, found.input))}: {amount(cost.parameters)} parameters, "
        f"{amount(cost.macs)} MACs, {amount(cost.peak_activation_bytes)}B of activations at the peak",
        f"within reach, with single channels: {amount(few.parameters)} to {amount(cost.parameters)} parameters, "
        f"{amount(quick.macs)} to {amount(cost.macs)} MACs",
        f"{share(found.shrinkable)} of the parameters lie in layers whose width can shrink; {removable} units can be "
        f"removed, and {alone} single layers where the widths agree",
    )
    if found.computed:
        lines = (*lines, computed(found.computed))
    if found.forecast is not None:
        known = found.forecast
        line = f"{known.architecture}: {amount(known.cost.parameters)} parameters, {amount(known.cost.macs)} MACs"
        if known.score is not None and known.deviation is not None:
            line += f", {share(known.score)} ± {share(known.deviation)} predicted on validation"
        lines = (*lines, line)
    if found.proof is not None:
        lines = (*lines, found.proof.summary)
    return "\n".join(lines)
