"""Train the student that a run chose several times anew: mean and spread of its accuracy on the test split.

    python benchmarks/repeats.py runs/mnist --repeats 3

Each repeat has a seed of its own, hence another order of the examples and other fresh weights. The
winner was chosen before, on validation images; nothing here chooses. Repeats that are finished are kept in
RUN/repeats, so that the command can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from understudy.core.architecture import Architecture
from understudy.core.files import write_whole
from understudy.data.data import first_images
from understudy.jobs.task import Task
from understudy.runs.folder import Run
from understudy.training.compute import pinned
from understudy.training.evaluator import Evaluator
from understudy.training.loop import accuracy, choose_compute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    run = Run(options.run)
    task = Task.of_run(run)
    device = pinned(task.settings.device, run.recall("compute"))
    compute = choose_compute(task.teacher.module, first_images(task.data, task.data.train, 8), device)
    evaluator = task.evaluator(compute, run.logits)
    name = run.recall("summary")["name"]
    stored = json.loads((run.students / f"{name}.json").read_text(encoding="utf-8"))
    architecture = Architecture.from_json(task.space, json.dumps(stored["architecture"]))
    results = [repeated(task, evaluator, architecture, run.folder / "repeats", r) for r in range(options.repeats)]
    for split in ("val", "test"):
        values = [100 * result[split] for result in results]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{split}: {statistics.mean(values):.2f} +- {spread:.2f}  {[round(v, 2) for v in values]}")


def repeated(task: Task, evaluator: Evaluator, architecture: Architecture, folder: Path, repeat: int) -> dict[str, Any]:
    """Return the accuracies of one repeat, trained now or before."""
    place = folder / f"{architecture.digest}-{repeat}.json"
    if not place.is_file():
        evaluation, student = evaluator.finish(
            architecture,
            task.settings.final,
            repeat=repeat + 1,  # 0 is the run's own
            checkpoint=place.with_suffix(".checkpoint.pt"),
            on_epoch=lambda p: print(f"repeat {repeat}: epoch {p.epoch}/{p.epochs}, loss {p.loss:.4f}", flush=True),
        )
        if student is None:
            raise SystemExit(f"repeat {repeat} failed: {evaluation.error}")
        assert task.data.test is not None
        compute = evaluator.compute
        test = accuracy(student, task.data.test, normalise=task.data.normalise, compute=compute)
        result = {"val": evaluation.score, "test": test, "seconds": evaluation.seconds, "torch": torch.__version__}
        write_whole(place, json.dumps(result))
        place.with_suffix(".checkpoint.pt").unlink(missing_ok=True)
    return dict(json.loads(place.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
