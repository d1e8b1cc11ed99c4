from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from understudy.config.training import Augmentation, Training
from understudy.core.errors import ConfigError, DataError, MachineError, RunError
from understudy.data import Split, Views
from understudy.training.loop import (
    Compute,
    Outcome,
    Progress,
    accuracy,
    learning_rate,
    paced,
    predict,
    recalibrate,
    train,
)

CPU = torch.device("cpu")
N, CLASSES = 97, 3  # the last batch of 32 holds one example
AUGMENTATION = Augmentation(crop=1, flip=True)
TRAINING = Training(epochs=3, batch_size=32, loss="mse+ce")


def normalise(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def examples(n: int = N) -> Split:
    """Images (n, 2, 8, 8) whose brightness tells their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % CLASSES
    images = torch.randint(0, 100, (n, 2, 8, 8), generator=generator) + 70 * labels.view(-1, 1, 1, 1)
    return Split(images.to(torch.uint8), labels)


def network(seed: int = 0, *, dropout: float = 0.2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout),
            nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, CLASSES),
        )  # fmt: skip


def teacher_logits(epoch: int) -> Tensor:
    """Logits that differ from epoch to epoch, as those of augmented views do."""
    return torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(epoch))


def taught(
    model: nn.Module,
    device: torch.device,
    *,
    training: Training = TRAINING,
    seed: int = 0,
    compute: Compute | None = None,
    on_epoch: Callable[[Progress], bool] | None = None,
    checkpoint: Path | None = None,
) -> Outcome:
    return train(
        model,
        examples(),
        training,
        normalise=normalise,
        views=Views(N, AUGMENTATION, seed=5),
        compute=compute or Compute(device=device, threads=1),
        seed=seed,
        logits=teacher_logits,
        on_epoch=on_epoch,
        checkpoint=checkpoint,
    )


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


COMPUTES = [
    Compute(dtype=dtype, memory_format=memory_format, threads=1)
    for dtype in (torch.float32, torch.bfloat16)
    for memory_format in (torch.contiguous_format, torch.channels_last)
]


@pytest.mark.parametrize("compute", COMPUTES, ids=lambda c: c.name)
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_network_learns_what_is_easy(compute: Compute, optimizer: str, device: torch.device) -> None:
    compute, model = replace(compute, device=device), network(dropout=0.0)
    training = Training(epochs=6, batch_size=16, optimizer=optimizer, lr=0.05, loss="ce")  # type: ignore[arg-type]
    outcome = taught(model, device, training=training, compute=compute)
    assert (outcome.status, outcome.error, outcome.epochs) == ("ok", None, 6)
    assert outcome.losses[-1] < 0.7 * outcome.losses[0]
    assert accuracy(model, examples(), normalise=normalise, compute=compute) > 0.9


@pytest.mark.parametrize("compute", COMPUTES, ids=lambda c: c.name)
def test_same_seed_same_weights_bit_for_bit(compute: Compute, device: torch.device) -> None:
    compute = replace(compute, device=device)
    models = [network() for _ in range(3)]
    outcomes = [
        taught(model, device, seed=seed, compute=compute) for model, seed in zip(models, (1, 1, 2), strict=True)
    ]
    assert same(models[0], models[1])
    assert outcomes[0].losses == outcomes[1].losses
    assert not same(models[0], models[2])  # the seed decides what dropout blanks


def test_training_leaves_the_callers_random_state_threads_and_modes_alone(device: torch.device) -> None:
    model = network()
    model[1].eval()
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    taught(model, device, compute=Compute(device=device, threads=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert [m.training for m in model] == [i != 1 for i in range(len(model))]


@pytest.mark.parametrize("killed_after", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_training_continues_to_the_same_weights(
    optimizer: str, killed_after: int, tmp_path: Path, device: torch.device
) -> None:
    training, path = replace(TRAINING, optimizer=optimizer, lr=0.003), tmp_path / "a" / "c.pt"
    # A checkpoint holds an epoch that its caller has heard of: after a kill in the first one there is none.
    whole, killed, continued = network(seed=9 if killed_after == 1 else 0), network(), network(seed=9)
    expected = taught(whole, device, training=training)

    def kill(progress: Progress) -> bool:
        if progress.epoch == killed_after:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        taught(killed, device, training=training, checkpoint=path, on_epoch=kill)
    assert path.exists() is (killed_after > 1)
    torch.rand(3)  # another process has another random state
    outcome = taught(continued, device, training=training, checkpoint=path)
    assert same(whole, continued)
    assert outcome.losses == expected.losses
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["c.pt"]


def test_a_finished_checkpoint_gives_its_weights_without_training(tmp_path: Path, device: torch.device) -> None:
    first, again = network(), network(seed=9)
    outcome = taught(first, device, checkpoint=tmp_path / "c.pt")

    def never(progress: Progress) -> bool:
        raise AssertionError(progress)

    assert taught(again, device, checkpoint=tmp_path / "c.pt", on_epoch=never) == outcome
    assert same(first, again)


class ConvNormActivation(nn.Sequential):
    """A block that is named after the norm in it, as torchvision has them."""


class Normalize(nn.Module):
    """A layer for pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))


