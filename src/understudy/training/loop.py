"""The one training loop, and what goes with it: prediction, accuracy, batch-norm recalibration.

Nothing in a step waits for the device, and all that changes from step to step is a plain function of
(seed, epoch, step). So the same seed gives the same weights bit for bit, also across a restart.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from understudy.config.checked import checked_together
from understudy.config.training import Training
from understudy.core.errors import ConfigError, RunError
from understudy.core.files import check_sums, write_whole
from understudy.core.nested import called, mapped
from understudy.data import AnySplit, Epoch, Views
from understudy.data.split import sent
from understudy.training import objective as distill
from understudy.training.aim import CLASSES, Aim
from understudy.training.builtin import rightly as rightly
from understudy.training.compute import Compute as Compute
from understudy.training.compute import choose_compute as choose_compute
from understudy.training.failures import fault_of_network

Normalise = Callable[[Any], Any]
"""Inputs as the split holds them, such as images (b, c, h, w) -> what the network takes, float32."""
OnStep = Callable[[Tensor, Any, Tensor], object]
"""Outputs (b, k), targets and places in the split (b,) of a batch, after the weights have moved."""
OnPart = Callable[[float], object]
"""How much is done, in epochs: 2.25 is a quarter of the third."""

_NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_LOOKS = 4  # times per epoch that the loss is read from the device
_HELD = 2**28  # bytes of an epoch's teacher logits that are held on the device; more are sent batch by batch


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training is, after an epoch."""

    epoch: int  # done, 1 for the first
    epochs: int
    loss: float  # mean over the epoch's examples
    seconds: float  # since the training began, restarts included
    images_per_second: float  # of this epoch


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended: `stopped` by its caller, or `failed` with the reason in `error`."""

    status: Literal["ok", "stopped", "failed"]
    error: str | None
    epochs: int  # done
    seconds: float
    losses: tuple[float, ...]  # mean of each epoch


def train(
    model: nn.Module,
    split: AnySplit,
    training: Training,
    *,
    normalise: Normalise,
    views: Views,
    compute: Compute,
    seed: int,
    aim: Aim = CLASSES,
    logits: Callable[[int], Tensor] | None = None,
    on_step: OnStep | None = None,
    on_epoch: Callable[[Progress], bool] | None = None,
    on_part: OnPart | None = None,
    checkpoint: Path | None = None,
) -> Outcome:
    """Train the model in place and say how it went; a network that cannot be trained is a result.

    Args:
        model: Moved to the compute's device and memory format; its train/eval modes are kept.
        split: The examples, n of them.
        training: Epochs, optimiser, schedule and loss.
        normalise: Applied to every batch after it was varied.
        views: Order and variation of the examples, for each epoch.
        compute: Device, precision, memory format, threads.
        seed: Of what the model itself draws, such as dropout. The caller's random state is kept.
        aim: What outputs are for.
        logits: Epoch -> the teacher's outputs (n, k) on that epoch's views, by example; see `Aim`.
        on_step: Called after each step, on the device; what it learns must be in the model's state dict.
        on_epoch: Called after each epoch; False stops the training.
        on_part: Called after each step, for those who watch, with the epochs done and the part of this one.
        checkpoint: File that is written after each epoch, and continued from if it is there.

    Raises:
        ConfigError: the loss needs a teacher's logits and there are none.
        DataError: an image could not be read.
        MachineError: memory ran out, or a device gave up.
        RunError: the checkpoint is of another training.
    """
    if distill.needs_teacher(training) and logits is None:
        raise ConfigError(f"loss {training.loss!r} needs the teacher's logits, but none are given")
    compute = compute.suited(model)
    with compute.scope() as reseed, _mode(model, training=True):
        loop = _Loop(compute.place(model), split, training, normalise=normalise, compute=compute, aim=aim)
        loop.on_step, loop.on_part = on_step, on_part
        loop.restore(checkpoint, seed)
        while loop.status is None:
            epoch = len(loop.losses)
            view, target = views.epoch(epoch), None if logits is None else logits(epoch)
            # Numbers drawn in an epoch depend on (seed, epoch) only, so there is no state to save.
            reseed(_mixed(seed, epoch))
            try:
                progress = loop.run(epoch, view, target)
            except (RuntimeError, ValueError, MemoryError, OSError) as e:  # torch's own, and batch norm of one value
                loop.fail(fault_of_network(e))
                break
            if progress is not None and on_epoch is not None and not on_epoch(progress):
                loop.status = "stopped"
            loop.save(checkpoint, seed)
        return loop.outcome()


def predict(
    model: nn.Module,
    split: AnySplit,
    *,
    normalise: Normalise,
    compute: Compute,
    aim: Aim = CLASSES,
    epoch: Epoch | None = None,
    batch_size: int = 256,
    on_part: OnPart | None = None,
) -> Float[Tensor, "n k"]:
    """Return the outputs (n, k) of a split by example, float32 on the compute's device, in eval mode; see `Aim`.

    With an `epoch`, of that epoch's views of the examples. The model must be on that device; it is not
    changed. `on_part` is called after each batch with the part that is done, 0..1.
    """
    parts, done = [], 0
    compute = compute.suited(model)
    epoch = None if epoch is None else epoch.to(compute.device)
    with compute.scope(), _mode(model, training=False), torch.no_grad(), compute.autocast():
        for indices in torch.arange(len(split), device=split.indexed_on).split(batch_size):
            images, _ = split.batch(indices)
            if epoch is not None:
                images = epoch.apply(images, indices)
            parts.append(aim.read(called(model, normalise(compute.images(images)))))
            done += len(indices)
            if on_part is not None:
                on_part(done / len(split))
    return torch.cat(parts)


def accuracy(model: nn.Module, split: AnySplit, *, normalise: Normalise, compute: Compute) -> float:
    """Return the share of a split's examples that the model gets right, in 0..1; NaN is never right."""
    logits = predict(model, split, normalise=normalise, compute=compute).cpu()
    return rightly(logits, split.labels.cpu()).double().mean().item()


