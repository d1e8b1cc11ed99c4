"""How many of timm's models can be cut, and whether every student is right.

    pip install --no-deps torchvision==0.28.0 timm==1.0.31
    python -m benchmarks.timm_coverage --entries 500 --out runs/timm.jsonl [--limit 300] [--only GLOB]

The smallest entry of each family comes first, then the second smallest of each, and so on. Each entry is analysed in a
process of its own with a time limit, on random weights (those that start as zero or one are perturbed, so that
nothing is hidden), float64, batches of two. Then random architectures are drawn, with narrower groups, with units
removed, and with both, and each student is held against what was promised:

- it runs in evaluation mode and takes a training step,
- its parameters and MACs are the predicted ones,
- it computes what the teacher computes with the dropped channels masked (where no unit went: a mask cannot remove one),
- its state dict loads into a rebuild of the same architecture, which computes the same.

A row says how the entry ended: "right" (all draws), "nothing can shrink", "refused" (with the library's reason),
"wrong" (with what differed), "crashed" (an error that is no answer), "timm" (it cannot be made or run at any size),
"time" or "memory". The command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import random
import resource
import statistics
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor, nn

from benchmarks.limited import limited
from tests.support.third_party import library
from understudy.core.architecture import Architecture, Space
from understudy.core.errors import MachineError, UnderstudyError
from understudy.core.memory import out_of_memory
from understudy.cost.predict import predict
from understudy.graph.analysis import Analysis, analyse
from understudy.surgery.build import build, rebuild
from understudy.surgery.masked import relative_error, tensors_of

_TOLERANCE = 1e-6  # relative, in float64
_SIZES = (64, 96, 128, 160, 192, 224, 256)


def main() -> None:
    """Go through the entries that have no row yet, then sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=500, help="how many of timm's entries")
    parser.add_argument("--draws", type=int, default=6, help="random architectures of each")
    parser.add_argument("--limit", type=float, default=300, help="processor seconds of each")
    parser.add_argument("--only", default="*", help="entries whose names match this pattern")
    parser.add_argument("--again", action="store_true", help="measure rows anew that are not right")
    parser.add_argument("--out", type=Path, default=Path("runs/timm.jsonl"), help="the rows, one JSON object a line")
    parser.add_argument("--memory", type=float, default=3.0, help="GiB of each")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rows: dict[str, dict[str, Any]] = {row.pop("model"): row for row in map(json.loads, lines)}
    library("timm")
    for name in ordered(options.out.with_suffix(".order.json"))[: options.entries]:
        done = name in rows and not (options.again and rows[name]["outcome"] not in ("right", "timm"))
        if done or not fnmatch.fnmatch(name, options.only):
            continue
        rows[name] = row_of(name, options.draws, options.limit, options.memory)
        with options.out.open("a") as file:
            file.write(json.dumps({"model": name, **rows[name]}) + "\n")
        print(line(name, rows[name]), flush=True)
    show({name: row for name, row in rows.items() if fnmatch.fnmatch(name, options.only)})


def ordered(cache: Path) -> list[str]:
    """Return timm's entries, the smallest of each family first; sizes are kept in `cache`."""
    timm = library("timm")
    if not cache.exists():
        families = defaultdict(list)
        for module in timm.list_modules():
            for name in timm.list_models(module=module):
                try:
                    with torch.device("meta"):
                        size = sum(p.numel() for p in timm.create_model(name).parameters())
                except Exception:
                    size = sys.maxsize
                families[module].append((size, name))
        ranked = [(place, *entry) for entries in families.values() for place, entry in enumerate(sorted(entries))]
        cache.write_text(json.dumps(sorted(ranked)))
    return [name for _, _, name in json.loads(cache.read_text())]


def row_of(name: str, draws: int, limit: float, memory: float) -> dict[str, Any]:
    """Return the row of an entry, from a process of its own."""
    late = {"outcome": "time", "reason": f"no answer within {limit:.0f} s"}
    return limited(_measured, name, draws, memory, limit=limit) or late


def _measured(name: str, draws: int, memory: float) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    most = int(memory * 2**30)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    try:
        found = made(name)
    except Exception as error:
        return {"outcome": "timm", "reason": said(error)}
    try:
        return {"outcome": "timm", "reason": "no size of image works"} if found is None else audit(*found, draws)
    except Exception as error:
        return {"outcome": "memory" if is_memory(error) else "crashed", "reason": said(error)}
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)  # the answer is sent by a thread, which needs some too


def is_memory(error: BaseException) -> bool:
    """Return whether an error says that memory did not suffice."""
    return isinstance(error, MachineError) or out_of_memory(error)