class RootNorm(nn.Module):
    """A norm of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


@pytest.mark.parametrize(
    ("norms", "rate"),
    [
        ([nn.BatchNorm2d(4), nn.BatchNorm1d(3)], 0.01),
        ([nn.BatchNorm2d(4), nn.LayerNorm(4)], 0.001),
        ([ConvNormActivation(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), Normalize()], 0.01),
        ([nn.BatchNorm2d(4), RootNorm()], 0.001),
        ([nn.BatchNorm2d(4), nn.InstanceNorm2d(4)], 0.001),
        ([nn.GroupNorm(2, 4)], 0.001),
        ([], 0.001),
    ],
)
def test_where_no_learning_rate_is_given_it_suits_the_networks_norms(norms: list[nn.Module], rate: float) -> None:
    model = nn.Sequential(nn.Linear(4, 4), *norms)
    assert paced(TRAINING, model).lr == rate
    assert paced(replace(TRAINING, lr=0.5), model).lr == 0.5
    assert paced(replace(TRAINING, optimizer="sgd"), model).lr == 0.1


@pytest.mark.parametrize("change", [{"lr": 0.1}, {"seed": 1}, {"dtype": torch.bfloat16}])
def test_a_checkpoint_of_another_training_is_refused(
    change: dict[str, object], tmp_path: Path, device: torch.device
) -> None:
    path = tmp_path / "c.pt"
    taught(network(), device, checkpoint=path)
    training = replace(TRAINING, lr=change.get("lr", TRAINING.lr))
    compute = Compute(device=device, threads=1, dtype=change.get("dtype", torch.float32))
    with pytest.raises(RunError, match=r"a checkpoint continues only the training that wrote it, but .*c\.pt is of"):
        taught(network(), device, training=training, seed=change.get("seed", 0), compute=compute, checkpoint=path)


def test_a_broken_checkpoint_is_refused(tmp_path: Path, device: torch.device) -> None:
    path = tmp_path / "c.pt"
    taught(network(), device, checkpoint=path)
    whole = path.read_bytes()
    weight = next(iter(torch.load(path, map_location="cpu")["model"].values()))
    flipped = bytearray(whole)
    flipped[whole.index(weight.numpy().tobytes())] ^= 1
    for content in (whole[: len(whole) // 2], b"", b"text", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"a checkpoint must be as it was written, but .*c\.pt is not"):
            taught(network(), device, checkpoint=path)


def test_the_caller_can_stop_and_is_told_how_it_goes(tmp_path: Path, device: torch.device) -> None:
    told: list[Progress] = []

    def stop_after_two(progress: Progress) -> bool:
        told.append(progress)
        return progress.epoch < 2

    path = tmp_path / "c.pt"
    outcome = taught(network(), device, on_epoch=stop_after_two, checkpoint=path)
    assert (outcome.status, outcome.epochs) == ("stopped", 2)
    assert [(p.epoch, p.epochs, p.loss) for p in told] == [(1, 3, outcome.losses[0]), (2, 3, outcome.losses[1])]
    assert all(p.images_per_second > 0 for p in told)
    assert taught(network(), device, checkpoint=path) == outcome  # stopped stays stopped


def test_a_diverged_training_is_a_result(device: torch.device) -> None:
    training = replace(TRAINING, optimizer="sgd", lr=1e30, gradient_clip=0.0, schedule="constant")
    outcome = taught(network(), device, training=training)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error.startswith("diverged: the loss was ")


class Greedy(nn.Module):
    """Asks for more memory than there is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * torch.empty(1 << 50, device=images.device)


class Misfit(nn.Linear):
    """Does not fit its input."""

    def __init__(self) -> None:
        super().__init__(5, CLASSES)


def test_too_little_memory_is_no_fault_of_the_network(device: torch.device) -> None:
    with pytest.raises(MachineError, match=r"^out of memory: "):
        taught(Greedy(), device)