def recalibrate(
    model: nn.Module, split: AnySplit, *, normalise: Normalise, compute: Compute, examples: int = 2000
) -> None:
    """Estimate the model's batch-norm statistics anew, in place, from unvaried training images.

    The plain average over batches that are spread over the whole split, at most so many examples.
    Everything else (dropout, frozen layers) stays in eval mode; modes are restored afterwards.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    compute = compute.suited(model)
    used = torch.linspace(0, len(split) - 1, min(examples, len(split))).long().to(split.indexed_on)
    count = max(1, round(len(used) / 250))
    with compute.scope(), _mode(model, training=False):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's name for the cumulative average
                norm.train()
            with torch.no_grad(), compute.autocast():
                for start in range(count):
                    images, _ = split.batch(used[start::count])
                    called(model, normalise(compute.images(images)))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def paced(training: Training, model: nn.Module) -> Training:
    """Return the training with a learning rate, which suits the network where none was given (docs/performance.md).

    For sgd it is 0.1, usual in training on labels with batch norm (He et al., 2016, section 3.4). As gradients are
    clipped, students without any norm and with group or layer norms, too, do no worse by it than by 0.03 or 0.01. For
    the others: what follows a batch norm does not depend on the scale of the weights before it, so a high rate does no
    harm; one that is good for them ruins a transformer.
    """
    if training.lr is not None:
        return training
    norms = [module for module in model.modules() if _is_norm(module)]
    batch = bool(norms) and all(isinstance(module, _BatchNorm) for module in norms)
    with checked_together():  # what is cut and not trained has no epochs
        return replace(training, lr=0.1 if training.optimizer == "sgd" else 0.01 if batch else 0.001)


def _is_norm(module: nn.Module) -> bool:
    """Say whether a module is a norm: one of torch's, or a layer of one's own that is called so and has weights.

    A block of a convolution, its norm and activation is none, nor is a layer that normalises pixels.
    """
    own = "norm" in type(module).__name__.lower() and not [*module.children()] and bool([*module.parameters()])
    return isinstance(module, _NORMS) or own


def learning_rate(training: Training, share: float) -> float:
    """Return the learning rate when that share (0..1) of all steps is done; `training` is `paced`.

    One-cycle: up from a 25th of the peak by a cosine over the first 30%, then down to a 10^5th of it
    (Smith and Topin, 2018; the figures are those of torch's OneCycleLR, but for the last).
    """
    assert training.lr is not None
    if training.schedule == "constant":
        return training.lr
    low, high, at = (1 / 25, 1.0, share / 0.3) if share < 0.3 else (1e-5, 1.0, (1 - share) / 0.7)
    return training.lr * (low + (high - low) * (1 - math.cos(math.pi * at)) / 2)


class _Loop:
    """The state of one training."""

    def __init__(
        self, model: nn.Module, split: AnySplit, training: Training, *, normalise: Normalise, compute: Compute, aim: Aim
    ) -> None:
        training = paced(training, model)
        self.model, self.split, self.training = model, split, training
        self.normalise, self.compute, self.aim = normalise, compute, aim
        self.loss = aim.loss(training)
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = _optimizer(self.weights, training)
        self.losses: list[float] = []
        self.seconds = 0.0
        self.status: Literal["ok", "stopped", "failed"] | None = None if training.epochs else "ok"
        self.error: str | None = None
        self.on_step: OnStep | None = None
        self.on_part: OnPart | None = None

    def run(self, number: int, epoch: Epoch, teacher: Tensor | None) -> Progress | None:
        """Train for one epoch; None if it diverged."""
        start = time.perf_counter()
        training = self.training
        feed = _Feed(self.split, epoch, teacher, training.batch_size, self.compute)
        steps = len(feed.here)
        looks = {steps * (i + 1) // _LOOKS for i in range(_LOOKS)}
        total = torch.zeros((), device=self.compute.device)
        for i in range(steps):
            share = (number + i / steps) / training.epochs
            total += self._step(feed.batch(i), learning_rate(training, share))
            if self.on_part is not None:
                self.on_part(number + (i + 1) / steps)
            if i + 1 in looks and not math.isfinite(total.item()):
                self.fail(f"diverged: the loss was {total.item()} by step {i + 1} of epoch {number + 1}")
                return None
        seconds = time.perf_counter() - start
        self.losses.append(total.item() / len(epoch.order))
        self.seconds += seconds
        if len(self.losses) == training.epochs:
            self.status = "ok"
        return Progress(
            epoch=number + 1,
            epochs=training.epochs,
            loss=self.losses[-1],
            seconds=self.seconds,
            images_per_second=len(epoch.order) / seconds,
        )

    def _step(self, batch: _Batch, rate: float) -> Tensor:
        """Take one step and return the batch's summed loss, on the device."""
        images = self.normalise(self.compute.images(batch.images))
        with self.compute.autocast():
            given = called(self.model, images)
        outputs = self.aim.read(given)
        loss = self.loss(outputs, batch.target, batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.training.gradient_clip:
            nn.utils.clip_grad_norm_(self.weights, self.training.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.on_step is not None:
            self.on_step(outputs.detach(), self._targets(batch), batch.places)
        return loss.detach() * len(batch.places)

    def _targets(self, batch: _Batch) -> Any:
        if batch.labels is not None:
            return batch.labels
        assert batch.target is not None, "without targets the teacher's outputs are them"
        return self.aim.targets(batch.target)

    def fail(self, error: str) -> None:
        self.status, self.error = "failed", error

    def outcome(self) -> Outcome:
        assert self.status is not None
        return Outcome(
            status=self.status,
            error=self.error,
            epochs=len(self.losses),
            seconds=self.seconds,
            losses=tuple(self.losses),
        )

    def save(self, path: Path | None, seed: int) -> None:
        """Write all that the next epoch needs."""
        if path is None:
            return
        state = {
            "training": self._digest(seed),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "seconds": self.seconds,
            "status": self.status,
            "error": self.error,
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_whole(path, content.getbuffer())

    def restore(self, path: Path | None, seed: int) -> None:
        """Continue from the file if it is there."""
        if path is None or not path.exists():
            return
        try:
            if torch.serialization.get_crc32_options():
                check_sums(path)
            state: dict[str, Any] = torch.load(path, map_location=self.compute.device, weights_only=True)
        except Exception as e:  # a broken file makes torch raise errors of many kinds
            raise RunError(f"a checkpoint must be as it was written, but {path} is not; delete it to start over") from e
        if state["training"] != self._digest(seed):
            raise RunError(
                f"a checkpoint continues only the training that wrote it, but {path} is of another model, seed, "
                f"data size, training or compute; delete it to start over"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses, self.seconds = state["losses"], state["seconds"]
        self.status, self.error = state["status"], state["error"]

    def _digest(self, seed: int) -> str:
        shapes = {name: list(tensor.shape) for name, tensor in self.model.state_dict().items()}
        fields = [asdict(self.training), shapes, len(self.split), self.compute.name, seed]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class _Batch:
    """What a step learns from, on the device."""

    images: Any  # (b, c, h, w), varied, not normalised, or other inputs
    labels: Any  # (b,), or other targets, or None
    target: Tensor | None  # the teacher's outputs (b, k), float32
    places: Tensor  # (b,), in the split


class _Feed:
    """The batches of one epoch. What the epoch needs is brought to the device at its start, so no step waits for it."""

    def __init__(
        self, split: AnySplit, epoch: Epoch, teacher: Tensor | None, batch_size: int, compute: Compute
    ) -> None:
        device = compute.device
        self.here = batches(epoch.order, batch_size)  # on the CPU, where images are read and large logits lie
        self.epoch = epoch.to(device)
        self.there = batches(self.epoch.order, batch_size)
        self.split, self.device = split, device
        small = teacher is not None and teacher.nbytes <= _HELD
        self.teacher = teacher.to(device) if teacher is not None and small else teacher

    def batch(self, i: int) -> _Batch:
        """Return the batch of step `i`."""
        here, there = self.here[i], self.there[i]
        images, labels = self.split.batch(here if self.split.indexed_on.type == "cpu" else there)
        target = None
        if self.teacher is not None:
            lies_there = self.teacher.device == there.device
            target = self.teacher[there] if lies_there else sent(self.teacher[here], self.device)
        return _Batch(
            images=self.epoch.apply(self._sent(images), there),
            labels=self._sent(labels),
            target=None if target is None else target.to(torch.float32),
            places=there,
        )

    def _sent(self, value: Any) -> Any:
        return mapped(value, lambda tensor: sent(tensor, self.device))


def _optimizer(weights: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    assert training.lr is not None
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},  # biases and norms
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.lr, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=training.lr, fused=True)


def batches(order: Int[Tensor, " n"], size: int) -> list[Tensor]:
    """Return the order in pieces; a last piece of 1, which batch norm cannot take, joins the one before."""
    pieces = list(order.split(size))
    if size > 1 and len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the model in train or eval mode inside, and each module back in its own afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, before in modes:
            module.training = before


def _mixed(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:4])
