"""DECORE beside uniform width and torch-pruning (group magnitude): the same parameters, the same training steps.

    understudy teach zoo:vgg16 --arguments width=16 --data data/cifar10 --out teachers/vgg16 ...
    PYTHONPATH=where/torch_pruning/is python benchmarks/decore.py teachers/vgg16 --data data/cifar10 \
        --out results/vgg16 --ratios 2 4 10 --seeds 0 1 2 --agent-epochs 6 --final-epochs 6

All methods start from the same teacher and take the same number of steps on the same views in the same batches. DECORE
takes a part of them with its agents; the others are cut first and train in one schedule. `--methods decore_macs` asks
for as many times fewer MACs as well. Every training that is finished is kept, and one that was interrupted goes on, so
the command can be repeated. `--importance` adds the paper's figure: channels removed by ascending and by descending
weight of their agents, without any training.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from understudy.config.job import Compression
from understudy.config.methods import Decore
from understudy.config.training import Augmentation, Device, Final, Training
from understudy.core.architecture import Architecture
from understudy.core.files import write_whole
from understudy.core.goal import Goal
from understudy.cost import predict as cost
from understudy.data import Data
from understudy.data.split import digest_of
from understudy.graph.analysis import analyse
from understudy.jobs.compress import run_task
from understudy.jobs.task import Task
from understudy.jobs.teach import load_teacher
from understudy.models.weights import load_into, read_weights
from understudy.runs.folder import Run
from understudy.surgery import build as surgery
from understudy.training.evaluator import Evaluator
from understudy.training.loop import Compute, accuracy, choose_compute, recalibrate, train

_FIGURE = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def main() -> None:
    options = _options()
    data = _data(options)
    device = Device(threads=1)
    settings = Compression(
        augmentation=Augmentation(crop=options.crop, flip=options.flip), device=device, final=_final(options)
    )
    task = Task.of(load_teacher(options.teacher), data, settings)
    compute = choose_compute(task.teacher.module, task.example, device)
    task.teacher.module.eval()
    tested = _tested(task.teacher.module, task, compute)
    print(f"teacher: {task.cost.parameters:,} parameters, {task.cost.macs / 1e6:.1f}M MACs, test {100 * tested:.2f}%")
    found: dict[tuple[float, str], list[dict[str, Any]]] = defaultdict(list)
    for seed in options.seeds:
        for ratio in options.ratios:
            for name in options.methods:
                place = options.out / f"{name}-{ratio:g}x-{seed}"
                seeded = replace(task, settings=replace(settings, seed=seed))
                made = _kept(place, partial(METHODS[name], seeded, ratio, place, options, compute))
                found[ratio, name].append(made)
                print(_line(name, ratio, seed, made), flush=True)
    for (ratio, name), results in sorted(found.items()):
        tests = [100 * r["test"] for r in results]
        spread = f" +- {statistics.stdev(tests):.2f}" if len(tests) > 1 else ""
        parameters, macs = (statistics.mean(r[what] for r in results) for what in ("parameters", "macs"))
        print(
            f"{ratio:g}x {name}: {statistics.mean(tests):.2f}{spread}, {parameters:,.0f} parameters, {macs / 1e6:.2f}M"
        )
    if options.importance is not None:
        _importance(task, options.importance, compute)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ratios", type=float, nargs="+", default=[2.0, 4.0, 10.0], help="times fewer parameters")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS)[:3])
    parser.add_argument("--agent-epochs", type=int, default=6)
    parser.add_argument("--final-epochs", type=int, default=6)
    parser.add_argument("--examples", type=int, default=0, help="training examples, drawn by seed 0; 0: all")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--loss", default="ce")
    parser.add_argument("--lr", type=float, default=0.003, help="peak rate of one-cycle trainings")
    parser.add_argument("--crop", type=int, default=4)
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--decore", nargs="*", default=[], help="settings of Decore, NAME=VALUE")
    parser.add_argument("--importance", type=Path, help="a finished run of DECORE, for the figure")
    return parser.parse_args()


def _data(options: argparse.Namespace) -> Data:
    data = Data.open(options.data)
    if not options.examples:
        return data
    train = data.train.subset(options.examples, 0)
    return replace(data, train=train, digest=digest_of(train, data.val, data.test, settings=(data.mean, data.std)))


def _final(options: argparse.Namespace) -> Final:
    training = Training(epochs=options.final_epochs, lr=options.lr, loss=options.loss, batch_size=options.batch)
    return Final(students=1, training=training, views=options.agent_epochs + options.final_epochs)


def _kept(place: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was found before, or find it."""
    file = place.with_name(f"{place.name}.json")
    if not file.is_file():
        start = time.time()
        write_whole(file, json.dumps({**make(), "seconds": round(time.time() - start)}))
    return dict(json.loads(file.read_text()))


def _line(name: str, ratio: float, seed: int, made: dict[str, Any]) -> str:
    figures = f"{made['parameters']:,} parameters, {made['macs'] / 1e6:.2f}M MACs"
    return f"{name} {ratio:g}x seed {seed}: {figures}, test {100 * made['test']:.2f}%, {made['seconds']} s"