def test_an_image_that_cannot_be_read_is_no_fault_of_the_network(device: torch.device) -> None:
    class Unreadable(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise DataError("dog.png is not an image that can be read")

    with pytest.raises(DataError, match=r"^dog\.png"):
        taught(Unreadable(), device)


def test_a_network_that_does_not_fit_is_a_result(device: torch.device) -> None:
    outcome = taught(Misfit(), device)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error.startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")


def test_batch_norm_of_one_value_is_a_result(device: torch.device) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, CLASSES))
    outcome = taught(model, device, training=replace(TRAINING, batch_size=1))
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error.startswith("ValueError: Expected more than 1 value per channel when training")


def test_a_loss_on_the_teacher_needs_its_logits(device: torch.device) -> None:
    with pytest.raises(ConfigError, match="loss 'mse' needs the teacher's logits, but none are given"):
        train(
            network(), examples(), Training(loss="mse"), normalise=normalise, views=Views(N, Augmentation(), 0),
            compute=Compute(device=device), seed=0,
        )  # fmt: skip


def test_logits_are_matched_with_their_examples(device: torch.device) -> None:
    """A linear network learns the very logits of its own images, whatever the order."""
    split = Split(torch.eye(12).view(12, 1, 3, 4), torch.zeros(12, dtype=torch.int64))
    target = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    train(
        model, split, Training(epochs=200, batch_size=5, lr=0.1, weight_decay=0.0, loss="mse"),
        normalise=lambda images: images, views=Views(12, Augmentation(), 0), compute=Compute(device=device, threads=1),
        seed=0, logits=lambda epoch: target,
    )  # fmt: skip
    predicted = predict(model, split, normalise=lambda images: images, compute=Compute(device=device))
    torch.testing.assert_close(predicted.cpu(), target, atol=0.02, rtol=0)


def test_biases_and_norms_do_not_decay(device: torch.device) -> None:
    model = network(dropout=0.0)
    before = copy.deepcopy(model.state_dict())
    training = Training(
        epochs=1, batch_size=64, lr=0.5, weight_decay=0.1, loss="mse", schedule="constant", gradient_clip=0.0
    )
    zeros = torch.zeros(N, CLASSES)
    with torch.no_grad():
        model[-1].weight.zero_()
        model[-1].bias.zero_()
    train(
        model, examples(), training, normalise=normalise, views=Views(N, Augmentation(), 0),
        compute=Compute(device=device, threads=1), seed=0, logits=lambda epoch: zeros,
    )  # fmt: skip
    # The output is zero, so nothing but decay moves a weight: two steps of 1 - lr * decay.
    after = model.state_dict()
    assert torch.equal(after["1.weight"], before["1.weight"])
    assert torch.equal(after["4.bias"], before["4.bias"])
    torch.testing.assert_close(after["4.weight"], before["4.weight"] * 0.95**2)


def test_the_fused_step_is_the_plain_one_whatever_the_memory_format(device: torch.device) -> None:
    compute = Compute(device=device, memory_format=torch.channels_last, threads=1)
    model, plain = network(dropout=0.0), network(dropout=0.0).to(device)
    training = Training(epochs=3, batch_size=N, lr=0.01, loss="ce", schedule="constant", gradient_clip=0.0)
    views = Views(N, Augmentation(), 0)
    train(model, examples(), training, normalise=normalise, views=views, compute=compute, seed=0)
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": 0.0005},
        {"params": [p for p in plain.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, foreach=False)
    for _ in range(3):
        optimizer.zero_grad()
        images, labels = normalise(examples().images).to(device), examples().labels.to(device)
        nn.functional.cross_entropy(plain(images), labels).backward()
        optimizer.step()
    for (name, expected), got in zip(plain.named_parameters(), model.parameters(), strict=True):
        if name != "4.bias":  # before a batch norm the gradient is rounding noise, and Adam scales it up
            torch.testing.assert_close(got, expected, atol=2e-4, rtol=0, msg=name)


def test_a_network_that_channels_last_would_corrupt_is_trained_contiguous() -> None:
    def narrow() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Conv2d(2, 4, 1, stride=2), nn.Conv2d(4, 9, 3), nn.Flatten(), nn.Linear(36, CLASSES))

    models = [narrow() for _ in range(2)]
    for model, layout in zip(models, (torch.channels_last, torch.contiguous_format), strict=True):
        compute = Compute(memory_format=layout, threads=1)
        assert taught(model, torch.device("cpu"), compute=compute).status == "ok"
        assert model[1].weight.is_contiguous()
        recalibrate(model, examples(), normalise=normalise, compute=compute)
    assert same(*models)
    logits = [predict(models[0], examples(), normalise=normalise, compute=replace(c, dtype=torch.float32))
              for c in COMPUTES[:2]]  # fmt: skip
    assert torch.equal(*logits)


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing() -> None:
    training = Training(lr=0.1)
    assert learning_rate(training, 0.0) == pytest.approx(0.004)
    assert learning_rate(training, 0.3) == pytest.approx(0.1)
    assert learning_rate(training, 0.65) == pytest.approx(0.05, rel=1e-4)
    assert learning_rate(training, 1.0) == pytest.approx(1e-6)
    assert learning_rate(replace(training, schedule="constant"), 0.9) == 0.1


