"""What it costs to analyse a network, to prove what is offered, and to build a student.

    pip install --no-deps torchvision==0.28.0 timm==1.0.31
    python -m benchmarks.analysis [MODEL ...] [--limit 300] [--out runs/analysis.json]

Each network has a process of its own in which a small network has been analysed and proved before, one thread, random
weights. Figures are processor seconds, so that other work on the machine counts little, and how many students the
proof checked and what it refused.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import nn

from benchmarks.limited import limited
from tests.support.third_party import library
from understudy.graph.analysis import analyse
from understudy.models import zoo
from understudy.proof.prove import prove
from understudy.surgery.build import build

ZOO = {"vgg13": 32, "resnet20": 32, "resnet56": 32, "densenet40": 32}  # and the image's side
TIMM = {"resnet18": 224, "resnet50": 224, "mobilenetv3_small_100": 224, "efficientnet_b0": 224, "convnext_atto": 224}


def main() -> None:
    """Measure each network and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*ZOO, *TIMM]
    parser.add_argument("models", nargs="*", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--limit", type=float, default=300, help="processor seconds of each")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    options = parser.parse_args()
    library("timm")
    rows = {}
    print(f"{'network':24}{'analyse':>9}{'prove':>9}{'build':>9}{'students':>10}{'refused':>9}")
    for name in options.models or known:
        row = rows[name] = limited(_measured, name, limit=options.limit) or {}
        figures = "".join(f"{row[key]:8.2f}s" for key in ("analyse", "prove", "build")) if row else " no answer in time"
        print(f"{name:24}{figures}{row.get('students', ''):>10}{row.get('refused', ''):>9}", flush=True)
    done = [row for row in rows.values() if row]
    if done:
        medians = "".join(
            f"{statistics.median(row[key] for row in done):8.2f}s" for key in ("analyse", "prove", "build")
        )
        print(f"{'median':24}{medians}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


def _measured(name: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    prove(analyse(small, torch.randn(2, 3, 8, 8)))
    teacher: nn.Module = zoo.create(name) if name in ZOO else library("timm").create_model(name)
    side = ZOO.get(name) or TIMM.get(name, 224)
    start = time.process_time()
    analysis = analyse(teacher.eval(), torch.randn(2, 3, side, side))
    space = analysis.space
    analysed = time.process_time()
    proved, proof = prove(analysis)
    done = time.process_time()
    build(proved, space.architecture(widths={g.name: g.nearest(g.width / 2) for g in proved.space.groups}))
    return {
        "analyse": analysed - start,
        "prove": done - analysed,
        "build": time.process_time() - done,
        "students": proof.students,
        "refused": len(proof.refused),
    }


if __name__ == "__main__":
    main()
