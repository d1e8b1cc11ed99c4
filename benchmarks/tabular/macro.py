"""NAS-Bench-Macro as a table: 1,944 networks that others trained three times each on CIFAR-10.

    python -m benchmarks.tabular.macro nas-bench-macro_cifar10.json    # writes macro-cifar10.npz beside this script

Source: "Prioritized Architecture Sampling with Monto-Carlo Tree Search" (Su et al., CVPR 2021), the file
data/nas-bench-macro_cifar10.json of github.com/xiusu/NAS-Bench-Macro (commit 61a2bfc, Apache-2.0). Each network was
trained alone, from scratch, for 50 epochs, and its figures are accuracies on the test split.

A network is written as eight digits, one for each block: 2 is a block of six times the channels with a 5x5 kernel, 1
one of three times the channels with a 3x3 kernel, 0 none. The teacher is 22222222, a width decides between 2 and 1, and
a block that is removed is 0. Where a stage begins, which halves the pixels, 0 is a convolution in place of the block
that no student has, so such networks are left out. Of the three trainings a search sees the first, and what it found is
judged by the other two.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.tabular import networks
from benchmarks.tabular.table import Table, all_architectures
from understudy.core.architecture import Architecture, Refused, Space
from understudy.core.evaluation import Cost, Evaluation
from understudy.cost.predict import predict
from understudy.graph.analysis import Analysis, analyse

HERE = Path(__file__).parent
IMAGES = (3, 32, 32)
BLOCKS = tuple(f"blocks.{number}" for number in range(8))
_GROUPS = {f"{block}.expansion.0" for block in BLOCKS}
_FIXED = "the networks of the table have one value of it"


def analysis() -> Analysis:
    """Return the analysis of the largest network."""
    return analyse(networks.macro().eval(), torch.zeros(2, *IMAGES))


def space_of(known: Analysis) -> Space:
    """Return what the table decides: which blocks stay, and whether a block has six or three times its channels."""
    space = known.space
    groups = [group.name for group in space.groups if group.name not in _GROUPS]
    units = [unit.name for unit in space.units if unit.name not in BLOCKS]
    kernels = [layer.name for layer in space.layers if layer.kernels]
    fixed: dict[Literal["group", "unit", "kernel"], list[str]] = {"group": groups, "unit": units, "kernel": kernels}
    part = space.without(
        Refused(kind=kind, name=name, reason=_FIXED) for kind, names in fixed.items() for name in names
    )
    return replace(part, groups=tuple(replace(group, step=group.width // 2) for group in part.groups))


def code_of(architecture: Architecture) -> str:
    """Return the eight digits of an architecture of that Space."""
    return "".join(_digit(architecture, block) for block in BLOCKS)


def _digit(architecture: Architecture, block: str) -> str:
    if block in architecture.removed:
        return "0"
    group = architecture.space.group(f"{block}.expansion.0")
    return "2" if architecture.width(group.name) == group.width else "1"


def built(known: Analysis, architecture: Architecture) -> Architecture:
    """Return the same network in the whole Space of the analysis, where three times the channels have a 3x3 kernel."""
    code = code_of(architecture)
    halved = [block for block, digit in zip(BLOCKS, code, strict=True) if digit == "1"]
    return known.space.architecture(
        removed=architecture.removed,
        widths={name: known.space.group(name).width // 2 for name in (f"{block}.expansion.0" for block in halved)},
        kernels={f"{block}.depthwise.0": 3 for block in halved},
    )


def table_of(figures: Mapping[str, Any], command: str) -> Table:
    """Return the table of what the file holds."""
    known = analysis()
    space = space_of(known)

    def trainings(architecture: Architecture) -> tuple[Evaluation, ...]:
        entry = figures[code_of(architecture)]
        cost = predict(known, built(known, architecture))
        assert (cost.parameters, cost.macs) == (entry["params"], entry["flops"]), "they counted the same network"
        return tuple(
            _evaluation(architecture, cost, accuracy / 100.0, seed) for seed, accuracy in enumerate(entry["test_acc"])
        )

    rows = tuple(trainings(architecture) for architecture in all_architectures(space))
    return Table(
        space=space,
        evaluations=tuple(first for first, *_ in rows),
        repeats=rows,
        about={
            "command": command,
            "name": "macro-cifar10",
            "network": "macro",
            "images": {"shape": list(IMAGES)},
            "source": "github.com/xiusu/NAS-Bench-Macro, commit 61a2bfc, Apache-2.0",
            "seeds": [0, 1, 2],
            "teacher": "22222222",
            "teacher_accuracy": figures["22222222"]["test_acc"][0] / 100.0,
            "data": "CIFAR-10",
            "recipe": "from scratch, 50 epochs",
        },
    )


def _evaluation(architecture: Architecture, cost: Cost, accuracy: float, seed: int) -> Evaluation:
    return Evaluation(
        architecture=architecture, teacher="22222222", data="CIFAR-10", recipe="from scratch, 50 epochs", cost=cost,
        score=round(accuracy, 6), seconds=0.0, seed=seed,
    )  # fmt: skip


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="nas-bench-macro_cifar10.json")
    file = parser.parse_args().file
    figures = json.loads(file.read_text(encoding="utf-8"))
    table_of(figures, f"python -m benchmarks.tabular.macro {file.name}").save(HERE / "macro-cifar10.npz")


if __name__ == "__main__":
    main()