@pytest.mark.parametrize("compute", COMPUTES, ids=lambda c: c.name)
def test_prediction_is_by_example_and_changes_nothing(compute: Compute, device: torch.device) -> None:
    compute, model = replace(compute, device=device), network().to(device)
    before, modes = copy.deepcopy(model), [m.training for m in model.modules()]
    logits = predict(model, examples(), normalise=normalise, compute=compute, batch_size=10)
    assert logits.shape == (N, CLASSES)
    assert logits.dtype == torch.float32
    with torch.no_grad(), compute.autocast():
        images = compute.images(normalise(examples().images))
        expected = copy.deepcopy(model).eval()(images).float()
    tolerance = 1e-5 if compute.dtype == torch.float32 else 0.02
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
    assert same(model, before)
    assert [m.training for m in model.modules()] == modes
    assert [p.stride() for p in model.parameters()] == [p.stride() for p in before.parameters()]


def test_prediction_of_views_sees_what_training_sees(device: torch.device) -> None:
    model, compute = network().to(device), Compute(device=device, threads=1)
    epoch = Views(N, AUGMENTATION, seed=5).epoch(1)
    varied = Split(epoch.apply(examples().images, torch.arange(N)), examples().labels)
    expected = predict(model, varied, normalise=normalise, compute=compute)
    got = predict(model, examples(), normalise=normalise, compute=compute, epoch=epoch)
    assert torch.equal(got, expected)


def test_accuracy_is_the_share_of_right_answers(device: torch.device) -> None:
    split = Split(torch.eye(4).view(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]))
    compute = Compute(device=device)
    assert accuracy(nn.Flatten(), split, normalise=lambda images: images, compute=compute) == 0.75
    blank = Split(torch.full((4, 1, 2, 2), float("nan")), torch.zeros(4, dtype=torch.int64))
    assert accuracy(nn.Flatten(), blank, normalise=lambda images: images, compute=compute) == 0.0


def test_recalibration_gives_the_statistics_of_the_data(device: torch.device) -> None:
    model, compute = network().to(device), Compute(device=device, threads=1)
    model[1].running_mean.fill_(7.0)
    model[4].requires_grad_(False)
    weights, modes = [p.clone() for p in model.parameters()], [m.training for m in model.modules()]
    recalibrate(model, examples(), normalise=normalise, compute=compute)
    with torch.no_grad():
        features = model[0](normalise(examples().images).to(device))
    torch.testing.assert_close(model[1].running_mean, features.mean((0, 2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(model[1].running_var, features.var((0, 2, 3)), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), weights, strict=True))
    assert [m.training for m in model.modules()] == modes
    assert model[1].momentum == 0.1


def test_recalibration_mixes_the_classes_of_a_sorted_split(device: torch.device) -> None:
    split = examples(600)
    by_class = split.take(split.labels.argsort(stable=True))
    model, compute = network().to(device), Compute(device=device, threads=1)
    recalibrate(model, by_class, normalise=normalise, compute=compute)
    with torch.no_grad():
        features = model[0](normalise(split.images).to(device))
    # Batches of one class each would have a fifth of the variance.
    torch.testing.assert_close(model[1].running_var, features.var((0, 2, 3)), atol=0, rtol=0.02)


def test_only_copies_from_pinned_memory_to_a_gpu_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # Elsewhere the copy may be read before it is there, or made of memory that is free again.
    copied = Tensor.to

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert not kwargs.get("non_blocking")
        return copied(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", to)
    assert taught(network(), CPU, training=replace(TRAINING, epochs=1)).status == "ok"


def test_gradients_are_clipped_where_torch_has_no_operations_on_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on MPS.
    usual = network()
    taught(usual, CPU, training=replace(TRAINING, epochs=1))
    for place in (torch.nn.utils.clip_grad, torch.utils._foreach_utils):
        monkeypatch.setattr(place, "_device_has_foreach_support", lambda device: False)
    model = network()
    assert taught(model, CPU, training=replace(TRAINING, epochs=1)).status == "ok"
    for one, other in zip(model.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(one, other)
