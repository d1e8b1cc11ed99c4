from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn import functional as F

from tests.support.alone import run_alone
from tests.support.models import images, random_architecture, zoo_analysis
from tests.support.third_party import MODELS, Model
from understudy.core.errors import ExportError
from understudy.export.source import Source, source_of
from understudy.graph.analysis import Analysis, analyse
from understudy.models import zoo
from understudy.surgery.build import build

QUICK = ("resnet20", "vgg11", "mobilenet_v2")
MARKS = dict.fromkeys(QUICK, ()) | {"resnet110": (pytest.mark.slow, pytest.mark.nightly)}  # it has more blocks only
ZOO = [pytest.param(name, marks=MARKS.get(name, pytest.mark.slow)) for name in zoo.names()]
# One of each difficulty: attention, parameters of the module itself, lists as arguments, functions of torchvision,
# shapes in the forward pass, heads in training only, batch norm that is a class of its own.
NAMES = ("resnet18", "vit_b_16", "convnext_tiny", "densenet121", "efficientnet_b0", "shufflenet_v2_x1_0", "googlenet")
NAMES += ("mobilenet_v3_small", "convnext_atto", "ghostnet_100", "seresnet50")
OTHERS = [
    pytest.param(m, id=m.name, marks=() if m.name == "resnet18" else pytest.mark.slow)
    for m in MODELS
    if m.name in NAMES
]


def students(analysis: Analysis, *, few: bool) -> list[nn.Module]:
    drawn = [random_architecture(analysis.space, seed) for seed in (0, 1)]
    return [build(analysis, architecture) for architecture in ([drawn[0]] if few else [analysis.space.full, *drawn])]


def check(student: nn.Module, source: Source, size: int = 32) -> None:
    """`source_of` has proved equal outputs; here it is that names, weights and training are those of the student."""
    before = torch.get_rng_state()
    written = source.build()
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(written.state_dict()) == sorted(student.state_dict())
    assert "understudy" not in source.text and "torchvision" not in source.text and "timm" not in source.text
    assert max(map(len, source.text.splitlines())) <= 120
    results = []
    for module in (copy.deepcopy(student).train(), written.train()):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        torch.manual_seed(0)
        out = module(images(2, size=size))
        (out if isinstance(out, Tensor) else out[0]).square().sum().backward()
        optimiser.step()
        results.append(module.state_dict())
    # Sums of gradients over paths may be in another order.
    assert all(torch.allclose(results[0][name], results[1][name], rtol=1e-3, atol=1e-4) for name in results[0])


@pytest.mark.parametrize("name", ZOO)
def test_students_of_the_zoo(name: str) -> None:
    for student in students(zoo_analysis(name), few=name in QUICK):
        check(student, source_of(student, images(2)))


@pytest.mark.parametrize("model", OTHERS)
def test_students_of_models_that_nobody_here_wrote(model: Model) -> None:
    for student in students(analyse(model.small(), images(2, size=model.size)), few=model.name == "resnet18"):
        source = source_of(student, images(2, size=model.size))
        assert source.build().state_dict().keys() == student.state_dict().keys()
        assert max(map(len, source.text.splitlines())) <= 120


def test_only_torch_is_needed(tmp_path: Path) -> None:
    analysis = zoo_analysis("mobilenet_v2")
    student = build(analysis, random_architecture(analysis.space, 3)).eval()
    source = source_of(student, images(2))
    (tmp_path / "model.py").write_text(source.text)
    torch.save(dict(source.tensors), tmp_path / "weights.pt")
    expected = {batch: student(images(batch)).detach() for batch in (1, 2, 7)}
    torch.save({"inputs": {b: images(b) for b in expected}, "outputs": expected}, tmp_path / "check.pt")
    run_alone(
        f"""
import importlib.util, torch
torch.set_num_threads({torch.get_num_threads()})
spec = importlib.util.spec_from_file_location("model", "model.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
model = module.{source.name}()
model.load_state_dict(torch.load("weights.pt"), strict=True)
check = torch.load("check.pt")
for batch, inputs in check["inputs"].items():
    assert torch.equal(model.eval()(inputs), check["outputs"][batch]), batch
model.train()(check["inputs"][7]).sum().backward()
""",
        tmp_path,
    )