def decore(
    task: Task, ratio: float, place: Path, options: argparse.Namespace, compute: Compute, *, macs: bool = False
) -> dict[str, Any]:
    """Agents, then the rest of the steps; with `macs` as many times fewer MACs as parameters."""
    training = replace(
        task.settings.final.training, epochs=options.agent_epochs, lr=options.lr / 3, schedule="constant"
    )
    chosen = {name: json.loads(value) if value[:1] in "0123456789.-" else value for name, value in _pairs(options)}
    method = Decore(training=training, **chosen)
    settings = replace(task.settings, method=method, goal=Goal(params=f"{ratio}x", macs=f"{ratio}x" if macs else None))
    result = run_task(replace(task, settings=settings), place)
    return {**_sizes(result.student, task), "test": result.summary.student.test.value}


def _pairs(options: argparse.Namespace) -> list[tuple[str, str]]:
    return [tuple(text.split("=")) for text in options.decore]  # type: ignore[misc]


def uniform(task: Task, ratio: float, place: Path, options: argparse.Namespace, compute: Compute) -> dict[str, Any]:
    """One width factor for all groups, the largest that keeps the budget; channels by magnitude."""

    def narrowed(factor: float) -> Architecture:
        return task.space.architecture(widths={g.name: g.nearest(factor * g.width) for g in task.space.groups})

    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        fits = cost.predict(task.analysis, narrowed(middle)).parameters <= task.cost.parameters / ratio
        low, high = (middle, high) if fits else (low, middle)
    return _trained(surgery.build(task.analysis, narrowed(low)), task, place, options, compute)


def torch_pruning(
    task: Task, ratio: float, place: Path, options: argparse.Namespace, compute: Compute
) -> dict[str, Any]:
    """Group magnitude over all layers (Fang et al., 2023), at the smallest ratio that keeps the budget."""
    import torch_pruning as tp

    def pruned(share: float) -> nn.Module:
        model = copy.deepcopy(task.teacher.module)
        frozen = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(task.data.classes)]
        pruner = tp.pruner.BasePruner(
            model, task.example, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=share,
            global_pruning=True, ignored_layers=frozen, max_pruning_ratio=0.95,
        )  # fmt: skip
        pruner.step()
        return model

    low, high = 0.0, 0.99
    for _ in range(12):
        middle = (low + high) / 2
        fits = sum(p.numel() for p in pruned(middle).parameters()) <= task.cost.parameters / ratio
        low, high = (low, middle) if fits else (middle, high)
    return _trained(pruned(high), task, place, options, compute)


METHODS = {
    "decore": decore,
    "uniform": uniform,
    "torch_pruning": torch_pruning,
    "decore_macs": partial(decore, macs=True),
}


def _trained(
    model: nn.Module, task: Task, place: Path, options: argparse.Namespace, compute: Compute
) -> dict[str, Any]:
    """Train for as many steps as DECORE takes in all, in one schedule, and test."""
    final = task.settings.final
    epochs = options.agent_epochs + options.final_epochs
    evaluator = _evaluator(task, compute, place.parent / "logits")
    lesson = evaluator.final_lesson(final)
    outcome = train(
        model,
        lesson.split,
        replace(final.training, epochs=epochs),
        normalise=task.data.normalise,
        views=lesson.views,
        compute=compute,
        seed=task.settings.seed,
        logits=None if lesson.logits is None else lesson.logits.epoch,
        on_epoch=lambda p: print(f"  {place.name} epoch {p.epoch}/{p.epochs}, loss {p.loss:.3f}", flush=True) or True,
        checkpoint=place.with_name(f"{place.name}.checkpoint.pt"),
    )
    assert outcome.status == "ok", outcome.error
    place.with_name(f"{place.name}.checkpoint.pt").unlink(missing_ok=True)
    return {**_sizes(model, task), "test": _tested(model, task, compute)}


def _evaluator(task: Task, compute: Compute, folder: Path) -> Evaluator:
    return task.evaluator(compute, folder)


def _sizes(model: nn.Module, task: Task) -> dict[str, int]:
    known = analyse(copy.deepcopy(model).cpu().eval(), task.example)
    predicted = cost.predict(known, known.space.full)
    return {"parameters": predicted.parameters, "macs": predicted.macs}


def _tested(model: nn.Module, task: Task, compute: Compute) -> float:
    assert task.data.test is not None
    placed = compute.place(copy.deepcopy(model))
    return accuracy(placed, task.data.test, normalise=task.data.normalise, compute=compute)


def _importance(task: Task, folder: Path, compute: Compute) -> None:
    """Print the accuracy on validation images with channels removed by weight of their agents, each layer alike."""
    network = copy.deepcopy(task.teacher.module)
    load_into(network, read_weights(folder / "decore" / "network.safetensors"), source=str(folder))
    learned = analyse(network.eval(), task.analysis.trace.example)
    policy = load_file(Run(folder).policy)
    split = task.data.train.subset(min(2000, len(task.data.train)), 0)
    print("removed  ascending  descending")
    for share in _FIGURE:
        row = []
        for descending in (False, True):
            stay = {
                name: weights.argsort(descending=descending)[round(share * len(weights)) :].tolist() or [0]
                for name, weights in policy.items()
            }
            student = surgery.build(learned, task.space.architecture(channels=stay))
            student = compute.place(student)
            recalibrate(student, split, normalise=task.data.normalise, compute=compute)
            right = accuracy(student, task.data.val, normalise=task.data.normalise, compute=compute)
            row.append(f"{100 * right:8.2f}%")
        print(f"{100 * share:6.0f}%  {'  '.join(row)}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