def made(name: str) -> tuple[nn.Module, Tensor] | None:
    """Return the model in float64 and a batch of the smallest images that it takes."""
    timm = library("timm")
    wanted = timm.get_pretrained_cfg(name)
    channels, side = (wanted.input_size[0], wanted.input_size[-1]) if wanted else (3, 224)
    for size in [s for s in _SIZES if s < side] + [side]:
        x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for arguments in ({"img_size": size}, {}):
            try:
                model = timm.create_model(name, pretrained=False, **arguments).double().eval()
                with torch.no_grad():
                    if all(bool(torch.isfinite(t).all()) for t in tensors_of(model(x))):
                        return perturbed(model).train().eval(), x  # which empties what was cached of the weights
            except Exception:
                continue
    return None


def perturbed(model: nn.Module) -> nn.Module:
    """Return the model with noise on whatever starts as a constant, so that no branch is silent."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.numel() > 1 and float(tensor.std()) < 1e-3:
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_(0.5 * noise if float(tensor.abs().max()) > 0.5 else 0.2 * noise - 0.1)
    return model


def audit(model: nn.Module, x: Tensor, draws: int) -> dict[str, Any]:
    """Return the row of a network."""
    start = time.process_time()
    try:
        analysis = analyse(model, x)
        space = analysis.space
    except MachineError:
        raise
    except UnderstudyError as error:
        return {"outcome": "refused", "reason": said(error)}
    row: dict[str, Any] = {
        "image": x.shape[-1],
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.process_time() - start, 2),
        "share": round(analysis.shrinkable, 4),
        "groups": len(space.groups),
        "units": len(space.units),
        "frozen": Counter(f.reason for f in space.frozen).most_common(4),
    }
    if not space.groups and not space.units:
        return {**row, "outcome": "nothing can shrink"}
    for seed in range(draws):
        architecture = drawn(space, seed)
        problem = wrong(analysis, architecture, x)
        if problem is not None:
            return {**row, "outcome": "wrong", "reason": problem, "architecture": json.loads(architecture.to_json())}
    return {**row, "outcome": "right"}


def drawn(space: Space, seed: int) -> Architecture:
    """Return a random architecture: every third has widths alone, every third units alone."""
    rng = random.Random(seed)
    widths = {g.name: rng.choice(g.legal_widths()) for g in space.groups if rng.random() < 0.7}
    chance = rng.choice((0.05, 0.2, 0.5))
    removed = {u.name for u in space.units if rng.random() < chance}
    return space.architecture(widths={} if seed % 3 == 1 else widths, removed=() if seed % 3 == 0 else removed)


def wrong(analysis: Analysis, architecture: Architecture, x: Tensor) -> str | None:
    """Return what is wrong with a student, None if nothing; one that is refused with a reason is not wrong."""
    try:
        cost = predict(analysis, architecture)
    except UnderstudyError:
        return None
    try:
        student = build(analysis, architecture)
        if (built := sum(p.numel() for p in student.parameters())) != cost.parameters:
            return f"{cost.parameters} parameters predicted, {built} built"
        with torch.no_grad():
            outputs = list(tensors_of(student(x)))
        if not architecture.removed and not architecture.kernels:
            error = relative_error(analysis, architecture, student, x)
            if not error <= _TOLERANCE:
                return f"differs from the masked teacher by {error:.1e}"
        again = rebuild(analysis, architecture, student.state_dict())
        with torch.no_grad():
            if not all(_same(a, b) for a, b in zip(outputs, tensors_of(again(x)), strict=True)):
                return "computes something else after it was saved and loaded"
        student.train()
        loss = sum((t.square().mean() for t in tensors_of(student(x)) if t.requires_grad), torch.zeros(()))
        if loss.requires_grad:
            loss.backward()
    except UnderstudyError as error:
        return f"its cost is predicted but it cannot be built: {said(error)}"
    except Exception as error:
        if is_memory(error):
            raise
        return f"fails: {said(error)}"
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether two outputs are equal; random weights without norms can end in the same NaN."""
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def said(error: BaseException) -> str:
    """Return an error's class and the first line of its text."""
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}"


def line(name: str, row: dict[str, Any]) -> str:
    """Return a row as text."""
    share = f"{row['share']:7.1%} {row['seconds']:7.2f}s" if "share" in row else ""
    return f"{name:42}{row['outcome']:20}{share}  {row.get('reason', '')}"


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Print how the entries ended."""
    outcomes = Counter(row["outcome"] for row in rows.values())
    print("\n" + ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()))
    known = [row for row in rows.values() if "share" in row]
    if known:
        share, seconds = (statistics.median(row[key] for row in known) for key in ("share", "seconds"))
        print(f"share that can shrink {share:.1%}, analysis {seconds:.2f} s (medians)")


if __name__ == "__main__":
    main()
