"""What the examples of other tasks share: a teacher is trained, N2N and random search compress it, a table compares.

Both searches train as many students on as many examples for as many epochs, and the best student of each is trained
to convergence alike: the same budget of passes. Everything finished is kept in a folder, so a run can be killed and
started again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import understudy as us
from understudy.core.figures import amount
from understudy.core.summary import Summary
from understudy.models.spec import Teacher

Loss = Callable[[Any, Any], Tensor]  # (outputs, targets) -> a scalar


@dataclass(frozen=True, kw_only=True)
class Example:
    """A trained teacher, data, and how both searches go about it."""

    teacher: nn.Module | Teacher
    data: us.Data
    goal: us.Goal
    candidates: us.Candidates
    final: us.Final
    students: int = 30  # of each search, a multiple of N2N's 5 for an update
    more: Mapping[str, Any] = field(default_factory=dict)  # of `us.compress`
    seeds: tuple[int, ...] = (0, 1, 2)

    def methods(self) -> dict[str, us.Method]:
        """Return the searches by name. Random search as well fills budgets up with every second draw."""
        return {
            "N2N": us.N2N(shrinkage_updates=self.students // 5),
            "random search": us.RandomSearch(students=self.students, fill=True),
        }

    def passes(self) -> tuple[int, int]:
        """Return the passes, forward and backward, of one search and of the final training."""
        count = len(self.data.train)
        searched = min(self.candidates.examples or count, count) * self.candidates.training.epochs
        return self.students * searched, self.final.students * count * self.final.training.epochs

    def compress(self, name: str, seed: int, work: Path) -> us.Result:
        """Run one search, or continue it."""
        return us.compress(
            self.teacher,
            self.data,
            run=work / f"{name.split()[0].lower()}-{seed}",
            method=self.methods()[name],
            goal=self.goal,
            candidates=self.candidates,
            final=self.final,
            device=us.Device(device="cpu", workers=0),
            seed=seed,
            progress=False,
            **self.more,
        )


def trained(
    network: nn.Module, data: us.Data, loss: Loss, place: Path, *, epochs: int, batch: int = 64, lr: float = 0.003
) -> nn.Module:
    """Return the network trained on the data's targets, or with the weights that an earlier call left in `place`."""
    if place.is_file():
        network.load_state_dict(load_file(place))
        return network.eval()
    count = len(data.train)
    numbers = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * -(-count // batch))
    network.train()
    for _ in range(epochs):
        for indices in torch.randperm(count, generator=numbers).split(batch):
            inputs, targets = data.train.batch(indices)
            optimizer.zero_grad()
            loss(network(data.normalise(inputs)), targets).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), place)
    return network.eval()


def few(data: us.Data, train: int, other: int) -> us.Data:
    """Return data of some examples of each split, classes in proportion, the same each time."""
    wanted = ((data.train, train), (data.val, other), (data.test or data.val, other))
    parts = [split.subset(min(n, len(split)), 0) for split, n in wanted]
    rows = [part.batch(torch.arange(len(part))) for part in parts]
    return us.Data.from_arrays(*rows[0], val=rows[1], test=rows[2], classes=data.classes, source=data.source)


def noise(count: int) -> us.Data:
    """Return images (n, 3, 32, 32) of noise in ten classes, for a look at how an example runs."""
    numbers = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), generator=numbers, dtype=torch.uint8)
    pair = images, torch.arange(count) % 10
    return us.Data.from_arrays(*pair, val=pair, test=pair)


def compared(example: Example, work: Path) -> dict[str, list[Summary]]:
    """Run all searches and return their figures by name, one for each seed; the table grows on the screen."""
    found: dict[str, list[Summary]] = {}
    for seed in example.seeds:
        for name in example.methods():
            start = time.process_time()
            summary = example.compress(name, seed, work).summary
            found.setdefault(name, []).append(summary)
            test = (summary.student.test or summary.student.val).value
            spent = time.process_time() - start
            print(f"{name}, seed {seed}: {summary.metric} {100 * test:.2f}, {spent:.0f} s of the processor", flush=True)
    return found


def table(example: Example, found: Mapping[str, list[Summary]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown: scores on the test split, mean ± standard deviation over seeds."""
    one = next(iter(found.values()))[0]
    yield f"| | test {one.metric}, % | each seed | parameters | MACs |"
    yield "| --- | --- | --- | --- | --- |"
    cost, teacher = one.teacher.cost, one.teacher.test or one.teacher.val
    yield f"| teacher | {100 * teacher.value:.2f} | | {amount(cost.parameters)} | {amount(cost.macs)} |"
    for name, summaries in found.items():
        students = [summary.student for summary in summaries]
        scores = [100 * (student.test or student.val).value for student in students]
        spread = f" ± {stdev(scores):.2f}" if len(scores) > 1 else ""
        fewer = [fmean(getattr(cost, f) / getattr(s.cost, f) for s in students) for f in ("parameters", "macs")]
        each = ", ".join(f"{score:.2f}" for score in scores)
        yield f"| {name} | {fmean(scores):.2f}{spread} | {each} | {fewer[0]:.1f}x fewer | {fewer[1]:.1f}x fewer |"
    searched, final = example.passes()
    yield f"\n{example.students} students for each search, {amount(searched)} passes; {amount(final)} passes to finish."


def main(make: Callable[[Path, argparse.Namespace], Example], description: str | None, **paths: str) -> None:
    """Run an example from the command line; `paths` are options that name files, with their help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps what is finished")
    parser.add_argument("--short", action="store_true", help="a glimpse, in seconds: everything smaller, one seed")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the long form (default: 0 1 2)")
    for name, told in paths.items():
        parser.add_argument(f"--{name}", type=Path, help=told)
    options = parser.parse_args()
    torch.set_num_threads(1)
    example = make(options.work, options)
    example = example if options.seeds is None else replace(example, seeds=tuple(options.seeds))
    for line in table(example, compared(example, options.work)):
        print(line)
