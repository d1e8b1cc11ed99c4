"""What a training step with agents costs, in plain ones: both in turns, in one run.

    python benchmarks/decore_step.py --models resnet20 vgg16:16 resnet56 densenet40

A model is NAME or NAME:WIDTH of the zoo, on 32x32 images. On a CPU with one thread, seconds are those of the
processor, so other processes hardly count. Prints the median of each, and the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.config.training import Device
from understudy.graph.analysis import analyse
from understudy.jobs.prune import Learner
from understudy.methods.decore import Agents, Rules
from understudy.models import zoo
from understudy.surgery.gated import Gated
from understudy.training.compute import choose_compute
from understudy.training.loop import Compute

EXAMPLES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "vgg16:16", "resnet56"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weight", type=float, default=2.0, help="of the agents: 0 keeps half of the channels")
    options = parser.parse_args()
    for spec in options.models:
        name, _, width = spec.partition(":")
        torch.manual_seed(0)
        model = zoo.create(name, width=int(width) if width else None)
        device = Device(device=options.device, threads=1)
        compute = choose_compute(model, torch.randn(2, 3, 32, 32), device)
        plain, gated = measured(model, compute, options.batch, options.steps, options.weight)
        ratio = statistics.median(b / a for a, b in zip(plain, gated, strict=True))
        middle, other = (1e3 * statistics.median(times) for times in (plain, gated))
        print(f"{spec}: {middle:.1f} ms plain, {other:.1f} ms with agents, {ratio:.3f}x", flush=True)


def measured(
    model: nn.Module, compute: Compute, batch: int, steps: int, weight: float
) -> tuple[list[float], list[float]]:
    """Return the seconds of each step, plain and with agents, after a few that warm up."""
    analysis = analyse(model, torch.randn(2, 3, 32, 32))
    network = copy.deepcopy(model)
    agents = Agents(analysis.space.groups, Rules(initial=weight), examples=EXAMPLES, steps=1000)
    slots = torch.from_numpy(np.concatenate(analysis.groups.slots_of))
    learner = Learner(Gated(analysis, network), agents, slots)
    plain = compute.place(copy.deepcopy(model)).train()
    compute.place(learner).train()
    images = compute.images(torch.randn(batch, 3, 32, 32))
    labels = (torch.arange(batch) % 10).to(compute.device)
    indices = torch.randperm(EXAMPLES)[:batch].to(compute.device)
    with compute.scope():
        one = stepper(plain, images, labels, compute, lambda logits: None)
        other = stepper(learner, images, labels, compute, lambda logits: learner.learn(logits, labels, indices))
        times = [(one(), other()) for _ in range(steps + 3)][3:]
    return [a for a, _ in times], [b for _, b in times]


def stepper(
    model: nn.Module, images: Tensor, labels: Tensor, compute: Compute, after: Callable[[Tensor], object]
) -> Callable[[], float]:
    """Return what takes a step of the training loop and returns its seconds."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, fused=True)
    clock = time.process_time if compute.device.type == "cpu" else time.perf_counter

    def step() -> float:
        start = clock()
        with compute.autocast():
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()
        after(logits.detach().float())
        if compute.device.type != "cpu":
            torch.cuda.synchronize()
        return clock() - start

    return step


if __name__ == "__main__":
    main()
