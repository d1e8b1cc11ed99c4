"""What a layer gives on fake tensors: the second time as the first time, and never as another layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from understudy.graph.fake import flat, run_fake
from understudy.graph.outputs import remembered

IMAGES, ROWS = torch.randn(2, 4, 9, 8), torch.randn(2, 7, 6)
LAYERS: list[tuple[Callable[[], nn.Module], Tensor]] = [
    (lambda: nn.Conv2d(4, 6, 3), IMAGES),
    (lambda: nn.Conv2d(4, 6, 3, stride=2), IMAGES),
    (lambda: nn.Conv2d(4, 6, 3, padding="same", bias=False), IMAGES),
    (lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), IMAGES),
    (lambda: nn.Conv2d(4, 6, 3), IMAGES.to(memory_format=torch.channels_last)),
    (lambda: nn.Conv2d(4, 6, 3).double(), IMAGES.double()),
    (lambda: nn.ConvTranspose2d(4, 6, 3, output_padding=0), IMAGES),
    (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), IMAGES),
    (lambda: nn.Conv1d(7, 6, 3), ROWS),
    (lambda: nn.Linear(6, 5), ROWS),
    (lambda: nn.Linear(6, 5), ROWS[0]),
    (lambda: nn.LayerNorm(6), ROWS),
    (lambda: nn.GroupNorm(2, 4), IMAGES),
    (lambda: nn.PReLU(4), IMAGES),
    (lambda: nn.LSTM(6, 5, batch_first=True), ROWS),
    (lambda: nn.LSTM(6, 5, batch_first=False), ROWS),
    (lambda: nn.LSTM(6, 5, bidirectional=True, num_layers=2), ROWS),
    (lambda: nn.LSTM(6, 5, proj_size=3), ROWS),
    (lambda: nn.RNN(6, 5), ROWS),
]


def look(value: Any) -> list[Any]:
    return [(tuple(t.shape), t.stride(), t.dtype, t.device) for t in flat(value)]


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("autocast", [False, True])
def test_the_second_time_it_gives_the_like_of_the_first(autocast: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
        for _ in range(2):
            for make, x in LAYERS:
                mode, layer = FakeTensorMode(allow_non_fake_inputs=True), make()
                given = (mode.from_tensor(x),)

                def run(layer: nn.Module = layer, given: Any = given, mode: FakeTensorMode = mode) -> Any:
                    return run_fake(layer, given, {}, mode)

                assert look(remembered(layer, type(layer), given, {}, mode, run)) == look(run()), layer


def test_what_hooks_change_is_computed() -> None:
    layer = nn.Linear(6, 5)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    given = (mode.from_tensor(ROWS),)

    def run() -> Any:
        return run_fake(layer, given, {}, mode)

    plain = [remembered(layer, nn.Linear, given, {}, mode, run) for _ in range(2)]
    layer.register_forward_hook(lambda module, args, output: output.flatten())
    assert [tuple(t.shape) for t in (*plain, remembered(layer, nn.Linear, given, {}, mode, run))] == [
        (2, 7, 5),
        (2, 7, 5),
        (70,),
    ]
