"""Modules that are written to model.py: containers with tensors of their own, lists with gaps, cells in loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from understudy.export.source import source_of


class Turned(nn.Module):
    """Makes a tensor that no state dict has, and reads it twice."""

    def forward(self, x: Tensor) -> Tensor:
        turn = torch.eye(4).roll(1, 0)
        return x @ turn + turn[0]


class Scaled(nn.Sequential):
    """A container with a parameter and a buffer of its own."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.scale, self.shift = nn.Parameter(torch.rand(4)), nn.Buffer(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale + self.shift


class Named(nn.ModuleDict):
    def forward(self, x: Tensor) -> Tensor:
        return self["last"](self["first"](x))


@pytest.mark.parametrize("kind", ["own class", "nn.Sequential", "nn.ModuleDict"])
def test_containers_may_hold_tensors_of_their_own(kind: str) -> None:
    layers = nn.Linear(4, 4), Turned()
    kinds = {"own class": lambda: nn.Sequential(Scaled(*layers), Scaled(nn.Linear(4, 4), nn.ReLU()))}
    kinds |= {"nn.Sequential": lambda: nn.Sequential(*layers)}
    kinds |= {"nn.ModuleDict": lambda: Named({"first": layers[0], "last": layers[1]})}
    text = source_of(kinds[kind]().eval(), torch.rand(2, 4)).text
    assert "register_buffer" in text and "nn.Module)" in text.replace("class Turned(", "")


class Fused(nn.Module):
    """A list of layers without some, as where maps of several sizes are fused."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([None, nn.Linear(4, 4), None, nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        return sum(x if layer is None else layer(x) for layer in self.layers)


def test_a_list_of_modules_may_hold_none() -> None:
    assert "nn.ModuleList([None, nn.Linear(4, 4), None, nn.Linear(4, 4)])" in source_of(Fused(), torch.rand(2, 4)).text


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, memory = state
        kept, new = self.layer(torch.cat([x, hidden], 1)).chunk(2, 1)
        memory = kept.sigmoid() * memory + new.tanh()
        return memory.tanh(), memory


class Loop(nn.Module):
    """Calls a cell for each step; of the last one it takes the hidden state alone."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
        for step in range(3):
            state = self.cell(x[:, step], state)
        return state[0]


def test_a_cell_of_which_the_last_step_gives_less_has_one_forward() -> None:
    assert source_of(Loop(), torch.rand(2, 3, 4)).text.count("def forward") == 2
