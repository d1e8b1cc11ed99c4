"""Whole compressions of networks that are written in ways that real ones are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.support.tiny import Tiny, outcome, squeeze
from understudy.config.methods import RandomSearch
from understudy.config.training import Candidates, Final, Training
from understudy.core.goal import Goal
from understudy.models.student import load_student

QUICK = Candidates(training=Training(epochs=1, batch_size=64), examples=64)
FINAL = Final(students=1, training=Training(epochs=1, batch_size=64, loss="mse+ce"))


def pruned() -> nn.Module:
    """Weights multiplied by a mask before each call."""
    model = Tiny()
    prune.l1_unstructured(model.second[0], "weight", 0.3)
    model(torch.zeros(2, 1, 8, 8))  # the weight is the result of a computation now
    return model


def weight_normed() -> nn.Module:
    """Weights computed before each call, by hooks."""
    model = Tiny()
    with pytest.warns(FutureWarning, match="weight_norm"):
        model.first[0] = nn.utils.weight_norm(model.first[0])
    model(torch.zeros(2, 1, 8, 8))
    return model


def parametrized() -> nn.Module:
    """Weights computed where they are read."""
    model = Tiny()
    parametrizations.weight_norm(model.second[0])
    return model


def hooked() -> nn.Module:
    """A hook that changes what a layer gives."""
    model = Tiny()
    model.second.register_forward_hook(lambda module, inputs, output: output * 2)
    return model


class Tied(nn.Module):
    """One weight for two layers, as an embedding and the classifier of a language model share it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 32, bias=False)
        self.middle = nn.Linear(32, 24)
        self.back = nn.Linear(24, 32)
        self.again = nn.Linear(32, 64, bias=False)
        self.classifier = nn.Linear(64, 10)
        self.again.weight = nn.Parameter(self.first.weight.detach().t().clone())
        self.other = nn.Linear(64, 32, bias=False)
        self.other.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 10) of images (B, 1, 8, 8)."""
        x = images.flatten(1)
        x = self.back(self.middle(F.relu(self.first(x))).relu()) + self.other(x)
        return self.classifier(self.again(F.relu(x)))


class Plain(nn.Module):
    """No norm at all."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU())
        self.classifier = nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 10) of images (B, 1, 8, 8)."""
        return self.classifier(self.features(images).mean((2, 3)))


class Optional(Tiny):
    """Keyword-only arguments that have defaults."""

    def forward(self, images: Tensor, *, scale: float = 1.0, flip: bool = False, extra: Tensor | None = None) -> Tensor:
        """Return logits (B, 10) of images (B, 1, 8, 8)."""
        images = images.flip(-1) if flip else images
        return super().forward(images if extra is None else images + extra) * scale


class Auxiliary(Tiny):
    """A second classifier in training mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 10) of images (B, 1, 8, 8)."""
        x = self.first(images)
        if self.training:
            return super().forward(images) + 0.1 * self.aux(x.mean((2, 3)))
        return super().forward(images)


class TwoOutputs(Tiny):
    """A second classifier in training mode alone, whose logits are an output of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits (B, 10) of images (B, 1, 8, 8)."""
        x = self.first(images)
        logits = super().forward(images)
        return (logits, self.aux(x.mean((2, 3)))) if self.training else logits


class Made(Tiny):
    """A tensor that the forward pass makes, as wide as a layer, is added."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 10) of images (B, 1, 8, 8)."""
        x = self.first(images)
        x = x + torch.linspace(0, 1, x.shape[1]).view(1, -1, 1, 1)
        x = self.second(x)
        return self.classifier((x + self.third(x)).mean((2, 3)))


class InBf16(Tiny):
    """Weights in bfloat16; students are trained and loaded in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.to(torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 10) of images (B, 1, 8, 8)."""
        return super().forward(images.to(self.classifier.weight.dtype)).float()


KINDS: list[Callable[[], nn.Module]] = [
    InBf16,
    pruned,
    weight_normed,
    parametrized,
    hooked,
    Tied,
    Plain,
    Optional,
    Auxiliary,
    TwoOutputs,
    Made,
]


@pytest.mark.parametrize("make", KINDS)
def test_a_student_is_found_saved_and_loaded(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = squeeze(
        make(),
        tmp_path / "run",
        method=RandomSearch(students=2),
        candidates=QUICK,
        final=FINAL,
        goal=Goal(params="1.5x"),
    )
    found = result.summary
    assert found.kept and found.search.failed == 0 and [final.status for final in found.finals] == ["ok"]
    result.save(tmp_path / "student")
    loaded, images = load_student(tmp_path / "student", make()), torch.randn(3, 1, 8, 8)
    logits = loaded(images)
    assert logits.shape == (3, 10) and torch.equal(logits, result.student.eval()(images))
    assert sum(p.numel() for p in loaded.parameters()) == found.student.cost.parameters


def test_computed_weights_go_on_export_and_are_cut_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, few = parametrized(), {"method": RandomSearch(students=1), "candidates": QUICK, "final": FINAL}
    state = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    result = squeeze(teacher, tmp_path / "run", goal=Goal(params="1.5x"), **few)
    assert all(torch.equal(tensor, state[name]) for name, tensor in teacher.state_dict().items())
    assert "second.0.weight" in result.student.state_dict() and "second.0.bias" in result.student.state_dict()
    (tmp_path / "run" / "summary.json").unlink()
    assert squeeze(teacher, tmp_path / "run", goal=Goal(params="1.5x"), **few).evaluation == result.evaluation
    assert result.export(tmp_path / "export", formats=("source",)).parity["source"].absolute == 0.0
    result.save(tmp_path / "student")
    again = squeeze(teacher, tmp_path / "again", goal=Goal(params="2x"), start=tmp_path / "student", **few)
    assert again.evaluation.cost.parameters < result.evaluation.cost.parameters


class Noisy(Tiny):
    """What draws in evaluation mode too: dropout of a function that nobody told the mode."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, other ones each time."""
        logits = super().forward(F.dropout(images, 0.1))
        return logits + 0.1 * torch.rand_like(logits)


def test_a_network_that_draws_gives_the_same_whatever_was_drawn_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, results = Noisy(), []
    for name in ("one", "other"):
        torch.rand(5)
        squeeze(
            teacher,
            tmp_path / name,
            goal=Goal(params="1.5x"),
            method=RandomSearch(students=1),
            candidates=QUICK,
            final=FINAL,
        )
        results.append(outcome(tmp_path / name))
    assert results[0] == results[1]