def test_it_reads_as_a_person_would_write_it() -> None:
    analysis = zoo_analysis("resnet20")
    text = source_of(build(analysis, analysis.space.full.with_width("stages.0.1.conv1", 5)), images(2)).text
    assert "\n".join(text.splitlines()[11:32]) == (
        '''\
class BasicBlock(nn.Module):
    """9 of the student, from stages.0.0 on."""

    def __init__(
        self,
        in_channels: int,
        conv1_channels: int,
        stride: int,
        conv2_channels: int,
        shortcut: nn.Module,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, conv1_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(conv1_channels)
        self.conv2 = nn.Conv2d(conv1_channels, conv2_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(conv2_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))'''
    )
    assert text.count("class ") == 2


def test_it_compiles() -> None:
    analysis = zoo_analysis("resnet20")
    student = build(analysis, random_architecture(analysis.space, 0)).eval()
    written = source_of(student, images(2)).build()
    compiled = torch.compile(written, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images(3)), student(images(3)))


class Awkward(nn.Module):
    """What forward passes do: functions with a training flag, shared layers, tied weights, views, lists, loops."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])
        self.act = self.same = nn.ReLU()
        self.shared = nn.Linear(8, 8)
        self.other = self.shared
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.shared.weight
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.register_buffer("offset", torch.full((8,), 0.25), persistent=False)
        self.factor = torch.full((8,), 2.0)

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.conv(images)) * self.scale
        for conv in self.convs:
            x = self.same(conv(x))
        x += 1
        b, c, h, w = x.shape
        x = x.view(b, c // 2, 2, h, w).transpose(1, 2).reshape(b, c, h * w)
        x = F.dropout(x, 0.5, training=self.training)
        a, d = x.mean(2).chunk(2, 1)
        x = torch.cat([d, a], dim=1) * self.factor + self.offset + torch.tensor([0.5])
        x = x / -((x.abs() + 2) ** 2)
        return self.tied(self.other(self.shared(x)))


def test_what_forward_passes_do() -> None:
    student = Awkward()
    source = source_of(student, images(2, size=8))
    assert "        for conv in self.convs:\n            x = self.act(conv(x))\n        x += 1\n" in source.text
    assert "b, c, h, w = x.shape" in source.text
    assert "training=self.training" in source.text
    written = source.build()
    assert written.tied.weight is written.shared.weight and written.other is written.shared
    assert written.state_dict().keys() == {
        *student.state_dict(),
        "offset",
        "factor",
        "_tensor_constant0",
    }  # what is in no state dict comes with it


def test_a_graph_module_is_written_as_well() -> None:
    analysis = zoo_analysis("resnet20")
    student = build(analysis, random_architecture(analysis.space, 0)).eval()
    graph = torch.fx.symbolic_trace(student)
    source = source_of(graph, images(2))
    assert source.name == "Student"
    assert torch.equal(source.build()(images(3)), student(images(3)))


def test_members_may_have_names_that_are_no_names() -> None:
    student = nn.Sequential()
    for name, layer in (("class", nn.Linear(4, 4)), ("a b", nn.Linear(4, 4)), ("é", nn.ReLU())):
        student.add_module(name, layer)

    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("class", nn.Linear(4, 4))
            self.add_module("a b", nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
            self.register_buffer("def", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            members = self._modules
            return members["a b"](members["class"](x)) * self._buffers["def"]

    for module in (student, Keywords()):
        written = source_of(module.eval(), torch.randn(2, 4)).build()
        assert written.state_dict().keys() == module.state_dict().keys()


class Many(nn.Module):
    """Members in dictionaries and lists, a default, results in a dictionary, another precision."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"near": nn.Linear(4, 4), "far": nn.Linear(4, 2, bias=False)})
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(4)) for _ in range(2)])

    def forward(self, x: Tensor, scale: float = 2.0) -> dict[str, Any]:
        y = x * self.scales[1]
        return {"near": self.heads["near"](y), "both": (self.heads["far"](y) * scale, y.clamp(0, float("inf")))}


def test_members_defaults_and_results_of_all_kinds() -> None:
    source = source_of(Many().double(), torch.zeros(2, 4, dtype=torch.float64))
    assert "    def forward(self, x: Tensor):\n        x = x * self.scales[1]\n" in source.text
    assert '"far": nn.Linear(4, 2, bias=False, dtype=torch.float64)' in source.text
    assert '        x = x.clamp(0, float("inf"))\n        return {"near": near, "both": (y, x)}\n' in source.text


