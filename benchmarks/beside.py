"""What each tool makes of timm's networks: this library beside torch-pruning and torch-kirigami.

    pip install --no-deps torchvision==0.28.0 timm==1.0.31 torch-pruning==1.6.1 torch-kirigami==0.2.1
    python -m benchmarks.beside --entries 60 --out runs/beside.jsonl [--limit 90] [--only GLOB]

The list is that of `timm_coverage`, the smallest entry of each family first, with the same networks (random weights,
float64) and images. Each tool is asked for half of the channels of whatever it can prune, the classifier's outputs
excepted, as its own README does it:

- understudy: every group at the legal width next to half of its own, uniform;
- torch-pruning: `BasePruner`, magnitude of groups, `pruning_ratio=0.5`; heads as in its script for timm, which
  also turns fused attention off and tells each attention its sizes afterwards;
- torch-kirigami: `Greedy(GroupMagnitude(p=2))`, `ChannelRatio(0.5)` on the axes of `discover_candidates`, offered in
  quarters (one channel at a time, as by default, took more than a minute for the smallest ResNet); no activation works
  in place, as its guide asks; where it says that half cannot be reached, it is asked for what it says it reached.

A row says how it ended: "runs" (what came out has fewer parameters, takes batches of two and of three, gives outputs of
the teacher's shapes, and takes a backward pass), "nothing removed", "broken" (it does not run, or gives other shapes),
"refused" (an error class of the tool's own, with its reason), "crashed" (any other error), "time", "memory". Whether
the outputs are right can be checked for this library alone ("right"): the student equals the teacher with the dropped
channels multiplied by zero. The others offer no such reference. `removed` is the share of the parameters that went,
`shrunk` the share that lies in tensors that got smaller. The command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import re
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.limited import limited
from benchmarks.timm_coverage import is_memory, made, ordered, said
from tests.support.third_party import library
from understudy.core.errors import UnderstudyError
from understudy.graph.analysis import analyse
from understudy.surgery.build import build
from understudy.surgery.masked import relative_error, tensors_of

_TOLERANCE = 1e-6  # relative, in float64


def main() -> None:
    """Go through the entries and tools that have no row yet, then sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=60, help="how many of timm's entries")
    parser.add_argument("--limit", type=float, default=90, help="processor seconds of each entry and tool")
    parser.add_argument("--only", default="*", help="entries whose names match this pattern")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--out", type=Path, default=Path("runs/beside.jsonl"), help="the rows, one JSON object a line")
    parser.add_argument("--memory", type=float, default=3.0, help="GiB of each")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["model"], row["tool"]) for row in rows}
    library("timm")
    for name in ordered(options.out.with_suffix(".order.json"))[: options.entries]:
        for tool in options.tools if fnmatch.fnmatch(name, options.only) else ():
            if (name, tool) in done:
                continue
            late = {"outcome": "time", "reason": f"no answer within {options.limit:.0f} s"}
            row = limited(_measured, name, tool, options.memory, limit=options.limit) or late
            rows.append({"model": name, "tool": tool, **row})
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(line(rows[-1]), flush=True)
    for tool in options.tools:
        show(tool, [row for row in rows if row["tool"] == tool])


def _measured(name: str, tool: str, memory: float) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    import_module("timm.layers").set_fused_attn(tool != "torch-pruning")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30), before[1]))
    try:
        found = made(name)
        return {"outcome": "timm", "reason": "no size of image works"} if found is None else _tried(tool, *found)
    except Exception as error:
        return {"outcome": "memory" if is_memory(error) else "crashed", "reason": said(error)}
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _tried(tool: str, teacher: nn.Module, x: Tensor) -> dict[str, Any]:
    prune, own = TOOLS[tool]
    whole = {name: p.numel() for name, p in teacher.named_parameters()}
    with torch.no_grad():
        shapes = [t.shape[1:] for t in tensors_of(teacher(x))]
    start = time.process_time()
    try:
        pruned, error = prune(copy.deepcopy(teacher) if tool != "understudy" else teacher, x)
    except Exception as failure:
        if is_memory(failure):
            raise
        kind = "refused" if isinstance(failure, own()) else "crashed"
        return {"outcome": kind, "reason": said(failure), "seconds": round(time.process_time() - start, 2)}
    row: dict[str, Any] = {"seconds": round(time.process_time() - start, 2)}
    sizes, total = {name: p.numel() for name, p in pruned.named_parameters()}, sum(whole.values())
    row["removed"] = round(1 - sum(sizes.values()) / total, 4)
    row["shrunk"] = round(sum(n for name, n in whole.items() if sizes.get(name, 0) < n) / total, 4)
    try:
        _run(pruned, x, shapes)
    except Exception as failure:
        if is_memory(failure):
            raise
        return {**row, "outcome": "broken", "reason": said(failure)}
    if error is not None and not error <= _TOLERANCE:
        return {**row, "outcome": "wrong", "reason": f"differs from the masked teacher by {error:.1e}"}
    known = "runs" if error is None else "right"
    return {**row, "outcome": known if row["removed"] else "nothing removed"}


