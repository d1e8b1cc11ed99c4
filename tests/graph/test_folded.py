"""Layers that compute their weights shrink as plain ones do, and the teacher stays as it is."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from understudy.graph.analysis import analyse
from understudy.proof.prove import prove
from understudy.surgery.build import build

Wrap = Callable[[nn.Module], nn.Module]


class Doubled(nn.Module):
    """A parametrization of one's own, of a weight that is a buffer in one layer."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2.0


def own(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Doubled())


def both(layer: nn.Module) -> nn.Module:
    return own(parametrizations.spectral_norm(parametrizations.weight_norm(layer)))


def masked(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "bias", 0.2)
    return layer


WRAPS: list[Wrap] = [
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    nn.utils.weight_norm,
    nn.utils.spectral_norm,
    masked,
    own,
    both,
]


def network(wrap: Wrap) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 8, 3, padding=1), nn.Flatten()]
    layers += [nn.ReLU(), nn.Linear(8 * 25, 4)]
    made = nn.Sequential(*(wrap(layer) if hasattr(layer, "weight") else layer for layer in layers))
    made(torch.randn(2, 3, 5, 5))  # spectral norms estimate
    return made


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", WRAPS)
def test_computed_weights_shrink_as_plain_ones(wrap: Wrap) -> None:
    teacher, x = network(wrap).train(), torch.randn(2, 3, 5, 5)
    kinds, state = [type(m) for m in teacher.modules()], {n: t.clone() for n, t in teacher.state_dict().items()}
    analysis, proof = prove(analyse(teacher, x))
    assert [type(m) for m in teacher.modules()] == kinds and teacher.training and teacher[0].training
    assert all(torch.equal(t, state[name]) for name, t in teacher.state_dict().items())
    assert {"0.weight", "2.weight", "5.weight"} <= set(analysis.folded) and proof.refused == ()
    assert analysis.shrinkable > 0.95
    teacher.eval()
    student = build(analysis, analysis.space.full.with_width(analysis.space.groups[0].name, 2)).eval()
    assert set(student.state_dict()) == {f"{i}.{name}" for i in (0, 2, 5) for name in ("weight", "bias")}
    assert {type(m) for m in student} == {nn.Conv2d, nn.ReLU, nn.ConvTranspose2d, nn.Flatten, nn.Linear}
    outputs = teacher(x).detach()
    whole = pickle.loads(pickle.dumps(analysis)).teacher.eval()(x).detach()
    torch.testing.assert_close(whole, outputs, rtol=1e-5, atol=1e-5 * float(outputs.abs().max()))


def test_what_nothing_computes_is_analysed_as_it_is() -> None:
    plain = network(lambda layer: layer)
    analysis = analyse(plain, torch.randn(2, 3, 5, 5))
    assert analysis.teacher is plain and analysis.folded == ()


def test_a_frozen_weight_and_a_buffer_stay_what_they_are() -> None:
    teacher = network(own)
    teacher[0].parametrizations.weight.original.requires_grad_(False)
    teacher[5].parametrizations.weight.register_buffer("kept", teacher[5].parametrizations.weight.original.detach())
    del teacher[5].parametrizations.weight.original
    teacher[5].parametrizations.weight.register_buffer("original", teacher[5].parametrizations.weight.kept)
    plain = analyse(teacher, torch.randn(2, 3, 5, 5)).teacher
    assert not plain[0].weight.requires_grad and plain[2].weight.requires_grad
    assert "5.weight" in dict(plain.named_buffers())


def test_what_a_forward_pass_reads_of_it_stays_as_it_is() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = parametrizations.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            lengths = self.first.parametrizations.weight.original0
            return self.last(self.first(x).relu()) * lengths.sum()  # type: ignore[no-any-return]

    teacher = Reads()
    analysis = analyse(teacher, torch.randn(2, 4))
    assert analysis.teacher is teacher and analysis.folded == ()
    (reason,) = (found.reason for found in analysis.space.frozen if found.name == "first")
    assert reason.endswith("computes its weight, and with a plain one the network gives something else")
