"""Is a student with fewer MACs faster? Teachers beside students in ONNX Runtime, one image, one thread, in turns.

Widths decide latency, not weights, so nothing is trained: the baselines `uniform` (all groups alike) and `free` (of
many random architectures the one with the most MACs) choose students within each budget on MACs. What is measured is
the processor time of the thread that runs a network, which other work on the machine does not lengthen as it does the
time on the clock.

    python -m benchmarks.faster [--teachers zoo:resnet56 zoo:vgg16] [--macs 2x 4x 8x] [--pairs 60]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import understudy as us
from understudy.core.goal import Reward
from understudy.core.timing import Timing
from understudy.export.onnx import in_onnxruntime
from understudy.models.spec import ModelSpec

METHODS = {"uniform": us.UniformWidth(), "free": us.Free()}


def thread_ms(network: nn.Module, images: Tensor, calls: int) -> float:
    """Return the milliseconds of processor time of one call, in the mean over some."""
    start = time.thread_time()
    for _ in range(calls):
        network(images)
    return (time.thread_time() - start) * 1e3 / calls


def in_turns(first: nn.Module, second: nn.Module, images: Tensor, pairs: int) -> tuple[Timing, Timing, Timing]:
    """Return the times of two networks and their ratio, from neighbouring calls."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(-5, pairs):
        for network, found in zip((first, second), times, strict=True):
            taken = thread_ms(network, images, calls=5)
            if number >= 0:
                found.append(taken)
    ratios = [a / b for a, b in zip(*times, strict=True)]
    return Timing.of(times[0]), Timing.of(times[1]), Timing.of(ratios)


def rows(teacher: str, size: int, budgets: list[str], pairs: int, round_to: int) -> Iterator[dict[str, Any]]:
    """Yield what each student has of the teacher's MACs and time."""
    torch.manual_seed(0)
    network = ModelSpec(name=teacher, arguments={"classes": 10}).build().eval()
    images = torch.randn(1, 3, size, size)
    analysis = us.analyse(network, images.repeat(2, 1, 1, 1))
    whole, own = us.predict(analysis, analysis.space.full), in_onnxruntime(network, images)
    for amount in budgets:
        for called, method in METHODS.items():
            widths, limits = us.Widths(round_to=round_to), us.Goal(macs=amount).budgets(whole, 1.0)
            reward = Reward(teacher_cost=whole, teacher_score=1.0, budgets=limits)
            problem = us.Problem(
                space=analysis.space, reward=reward, predict=lambda a: us.predict(analysis, a), widths=widths
            )
            architecture = method.searcher(problem).propose()[0]
            cost = us.predict(analysis, architecture)
            student = in_onnxruntime(us.build(analysis, architecture, weights="fresh"), images)
            first, second, ratio = in_turns(own, student, images, pairs)
            yield {
                "teacher": teacher,
                "method": f"{called}, {amount}",
                "macs": whole.macs / cost.macs,
                "parameters": whole.parameters / cost.parameters,
                "first": first,
                "second": second,
                "ratio": ratio,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", nargs="+", default=["zoo:resnet56", "zoo:vgg16"])
    parser.add_argument("--size", type=int, default=32, help="height and width of images, in pixels")
    parser.add_argument("--macs", nargs="+", default=["2x", "4x", "8x"])
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=60, help="of times, for each student")
    args = parser.parse_args()
    print("| teacher | student | fewer MACs | fewer parameters | teacher, ms | student, ms | faster | at least half |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for teacher in args.teachers:
        for row in rows(teacher, args.size, args.macs, args.pairs, args.round_to):
            enough = "yes" if row["ratio"].median >= row["macs"] / 2 else "no"
            print(
                f"| {row['teacher']} | {row['method']} | {row['macs']:.3g}x | {row['parameters']:.3g}x | "
                f"{row['first']} | {row['second']} | {row['ratio']} | {enough} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
