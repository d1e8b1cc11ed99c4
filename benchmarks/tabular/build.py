"""Train every architecture of a small Space once, and write the table of what became of them.

    python -m benchmarks.tabular.build skip-mnist --data data/mnist
    python -m benchmarks.tabular.build chain-cifar10 --data data/cifar10
    python -m benchmarks.tabular.build chain-cifar10 --data data/cifar10 --most 1000   # a random part

Called again it continues where it was interrupted. One process, one thread; the file appears beside this script
when all is done. Sixty architectures are trained with two more seeds, which tells the luck of a training from what
the architecture does; a seed decides the examples that students see as well as their order.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from benchmarks.tabular.table import Table, all_architectures
from understudy.config.training import Candidates, Device, Teaching, Training
from understudy.core.architecture import Architecture, Space
from understudy.core.evaluation import Evaluation
from understudy.core.figures import duration
from understudy.data import Data
from understudy.data.data import first_images
from understudy.graph.analysis import Analysis, analyse
from understudy.jobs.teach import teach
from understudy.runs.folder import versions
from understudy.training.compute import Compute, choose_compute
from understudy.training.evaluator import Evaluator

HERE = Path(__file__).parent
REPEATED = 60  # architectures
SEEDS = (0, 1, 2)  # of the table, then of the repeats


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One table: a teacher, its data and how its students are trained."""

    network: str
    size: int  # height and width in pixels that images are brought to
    teacher_epochs: int
    memory_format: Literal["contiguous", "channels_last"]
    candidates: Candidates

    @property
    def device(self) -> Device:
        """Where and how all is trained: pinned, so that nothing is timed and nothing depends on what was faster."""
        return Device(device="cpu", precision="fp32", memory_format=self.memory_format)


PLANS = {
    "skip-mnist": Plan(
        network="skip",
        size=12,
        teacher_epochs=2,
        memory_format="contiguous",
        candidates=Candidates(
            training=Training(epochs=2, batch_size=64, lr=0.01), examples=1000, weights="inherited", stop_below=0.0
        ),
    ),
    "chain-cifar10": Plan(
        network="chain",
        size=12,
        teacher_epochs=12,
        memory_format="channels_last",
        candidates=Candidates(
            training=Training(epochs=2, batch_size=100, lr=0.0125), examples=1000, weights="inherited", stop_below=0.0
        ),
    ),
}


class Log:
    """Evaluations on disk, one line each; a line that a kill has torn is dropped."""

    def __init__(self, path: Path, space: Space) -> None:
        self.path, self.known = path, dict[str, Evaluation]()
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = b"".join(line for line in lines if line.endswith(b"\n"))
        for line in whole.splitlines():
            evaluation = Evaluation.from_json(space, line.decode())
            self.known[evaluation.key] = evaluation
        path.write_bytes(whole)

    def add(self, evaluation: Evaluation) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(evaluation.to_json() + "\n")
        self.known[evaluation.key] = evaluation


def key(evaluator: Evaluator, architecture: Architecture) -> str:
    """Return the key that an evaluation by this evaluator has."""
    return evaluator.failed(architecture, "").key


def train_all(evaluator: Evaluator, architectures: list[Architecture], log: Log, words: str) -> list[Evaluation]:
    """Return the evaluation of each, trained now or before, telling the time that remains."""
    evaluator.prepare()
    missing = [architecture for architecture in architectures if key(evaluator, architecture) not in log.known]
    began = time.perf_counter()
    for number, architecture in enumerate(missing, 1):
        log.add(evaluator(architecture))
        if number % 25 == 0 or number == len(missing):
            left = (time.perf_counter() - began) / number * (len(missing) - number)
            print(f"{words}: {number} of {len(missing)}, {duration(left)} left", flush=True)
    return [log.known[key(evaluator, architecture)] for architecture in architectures]


def evaluators(plan: Plan, analysis: Analysis, data: Data, compute: Compute, folder: Path) -> list[Evaluator]:
    """Return what trains students, with each of the seeds."""
    return [
        Evaluator(
            analysis=analysis, teacher=analysis.teacher, data=data, candidates=plan.candidates, compute=compute,
            seed=seed, folder=folder
        )
        for seed in SEEDS
    ]  # fmt: skip


def build(name: str, data: Data, work: Path, command: str, most: int | None = None) -> Table:
    """Return the table, or a random part of at most so many and the teacher, trained where it is not yet."""
    plan = PLANS[name]
    training = Training(epochs=plan.teacher_epochs, lr=0.005, loss="ce")
    teaching = Teaching(training=training, device=plan.device)
    teacher = teach(f"{HERE / 'networks.py'}:{plan.network}", data, work / "teacher", teaching=teaching)
    analysis = analyse(teacher.module, first_images(data, data.val, 2))
    compute = choose_compute(teacher.module, first_images(data, data.train, 8), plan.device)
    folder = work / "logits"
    folder.mkdir(exist_ok=True)
    first, *others = evaluators(plan, analysis, data, compute, folder)
    architectures = all_architectures(analysis.space)
    log = Log(work / "evaluations.jsonl", analysis.space)
    # In random order, so that a part of the table is a fair sample of it.
    shuffled = random.Random(0).sample(architectures, len(architectures))[:most]
    architectures = [a for a in architectures if a in {*shuffled, analysis.space.full}]
    train_all(first, [*shuffled, analysis.space.full], log, "table")
    sample = shuffled[:REPEATED]
    repeats = [train_all(other, sample, log, f"seed {other.seed}") for other in others]
    return Table(
        space=analysis.space,
        evaluations=tuple(log.known[key(first, architecture)] for architecture in architectures),
        repeats=tuple(zip((log.known[key(first, a)] for a in sample), *repeats, strict=True)),
        about={
            "command": command,
            "name": name,
            "network": plan.network,
            "images": {"shape": list(data.shape), "train": len(data.train), "val": len(data.val)},
            "candidates": asdict(plan.candidates),
            "teaching": asdict(training),
            "seeds": list(SEEDS),
            "compute": compute.name,
            "versions": versions(),
            "teacher": first.teacher_digest,
            "teacher_accuracy": first.teacher_score,
            "data": first.data_digest,
            "recipe": first.recipe_digest,
        },
    )  # fmt: skip


def main() -> None:
    """Build one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PLANS)
    parser.add_argument("--data", required=True, help="folder of images, with train/<class>/*")
    parser.add_argument("--work", type=Path, help="folder for what is unfinished (default: runs/tabular/NAME)")
    parser.add_argument("--most", type=int, help="architectures to train (default: all); searches need all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = Data.from_folder(options.data, size=PLANS[options.name].size, progress=False)
    work = options.work or Path("runs/tabular") / options.name
    work.mkdir(parents=True, exist_ok=True)
    words = ["python", "-m", "benchmarks.tabular.build", options.name, "--data", f"data/{Path(options.data).name}"]
    command = shlex.join([*words, *(["--most", str(options.most)] if options.most else [])])
    table = build(options.name, data, work, command, options.most)
    table.save(HERE / f"{options.name}.npz")
    json.dump(dict(table.about), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
