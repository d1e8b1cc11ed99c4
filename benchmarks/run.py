"""Compare all methods and the alternatives on one track, at equal image passes; resumable after any kill.

    python -m benchmarks.run digits
    python -m benchmarks.run cifar10-resnet56a --data data/cifar10 --weights resnet56.safetensors --points macs-11.41x
    python -m benchmarks.run mnist-vgg13 --data data/mnist --slice 8m       # stops after 8 minutes; again: goes on
    python -m benchmarks.run digits --list                                  # what is done and what is missing
    python -m benchmarks.tables                                             # docs/results.md from all results

A track (`benchmarks/evidence/tracks.py`) is a teacher on data with one recipe; a contender
(`benchmarks/evidence/contenders.py`) finds a student for an operating point. Each student's final training is the same
recipe, twice: once with the same epochs for all ("excluded": what the search took comes on top), once with the same
image passes for all, search included ("included": who searches less trains longer). A result is one file,
RESULTS/TRACK/POINT/CONTENDER-SEED-BUDGET.json; what has one is never trained again. What is under way is kept in WORK:
searches by the student, trainings by the epoch. The test split is read once for each final student, when its file is
written.
One process, one thread; several may run at the same time with other --seeds once the teacher is there.
"""

from __future__ import annotations

import argparse
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.evidence.contenders import BEFORE, CONTENDERS, TRANSFERRED
from benchmarks.evidence.results import BUDGETS, Bench, Budget, is_done
from benchmarks.evidence.tracks import TRACKS, Track
from understudy.core.errors import UnderstudyError

ROOT = Path(__file__).parent.parent


class SliceOver(BaseException):
    """The time of this call is over. No Exception, so that nothing takes it for a student's failure."""


@contextmanager
def time_slice(seconds: float | None) -> Iterator[None]:
    """Raise SliceOver inside after so many seconds, wherever that is: a kill at any moment loses nothing but that."""

    def over(*_: object) -> None:
        raise SliceOver

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds or 0.0, 30.0)  # again, should code swallow the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def seconds_of(text: str) -> float:
    """Return "90s", "8m" or "2h" as seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"a slice must be like 90s, 8m or 2h, but got {text!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def run(bench: Bench, contenders: list[str], budgets: Sequence[Budget] = BUDGETS) -> None:
    """Train what has no result yet, cell by cell."""
    for cell in bench.cells(contenders, budgets):
        for name in contenders:
            for budget in budgets:
                if not bench.done(cell.point, name, cell.seed, budget):
                    bench.compete(cell, name, budget)


def listed(track: Track, results: Path, contenders: list[str], budgets: Sequence[Budget] = BUDGETS) -> Iterator[str]:
    """Yield a line for each operating point and seed: how many students are done, and who is missing."""
    for point in track.points:
        for seed in track.seeds:
            missing = [
                name
                for name in contenders
                if not all(is_done(results / track.name, point, name, seed, budget) for budget in budgets)
            ]
            done = len(contenders) - len(missing)
            yield f"{point}, seed {seed}: {done} done; missing: {', '.join(missing) or 'none'}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("track", choices=TRACKS)
    parser.add_argument("--data", help="folder of the track's images, train/CLASS/* and test/CLASS/*")
    parser.add_argument(
        "--weights", type=Path, help="of the teacher, as safetensors; default: those beside its results"
    )
    parser.add_argument("--points", nargs="+", help="such as params-10x macs-5x; default: all")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the track's; default: all")
    parser.add_argument(
        "--budgets", nargs="+", choices=BUDGETS, default=BUDGETS, help="whether the search is counted; default: both"
    )
    parser.add_argument("--slice", type=seconds_of, help="stop after 90s, 8m or 2h")
    parser.add_argument("--list", action="store_true", help="say what is done and what is missing, train nothing")
    parser.add_argument(
        "--policy-from", type=Path, help=f"the --work of another track, for the contender {TRANSFERRED}"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, help="folder of what is under way; default: runs/evidence/TRACK")
    options = parser.parse_args(arguments)
    track = TRACKS[options.track]
    points = {str(point): point for point in track.points}
    for name in options.points or ():
        if name not in points:
            parser.error(f"an operating point must be one of {', '.join(points)}, but got {name}")
    if strange := set(options.seeds or ()) - set(track.seeds):
        parser.error(f"seeds must be of {track.seeds}, on which no setting was chosen, but got {sorted(strange)}")
    track = replace(
        track,
        points=tuple(points[name] for name in options.points or points),
        seeds=tuple(options.seeds or track.seeds),
    )
    able = [n for n in CONTENDERS if n not in BEFORE and (options.policy_from is not None or n != TRANSFERRED)]
    contenders = options.contenders or able
    if options.list:
        print("\n".join(listed(track, options.results, contenders, options.budgets)))
        return
    torch.set_num_threads(1)
    work = options.work or Path("runs/evidence") / track.name
    try:
        with time_slice(options.slice):
            given = {"data": options.data, "weights": options.weights, "policy_from": options.policy_from}
            run(Bench.of(track, options.results, work, **given), contenders, options.budgets)
    except SliceOver:
        print("the slice is over; the same command goes on", flush=True)
    except UnderstudyError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
