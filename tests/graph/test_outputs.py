"""What a layer gives on fake tensors: the second time as the first time, and never as another layer."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from understudy.core.errors import TraceError
from understudy.graph.analysis import analyse
from understudy.graph.fake import flat, like, map_structure, run_fake
from understudy.graph.outputs import remembered, remembered_call

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
    (lambda: nn.LayerNorm(6, bias=False), ROWS),
    (lambda: nn.LayerNorm((8, 9)), IMAGES.transpose(2, 3)),
    (lambda: nn.Linear(6, 5, bias=False), ROWS.double().float()),
    (lambda: nn.Linear(7, 5), ROWS.transpose(1, 2)),
    (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="circular"), IMAGES),
    (lambda: nn.Conv2d(4, 6, 3, dilation=2), IMAGES[..., 1:]),
    (lambda: nn.Conv3d(2, 6, 3), torch.randn(2, 2, 4, 5, 6)),
    (nn.ReLU, IMAGES.transpose(1, 2)),
    (lambda: nn.ReLU(inplace=True), IMAGES),
    (nn.GELU, ROWS),
    (lambda: nn.Softmax(dim=1), IMAGES.to(memory_format=torch.channels_last)),
    (lambda: nn.GLU(dim=1), IMAGES),
    (lambda: nn.Dropout(0.3), ROWS),
    (lambda: nn.MaxPool2d(3, stride=2, ceil_mode=True), IMAGES),
    (lambda: nn.AvgPool2d(3, 2, 1), IMAGES.to(memory_format=torch.channels_last)),
    (lambda: nn.AdaptiveAvgPool2d((None, 1)), IMAGES),
    (nn.Flatten, IMAGES.transpose(1, 2)),
    (lambda: nn.Upsample(scale_factor=2), IMAGES),
    (lambda: nn.ZeroPad2d(1), IMAGES),
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


CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (operator.add, (IMAGES, IMAGES[:, :1]), {}),
    (operator.truediv, (IMAGES, 2), {}),
    (operator.getitem, (IMAGES, (slice(None), slice(1, 3), ..., None)), {}),
    (torch.cat, ([IMAGES, IMAGES], 1), {}),
    (torch.cat, ([IMAGES, IMAGES],), {"dim": 2}),
    (torch.chunk, (IMAGES, 2, 1), {}),
    (F.gelu, (ROWS,), {}),
    (F.linear, (ROWS, torch.randn(5, 6)), {}),
    (F.interpolate, (IMAGES,), {"scale_factor": 2.0}),
    ("view", (ROWS, 2, -1), {}),
    ("transpose", (ROWS, 1, 2), {}),
    ("double", (ROWS,), {}),
    ("mean", (ROWS, (1,)), {"keepdim": True}),
    ("mean", (ROWS, (1,)), {"keepdim": False}),
    ("max", (ROWS, 1), {}),
    (F.conv2d, (IMAGES.to(memory_format=torch.channels_last), torch.randn(3, 4, 3, 3)), {"padding": 1}),
    (torch.conv2d, (IMAGES, torch.randn(3, 4, 3, 3)), {}),
    (F.layer_norm, (ROWS, (6,)), {}),
    (operator.matmul, (IMAGES, IMAGES.transpose(2, 3)), {}),
    (operator.matmul, (ROWS, torch.randn(6, 3)), {}),
    (operator.add, (IMAGES.transpose(1, 2), IMAGES[:, :1].transpose(1, 2)), {}),
    (F.scaled_dot_product_attention, (IMAGES, IMAGES, IMAGES), {}),
    (torch.empty_like, (IMAGES.transpose(1, 2),), {}),
    ("to", (ROWS, torch.device("cpu")), {}),
    ("new_zeros", (ROWS, (2, 3)), {"device": torch.device("cpu")}),
    ("new_zeros", (ROWS, (2, 3)), {}),
    ("expand", (ROWS[:1], 3, 7, 6), {}),
    ("reshape", (IMAGES.permute(0, 2, 3, 1), 2, -1, 4), {}),
    ("softmax", (ROWS, -1), {}),
]


def test_functions_give_the_like_of_the_first_time() -> None:
    for _ in range(2):
        for target, given, named in CALLS:
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            args = fake(given, mode)

            def run(target: Any = target, args: Any = args, named: Any = named, mode: Any = mode) -> Any:
                call = target if callable(target) else lambda x, *rest, **more: getattr(x, target)(*rest, **more)
                return run_fake(call, args, named, mode)

            assert look(remembered_call(target, args, named, mode, run)) == look(run()), target


def test_what_has_names_keeps_them() -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    rows = fake((ROWS,), mode)
    for _ in range(2):
        most = remembered_call("max", (*rows, 1), {}, mode, lambda: run_fake(torch.max, (*rows, 1), {}, mode))
        assert (tuple(most.values.shape), most.indices.dtype) == ((2, 6), torch.int64)
        parts = remembered_call(torch.chunk, (*rows, 2), {}, mode, lambda: run_fake(torch.chunk, (*rows, 2), {}, mode))
        assert [tuple(part.shape) for part in parts] == [(1, 7, 6), (1, 7, 6)]


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (operator.getitem, (ROWS, torch.tensor([0, 1]))),  # integers may decide on sizes
        ("squeeze_", (ROWS,)),
        (torch.relu_, (ROWS,)),
        (lambda x: x, (ROWS,)),
        ("no_method", (ROWS,)),
        (torch.add, (1, 2)),
    ],
)
def test_what_more_than_shapes_decides_is_computed_each_time(target: Any, args: Any) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    outputs = [mode.from_tensor(ROWS) for _ in range(2)]
    given = [remembered_call(target, fake(args, mode), {}, mode, lambda out=out: out) for out in outputs]
    assert given[0] is outputs[0] and given[1] is outputs[1]


@pytest.mark.parametrize(
    "tensor",
    [
        ROWS,
        ROWS[1:, :3],
        ROWS.transpose(1, 2),
        IMAGES.to(memory_format=torch.channels_last),
        torch.arange(4),
        torch.tensor(2.5),
        ROWS[:0],
        nn.Parameter(ROWS),
        nn.Parameter(ROWS, requires_grad=False),
        ROWS.to(torch.complex64).conj(),
    ],
)
def test_a_tensor_without_values_is_like_the_one_that_it_stands_for(tensor: Tensor) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made, torchs = like(tensor, mode), mode.from_tensor(tensor)
    assert look(made) == look(torchs)
    assert (
        made.requires_grad,
        made.is_leaf,
        isinstance(made, nn.Parameter),
        made.is_conj(),
        made.storage_offset(),
    ) == (
        torchs.requires_grad,
        torchs.is_leaf,
        isinstance(torchs, nn.Parameter),
        torchs.is_conj(),
        torchs.storage_offset(),
    )


def fake(value: Any, mode: FakeTensorMode) -> Any:
    return map_structure(value, lambda v: mode.from_tensor(v) if isinstance(v, Tensor) else v)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def test_batch_norm_of_too_few_values_fails_as_torchs_own() -> None:
    space = analyse(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Standardised(8, 4, 1)), torch.randn(2, 3, 9, 9)).space
    (group,) = space.groups
    assert group.plain.startswith("with fewer channels the forward pass fails: Expected more than 1 value per channel")


class Uneven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, weight=self.scale, training=True)


def test_batch_norm_of_another_size_fails_as_torchs_own() -> None:
    assert analyse(Uneven(), IMAGES).space.groups == ()
    with pytest.raises(TraceError, match="failed: weight should contain 3 elements not 4"):
        analyse(Uneven(), torch.randn(2, 3, 9, 8))