def _run(network: nn.Module, x: Tensor, shapes: list[torch.Size]) -> None:
    for batch in (x, torch.cat([x, x[:1]])):
        outputs = list(tensors_of(network.eval()(batch)))
        if [t.shape for t in outputs] != [(len(batch), *shape) for shape in shapes]:
            raise ValueError("outputs of other shapes than the teacher's")
    sum((t.square().mean() for t in outputs), torch.zeros(())).backward()


def _understudy(teacher: nn.Module, x: Tensor) -> tuple[nn.Module, float | None]:
    analysis = analyse(teacher, x)
    widths = {g.name: min(g.legal_widths(), key=lambda w: abs(2 * w - g.width)) for g in analysis.space.groups}
    architecture = analysis.space.architecture(widths=widths)
    student = build(analysis, architecture)
    return student, relative_error(analysis, architecture, student, x)


def _torch_pruning(network: nn.Module, x: Tensor) -> tuple[nn.Module, None]:
    tp: Any = import_module("torch_pruning")
    classes: Any = getattr(network, "num_classes", None)
    sizes = ((m, getattr(m, "out_features", getattr(m, "out_channels", None))) for m in network.modules())
    ignored = [m for m, size in sizes if isinstance(m, nn.Linear | nn.Conv2d) and size == classes]
    attentions: list[tuple[Any, Any]] = [
        (m, next(getattr(m, name) for name in ("qkv", "qkv_proj") if isinstance(getattr(m, name, None), nn.Module)))
        for m in network.modules()
        if hasattr(m, "num_heads") and any(isinstance(getattr(m, n, None), nn.Module) for n in ("qkv", "qkv_proj"))
    ]
    pruner = tp.pruner.BasePruner(
        network,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        num_heads={fused: attention.num_heads for attention, fused in attentions},
        ignored_layers=ignored,
    )
    pruner.step()
    for attention, fused in attentions:
        attention.num_heads = pruner.num_heads[fused]
        attention.head_dim = fused.out_features // (3 * attention.num_heads)
        attention.attn_dim = fused.out_features // 3
    return network, None


def _torch_kirigami(network: nn.Module, x: Tensor) -> tuple[nn.Module, None]:
    tk, pruning = import_module("torch_kirigami"), import_module("torch_kirigami.pruning")
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    pruner = pruning.Pruner(network, graph=tk.DependencyGraph.build(network, args=(x,)))
    axes = pruner.discover_candidates().channel_axes
    space = pruning.CandidateSpace(tuple(c for i, axis in enumerate(axes) for c in _quarters(pruning, i, axis)), axes)
    strategy = pruning.Greedy(pruning.GroupMagnitude(p=2))
    try:
        return pruner.prune(space, budget=pruning.ChannelRatio(0.5), strategy=strategy)[0], None
    except pruning.PlanningError as error:
        reached = re.search(r"remaining=\(([\d, ]+)\)", str(error))
        if reached is None:
            raise
        counts = tuple(int(count) for count in reached[1].replace(" ", "").strip(",").split(","))
        return pruner.prune(space, budget=pruning.ChannelCount(counts, axes), strategy=strategy)[0], None


def _quarters(pruning: Any, index: int, axis: Any) -> Iterator[Any]:
    """Yield candidates of adjacent channels: up to four of each axis."""
    width = axis.tensor.shape[axis.dim]
    size = max(1, -(-width // 4))
    for start in range(0, width, size):
        remove = (axis.select(range(start, min(start + size, width))),)
        yield pruning.Candidate(f"{index:04}:{start:06}", remove, axis)


def _kirigami_errors() -> tuple[type[Exception], ...]:
    tk, pruning = import_module("torch_kirigami"), import_module("torch_kirigami.pruning")
    return (import_module("torch_kirigami.errors").KirigamiError, pruning.PlanningError, tk.UnsupportedOperation)


# How each prunes a network, and the errors by which it refuses one.
TOOLS: dict[str, tuple[Callable[[nn.Module, Tensor], Any], Callable[[], Any]]] = {
    "understudy": (_understudy, lambda: UnderstudyError),
    "torch-pruning": (_torch_pruning, tuple),
    "torch-kirigami": (_torch_kirigami, _kirigami_errors),
}


def line(row: dict[str, Any]) -> str:
    """Return a row as text."""
    shares = f"{row['removed']:7.1%} {row['shrunk']:7.1%}" if "removed" in row else " " * 15
    return f"{row['model']:36}{row['tool']:15}{row['outcome']:16}{shares} {row.get('reason', '')}"


def show(tool: str, rows: list[dict[str, Any]]) -> None:
    """Print how the entries of a tool ended."""
    outcomes = ", ".join(f"{count} {name}" for name, count in Counter(r["outcome"] for r in rows).most_common())
    good = [row for row in rows if row["outcome"] in ("right", "runs")]
    print(f"{tool}: {outcomes}")
    if good:
        removed, shrunk, seconds = (statistics.median(r[key] for r in good) for key in ("removed", "shrunk", "seconds"))
        print(f"  of those that run: {removed:.1%} removed, {shrunk:.1%} in what shrank, {seconds:.2f} s (medians)")


if __name__ == "__main__":
    main()