class Numbered(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.add_module("0", nn.Linear(4, 4))
        self.add_module("1", activation)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "1")(getattr(self, "0")(x))  # type: ignore[no-any-return]


class Masked(nn.Module):
    """A mask that may be None, and a branch on the kind of an input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None, scale: float = 2.0) -> Tensor:
        if torch.is_complex(x):
            x = x.real
        return self.layer(x) * scale if mask is None else self.layer(x) * mask


def test_an_input_that_is_none_stays_an_input() -> None:
    x = torch.zeros(2, 4)
    for example in ((x, None), {"x": x, "mask": None}):
        assert "    def forward(self, x: Tensor, mask: None) -> Tensor:\n" in source_of(Masked(), example).text
    assert "    def forward(self, x: Tensor, mask: Tensor) -> Tensor:\n" in source_of(Masked(), (x, x)).text


class Pyramid(nn.Module):
    """Maps of several sizes in a list, of which the next module uses but the last ones, as in a feature pyramid."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> list[Tensor]:
            maps = [x]
            for layer in self.layers:
                maps.append(torch.relu(layer(maps[-1])))
            return maps

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, maps: list[Tensor]) -> Tensor:
            near, far = maps[-2:]
            return self.first(near) + self.second(far)

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = self.Encoder(), self.Decoder()

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def test_a_list_of_which_a_module_uses_a_part() -> None:
    text = source_of(Pyramid(), torch.zeros(2, 4)).text
    assert "def forward(self, maps: list[Tensor]) -> Tensor:" in text and "self.decoder(" in text


class Half(nn.Module):
    """Keeps half of the steps, however many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, : int(0.5 * x.shape[1])]


def test_numbers_that_int_computes() -> None:
    assert "[:, :int(0.5 * x.shape[1])]" in source_of(Half(), torch.zeros(2, 6, 4)).text


def test_numbers_of_members_are_no_arguments() -> None:
    written = source_of(nn.Sequential(Numbered(nn.ReLU()), Numbered(nn.Tanh())), torch.rand(2, 4))
    assert written.text.count("(nn.Module)") >= 2
    assert sorted(written.build().state_dict()) == ["0.0.bias", "0.0.weight", "1.0.bias", "1.0.weight"]


def test_recurrent_layers() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True, dropout=0.1)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.lstm(self.embed(tokens))[0]

    source = source_of(Reader(), torch.arange(6).view(2, 3))
    assert "self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True, dropout=0.1)" in source.text


class Parts(nn.Module):
    """A layer of torch's own transformer, and what stands for an addition in networks to be quantised some day."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.add = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        causal = torch.triu(torch.full((x.size(1), x.size(1)), float("-inf")), 1)
        return self.add.add_relu(x, self.layer(x, src_mask=causal))  # type: ignore[no-any-return]


def test_layers_of_torch_that_are_made_of_layers_are_classes_of_their_own() -> None:
    source = source_of(Parts(), torch.zeros(2, 3, 8))
    assert "self.self_attn = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)" in source.text


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_min(0) if bool(x.sum() > 0) else x


def test_why_it_cannot_be_written() -> None:
    with pytest.raises(ExportError, match=r"model.py must hold layers of torch.nn only, but '1' is a .*Cut, which"):
        source_of(nn.Sequential(nn.Linear(4, 4), Cut()), torch.zeros(2, 4), leaf_modules=(Cut,))
    other = nn.Linear(4, 4)
    other.in_features = 5
    with pytest.raises(ExportError, match=r"but '0' is not what Linear makes of its own attributes"):
        source_of(nn.Sequential(other), torch.zeros(2, 4))
    with pytest.raises(ExportError, match=r"must not branch on the values of a tensor"):
        source_of(nn.Sequential(nn.Linear(4, 4), Cut()), torch.zeros(2, 4))


class Random(nn.Module):
    """Numbers at random that a trace holds for constants."""

    def forward(self, x: Tensor) -> Tensor:
        return x * random.random() if self.training else x


def test_what_was_written_is_run_beside_the_student() -> None:
    with pytest.raises(ExportError, match="but it does not in training mode on a batch of 3"):
        source_of(nn.Sequential(nn.Linear(4, 4), Random()), torch.zeros(2, 4))
