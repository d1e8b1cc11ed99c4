"""DECORE's figure of importance: channels removed by ascending and by descending weight of their agents, untrained.

    python -m benchmarks.decore runs/decore --data data/cifar10

Of a finished run of DECORE; the accuracy is on validation images, with batch norm recalibrated, each layer alike.
`python -m benchmarks.run` compares DECORE with the other methods.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from safetensors.torch import load_file

from understudy.graph.analysis import analyse
from understudy.jobs.task import Task
from understudy.models.weights import load_into, read_weights
from understudy.runs.folder import Run
from understudy.surgery import build as surgery
from understudy.training.compute import pinned
from understudy.training.loop import accuracy, choose_compute, recalibrate

_FIGURE = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of DECORE that the command line started")
    parser.add_argument("--data", help="where the data are now")
    options = parser.parse_args()
    task = Task.of_run(Run(options.run), data=options.data)
    _importance(task, options.run)


def _importance(task: Task, folder: Path) -> None:
    """Print the accuracy on validation images with channels removed by weight of their agents, each layer alike."""
    device = pinned(task.settings.device, Run(folder).recall("compute"))
    compute = choose_compute(task.teacher.module, task.example, device)
    network = copy.deepcopy(task.teacher.module)
    load_into(network, read_weights(folder / "decore" / "network.safetensors"), source=str(folder))
    learned = analyse(network.eval(), task.analysis.trace.example)
    policy = load_file(Run(folder).policy)
    split = task.data.train.subset(min(2000, len(task.data.train)), 0)
    print("removed  ascending  descending")
    for share in _FIGURE:
        row = []
        for descending in (False, True):
            stay = {
                name: weights.argsort(descending=descending)[round(share * len(weights)) :].tolist() or [0]
                for name, weights in policy.items()
            }
            student = surgery.build(learned, task.space.architecture(channels=stay))
            student = compute.place(student)
            recalibrate(student, split, normalise=task.data.normalise, compute=compute)
            right = accuracy(student, task.data.val, normalise=task.data.normalise, compute=compute)
            row.append(f"{100 * right:8.2f}%")
        print(f"{100 * share:6.0f}%  {'  '.join(row)}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
