"""Which models each tool can cut, and how fast: this library beside torch-pruning.

    pip install --no-deps torchvision==0.28.0 timm==1.0.31 torch-pruning==1.6.1
    python benchmarks/coverage.py [MODEL ...] [--draws 20] [--limit 120] [--out coverage.json]

Per model and tool, in a process of its own with a time limit: the share of random width decisions that give
a network which runs, the share of the parameters in layers that can shrink, seconds to analyse, seconds to
build one student, and for this library architectures costed per second. Weights are random, one thread. Times are
processor seconds of the process, so that other work on the machine counts little, and each tool has seen a small
network before. Rows that FILE of --out has already are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor, nn

from benchmarks.limited import limited
from tests.support.third_party import MODELS, Model, library
from understudy.cost.predict import predict_many
from understudy.graph.analysis import analyse
from understudy.surgery.build import build

TOOLS = ("understudy", "torch-pruning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names; all by default")
    parser.add_argument("--draws", type=int, default=20, help="random width decisions per model")
    parser.add_argument("--limit", type=float, default=120, help="processor seconds per model and tool")
    parser.add_argument("--tools", nargs="*", default=TOOLS, choices=TOOLS)
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(options.out.read_text()) if options.out and options.out.exists() else []
    for name in ("torchvision", "timm"):
        library(name)
    known = {(row["model"], row["tool"]): row for row in rows}
    print(f"{'model':24}{'tool':15}{'runs':>7}{'share':>8}{'analyse':>9}{'build':>9}{'/copy':>7}{'costed/s':>10}")
    for model in MODELS:
        for tool in options.tools if not options.models or model.name in options.models else ():
            if (model.name, tool) not in known:
                late = {"error": f"no answer within {options.limit:.0f} s"}
                row = limited(_measured, model, tool, options.draws, limit=options.limit) or late
                rows.append({"model": model.name, "tool": tool, **row})
                known[model.name, tool] = rows[-1]
                if options.out:
                    options.out.write_text(json.dumps(rows, indent=1) + "\n")
            print(_line(known[model.name, tool]), flush=True)
    for tool in options.tools:
        of_tool = [row for row in rows if row["tool"] == tool]
        good = sum(row.get("runs") == 1 for row in of_tool)
        times = [row["analyse"] for row in of_tool if "analyse" in row]
        if times:
            print(f"{tool}: all draws of {good} of {len(of_tool)} models run; analysis {_spread(times)}")


def _spread(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s in the median, {max(times):.2f} s at most"


def _line(row: dict[str, Any]) -> str:
    head = f"{row['model']:24}{row['tool']:15}"
    if "error" in row:
        return head + row["error"]
    costed = f"{row['costed']:10.0f}" if "costed" in row else ""
    figures = f"{row['runs']:7.0%}{row['share']:8.1%}{row['analyse']:8.2f}s{row['build']:8.3f}s{row['ratio']:7.1f}"
    return head + figures + costed


def _measured(model: Model, tool: str, draws: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    teacher = model.create()
    x = torch.randn(2, 3, model.size, model.size, generator=torch.Generator().manual_seed(0))
    measured = _ours if tool == "understudy" else _theirs
    try:
        measured(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)), x, 1)
        return measured(teacher, x, draws)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"}


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def _runs(student: nn.Module, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            student(x)
    except Exception:
        return False
    return True


def _ours(teacher: nn.Module, x: Tensor, draws: int) -> dict[str, Any]:
    seconds, analysis = _timed(lambda: analyse(teacher, x))
    more, space = _timed(lambda: analysis.space)
    plans = [_drawn(space, seed) for seed in range(1000)]
    built = [_timed(lambda plan=plan: build(analysis, plan)) for plan in plans[:draws]]
    predict_many(analysis, plans[:1])
    costing, _ = _timed(lambda: predict_many(analysis, plans))
    build_seconds = statistics.median(s for s, _ in built)
    return {
        "runs": sum(_runs(student, x) for _, student in built) / draws,
        "share": analysis.shrinkable,
        "analyse": seconds + more,
        "build": build_seconds,
        "ratio": build_seconds / _copying(teacher),
        "costed": len(plans) / costing,
    }


def _drawn(space: Any, seed: int) -> Any:
    rng = random.Random(seed)
    return space.architecture(widths={g.name: rng.choice(g.legal_widths()) for g in space.groups})


def _copying(teacher: nn.Module) -> float:
    return statistics.median(_timed(lambda: copy.deepcopy(teacher))[0] for _ in range(5))


def _theirs(teacher: nn.Module, x: Tensor, draws: int) -> dict[str, Any]:
    """The defaults, but for a random ratio per layer; the classifier keeps its outputs."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph()
    seconds, _ = _timed(lambda: graph.build_dependency(copy.deepcopy(teacher), example_inputs=x))
    built = [_timed(lambda seed=seed: _pruned(torch_pruning, teacher, x, seed)) for seed in range(draws)]
    half = _pruned(torch_pruning, teacher, x, None)
    sizes = {name: p.numel() for name, p in half.named_parameters()}
    shrunk = sum(p.numel() for name, p in teacher.named_parameters() if sizes.get(name, 0) < p.numel())
    build_seconds = statistics.median(s for s, _ in built)
    return {
        "runs": sum(_runs(student, x) for _, student in built) / draws,
        "share": shrunk / sum(p.numel() for p in teacher.parameters()),
        "analyse": seconds,
        "build": build_seconds,
        "ratio": build_seconds / _copying(teacher),
    }


def _pruned(torch_pruning: Any, teacher: nn.Module, x: Tensor, seed: int | None) -> nn.Module:
    student, rng = copy.deepcopy(teacher), random.Random(seed)
    layers = [m for m in student.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    ratios = {} if seed is None else {layer: rng.uniform(0, 0.9) for layer in layers}
    importance = torch_pruning.importance.MagnitudeImportance()
    pruner = torch_pruning.pruner.MetaPruner(
        student, x, importance, pruning_ratio=0.5, pruning_ratio_dict=ratios, ignored_layers=layers[-1:]
    )
    pruner.step()
    return student


if __name__ == "__main__":
    main()
