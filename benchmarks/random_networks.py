"""How many random networks are analysed and cut rightly.

    python -m benchmarks.random_networks --count 10000 --draws 10 --out runs/random.jsonl

A network of a few random steps (`tests/support/modules/drawn.py`) is made of each seed, analysed, and its Space proved;
then students of random architectures are held against the masked network, and parameters and MACs against the
predicted ones. A line says of each seed that is not as it should be what went wrong: "wrong" is a student that was
offered and is wrong, "taken back" a decision that the analysis allowed and the proof refused. Seeds that FILE of --out
has are not tried again, so the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from tests.support.modules.drawn import Drawn
from understudy.core.errors import UnderstudyError
from understudy.graph.analysis import analyse
from understudy.proof.prove import prove
from understudy.proof.trial import Trials


@dataclass(frozen=True)
class Tried:
    """What was found about one network."""

    seed: int
    groups: int = 0
    plain: int = 0
    frozen: int = 0
    back: str = ""  # the first decision that the proof refused, and why
    wrong: str = ""  # how a student that was offered is wrong
    seconds: float = 0.0  # of CPU


def tried(seed: int, draws: int = 3) -> Tried:
    """Return what the analysis of a seed's network allows, and whether its students are right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, x = Drawn(seed).eval(), torch.randn(2, 3, 6, 6)
    try:
        analysis, proof = prove(analyse(network, x), seed=seed)
    except UnderstudyError as error:
        return Tried(seed, wrong=f"refused: {error}")
    space, trials, rng = analysis.space, Trials(analysis, seed + 1), random.Random(seed)
    back = next((f"{r.kind} {r.name}: {r.reason}" for r in proof.refused), "")
    plain = sum(bool(group.plain) for group in space.groups)
    found = Tried(seed, len(space.groups), plain, len(space.frozen), back)
    for _ in range(draws):
        architecture = space.architecture(
            removed=[unit.name for unit in space.units if unit.kind != "layer" and rng.random() < 0.2],
            channels={
                g.name: rng.sample(range(g.width // g.step), rng.randint(-(-g.least // g.step), g.width // g.step))
                for g in space.groups
            },
        )
        outcome = trials.judge(architecture, thorough=True)
        if outcome.status == "fails":
            return Tried(seed, found.groups, found.plain, found.frozen, back, outcome.reason)
    return found


def main() -> None:
    """Try the seeds, print what is not right, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="seed of the first network")
    parser.add_argument("--count", type=int, default=10_000, help="how many networks")
    parser.add_argument("--draws", type=int, default=3, help="random architectures of each")
    parser.add_argument("--out", type=Path, help="file for the rows, one JSON object a line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = options.out.read_text().splitlines() if options.out and options.out.exists() else []
    known = {row["seed"]: Tried(**row) for row in map(json.loads, lines)}
    found: list[Tried] = []
    for seed in range(options.first, options.first + options.count):
        start = time.process_time()
        found.append(known.get(seed) or replace(tried(seed, options.draws), seconds=time.process_time() - start))
        if options.out and seed not in known:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a") as file:
                file.write(json.dumps(asdict(found[-1])) + "\n")
        if found[-1].wrong or found[-1].back:
            kind = f"wrong: {found[-1].wrong}" if found[-1].wrong else f"taken back: {found[-1].back}"
            print(f"{seed:6} {kind}", flush=True)
    groups, plain, frozen = (sum(getattr(row, name) for row in found) for name in ("groups", "plain", "frozen"))
    wrong, back = sum(bool(row.wrong) for row in found), sum(bool(row.back) for row in found)
    seconds = sum(row.seconds for row in found) / len(found)
    print(f"{len(found)} networks: {wrong} with a wrong student, {back} with decisions that the proof took back;")
    print(f"{groups} groups, {plain} of them for plain graphs, {frozen} frozen; {seconds:.1f} s of CPU each")


if __name__ == "__main__":
    main()
