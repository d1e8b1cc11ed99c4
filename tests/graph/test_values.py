"""Values that a forward pass brings from outside of the graph: NumPy's arrays, checks of libraries, computed sizes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.held import analysed, check
from understudy.graph.analysis import analyse
from understudy.surgery.build import build


class Around(nn.Module):
    """Two layers, and what a case does between them."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, outputs)


def test_arrays_of_numpy_become_tensors_where_the_input_lies() -> None:
    class Picking(Around):
        def forward(self, x: Tensor) -> Tensor:
            places = torch.tensor(np.arange(7)[::-1].copy(), device=x.device)
            weights = torch.as_tensor(np.linspace(0.5, 1, 7), dtype=x.dtype, device=x.device)
            return self.last(torch.relu(self.first(x))[:, places] * weights[:, None])

    assert check(analysed(Picking(), 2, 7, 6)) == {"first"}


def test_a_size_that_is_computed_as_a_tensor_freezes_what_it_shapes() -> None:
    class Chunked(Around):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x))
            chunks = torch.div(y.size(1), 4, rounding_mode="trunc")  # as in Longformer, with two numbers
            return self.last(y.view(y.size(0), chunks, 4, y.size(2)).amax(2))

    analysis = analyse(Chunked().eval(), torch.randn(2, 8, 6))
    assert [(frozen.name, frozen.reason) for frozen in analysis.space.frozen if frozen.name == "first"] == [
        ("first", "no rule for view with these arguments")
    ]


def test_distributions_do_not_look_at_values_while_they_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Latent(Around):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.spread, self.last = nn.Linear(16, 5), nn.Linear(16, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x))
            latent = torch.distributions.Normal(self.mean(y), nn.functional.softplus(self.spread(y)))
            return self.last(latent.rsample() if self.training else latent.mean)

    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)  # some libraries unset it
    space = analyse(Latent().eval(), torch.randn(3, 6)).space
    assert [group.name for group in space.groups] == ["first"]
    assert next(f.reason for f in space.frozen if f.name == "mean") == "mul joins it with a tensor of fixed size"
    assert torch.distributions.Distribution._validate_args  # type: ignore[attr-defined]


def test_a_sample_has_the_sizes_that_the_forward_pass_computes() -> None:
    class Noisy(Around):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x))
            if self.training:  # as in GroupViT
                zero, one = (torch.tensor(value, dtype=y.dtype) for value in (0.0, 1.0))
                y = y + torch.distributions.Gumbel(zero, one).sample((len(y), 1))
            return self.last(y) * (y.shape[1] / y.shape[1])

    analysis = analyse(Noisy().eval(), torch.randn(3, 6))
    student = build(analysis, analysis.space.full.with_width("first", 8))
    assert analysis.space.group("first").plain  # so that the student is made of the recorded graph
    assert student.train()(torch.randn(5, 6)).shape == (5, 4)


def test_checks_of_transformers_are_left_out_while_a_forward_pass_is_recorded() -> None:
    seen: list[str | None] = []

    class Checked(Around):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(os.environ.get("TRANSFORMERS_DISABLE_TORCH_CHECK"))
            return self.last(torch.relu(self.first(x)))

    assert "TRANSFORMERS_DISABLE_TORCH_CHECK" not in os.environ
    assert check(analysed(Checked(), 3, 6)) == {"first"}
    assert seen[0] == "1"
    assert "TRANSFORMERS_DISABLE_TORCH_CHECK" not in os.environ


def test_equal_elements_go_along_the_heads_that_they_meet() -> None:
    """Zeros (nodes, heads, width) have channels along the heads where a view and a parameter have put them."""

    class GraphAttention(Around):
        def __init__(self) -> None:
            super().__init__(outputs=3)
            self.first, self.last = nn.Linear(6, 24, bias=False), nn.Linear(24, 3)
            self.near, self.far = nn.Parameter(torch.rand(1, 3, 8)), nn.Parameter(torch.rand(1, 3, 8))
            self.heads, self.width = 3, 8
            self.register_buffer("edges", torch.tensor([[0, 1, 2, 3, 1], [1, 2, 3, 0, 0]]))

        def forward(self, x: Tensor) -> Tensor:
            source, target = self.edges  # type: ignore[misc]
            nodes, y = len(x), self.first(x).view(len(x), self.heads, self.width)
            score = torch.exp((y * self.near).sum(-1)[source] + (y * self.far).sum(-1)[target])
            total = torch.zeros(nodes, self.heads, dtype=x.dtype).index_add(0, target, score)
            given = y[source] * (score / total[target]).unsqueeze(-1)
            sums = torch.zeros(nodes, self.heads, self.width, dtype=x.dtype).index_add(0, target, given)
            return self.last(sums.flatten(1))

    analysis = analysed(GraphAttention(), 4, 6)
    assert check(analysis) == {"first"}
    assert [group.step for group in analysis.space.groups] == [8]


@pytest.mark.parametrize("guard", [lambda y: not torch.isfinite(y).all(), lambda y: y.isnan().any() or y.isinf().any()])
def test_a_guard_against_overflow_is_recorded_for_finite_values(guard: Callable[[Tensor], Any]) -> None:
    """As the layers of DETR have it in training mode."""

    class Guarded(Around):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x))
            if self.training and guard(y):
                y = y.clamp(-1000, 1000)
            return self.last(y)

    assert check(analysed(Guarded(), 3, 6)) == {"first"}


def test_pads_and_slices_of_a_computed_size_leave_channels_as_they_are() -> None:
    """As the causal convolutions of Mimi compute them, of buffers."""

    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv1d(3, 12, 3, stride=2), nn.Conv1d(12, 4, 1)
            self.register_buffer("stride", torch.tensor(2))

        def forward(self, x: Tensor) -> Tensor:
            missing = -(x.shape[-1] - 3) % self.stride  # type: ignore[operator]
            y = torch.relu(self.first(nn.functional.pad(x, (0, missing))))  # type: ignore[arg-type]
            return self.last(nn.functional.pad(y, (self.stride, missing))[..., : y.shape[-1] + missing])  # type: ignore[arg-type, misc]

    assert check(analysed(Causal(), 2, 3, 8)) == {"first"}
