"""How much of Hugging Face's models can be cut, and whether every student is right.

    pip install --no-deps transformers==5.24.0 huggingface_hub==1.33.0 tokenizers==0.23.3 regex==2026.11.19
    python -m benchmarks.hf_coverage [MODEL ...] [--draws 10] [--out runs/hf.jsonl] [--again]

Models are made from configurations of their own, nothing is downloaded; weights are random. Each is analysed and its
Space proved (every group and unit, against the masked network, in double precision, in evaluation and training mode),
then so many students of random architectures are held against the masked network once more, with other parameters. A
line is written for each model, and models that FILE has are not measured again:

- `share` of the parameters in layers that can shrink, `seconds` of CPU to analyse,
- `back`: decisions that the analysis allowed and the proof took back,
- `wrong`: students that were offered after the proof and are wrong,
- or the `reason` why the model is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import nn

from benchmarks.limited import limited
from tests.support.hugging_face import MODELS, Pretrained
from understudy.core.architecture import Space
from understudy.core.errors import UnderstudyError
from understudy.graph.analysis import analyse
from understudy.proof.prove import prove
from understudy.proof.trial import Trials


def main() -> None:
    """Go through the models that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names; all by default")
    parser.add_argument("--draws", type=int, default=10, help="random architectures of each")
    parser.add_argument("--limit", type=float, default=300, help="processor seconds of each")
    parser.add_argument("--again", action="store_true", help="measure rows anew")
    parser.add_argument("--out", type=Path, default=Path("runs/hf.jsonl"), help="the rows, one JSON object a line")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    known = {row["model"]: row for row in rows}
    for model in MODELS:
        if options.models and model.name not in options.models:
            continue
        if model.name not in known or options.again:
            late = {"reason": f"no answer within {options.limit:.0f} s"}
            row = {"model": model.name, **(limited(_measured, model, options.draws, limit=options.limit) or late)}
            known[model.name] = row
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(_line(known[model.name]), flush=True)
    told = [row for row in known.values() if "share" in row]
    wrong = sum(bool(row["wrong"]) for row in told)
    print(f"{len(known)} models: {len(told)} can be cut, {wrong} with a wrong student")


def _line(row: dict[str, Any]) -> str:
    head = f"{row['model']:40}"
    if "share" not in row:
        return head + row["reason"]
    back = f"  {len(row['back'])} taken back" if row["back"] else ""
    wrong = f"  wrong: {row['wrong'][0]}" if row["wrong"] else ""
    counts = f"{row['groups']:4} groups, {row['plain']:3} plain,{row['units']:4} units"
    return f"{head}{row['share']:7.1%}{row['seconds']:7.2f}s  {counts}{back}{wrong}"


def _measured(model: Pretrained, draws: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    try:
        return audit(model.create(), model.inputs(), draws)
    except Exception as error:
        return {"reason": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"}


def audit(network: nn.Module, inputs: Mapping[str, Any], draws: int) -> dict[str, Any]:
    """Return the row of a network."""
    start = time.process_time()
    try:
        analysis = analyse(network, inputs)
    except UnderstudyError as error:
        return {"reason": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    space, seconds = analysis.space, time.process_time() - start
    proved, proof = prove(analysis)
    trials = Trials(proved, seed=1)
    drawn = (trials.judge(_drawn(proved.space, seed), thorough=True) for seed in range(draws))
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "share": round(proved.shrinkable, 4),
        "seconds": round(seconds, 2),
        "proof": round(time.process_time() - start - seconds, 1),
        "groups": len(space.groups),
        "plain": sum(bool(group.plain) for group in space.groups),
        "units": len(space.units),
        "students": proof.students + draws,
        "back": [f"{found.kind} {found.name}: {found.reason}" for found in proof.refused],
        "wrong": [outcome.reason for outcome in drawn if outcome.status == "fails"],
        "frozen": Counter(frozen.reason for frozen in space.frozen).most_common(6),
    }


def _drawn(space: Space, seed: int) -> Any:
    import random

    rng = random.Random(seed)
    chance = rng.choice((0.0, 0.1, 0.3))
    return space.architecture(
        removed=[unit.name for unit in space.units if rng.random() < chance],
        channels={
            g.name: rng.sample(range(g.width // g.step), rng.choice(g.legal_widths()) // g.step)
            for g in space.groups
            if rng.random() < 0.7
        },
    )


if __name__ == "__main__":
    main()
