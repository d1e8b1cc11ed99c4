from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.models import images, zoo_analysis
from tests.support.modules.base import Net
from understudy.core.architecture import Architecture, Refused, Space
from understudy.graph.analysis import Analysis, analyse
from understudy.proof import trial
from understudy.proof.prove import Proof, prove
from understudy.proof.trial import Trials
from understudy.surgery.build import build

REFUSED = Refused(kind="group", name="conv1", reason="it failed")


def analysed(between: Any = None, **more: Any) -> Analysis:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net(between, None, more).eval()
    return analyse(net, images(2, size=6))


def test_what_holds_is_offered_as_before() -> None:
    analysis = zoo_analysis("resnet20")
    proven, proof = prove(analysis)
    assert proven is analysis and proof.refused == ()
    assert proof.students > 10 and proof.dtype == "float64" and 0 < proof.largest < 1e-12


def break_when(monkeypatch: pytest.MonkeyPatch, wrong: Any, harm: Any) -> None:
    built = trial.build

    def broken(analysis: Analysis, architecture: Architecture, **options: Any) -> nn.Module:
        student = built(analysis, architecture, **options)
        if wrong(architecture):
            harm(student)
        return student

    monkeypatch.setattr(trial, "build", broken)


def test_the_group_that_is_to_blame_freezes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def harm(student: nn.Module) -> None:
        with torch.no_grad():
            student.get_parameter("stages.1.0.conv1.weight").neg_()

    break_when(monkeypatch, lambda a: a.width("stages.1.0.conv1") < 16, harm)
    analysis = zoo_analysis("resnet20")
    proven, proof = prove(analysis)
    (found,) = proof.refused
    assert (found.kind, found.name) == ("group", "stages.1.0.conv1")
    assert found.reason.startswith("in evaluation mode on a batch of 3 a student differs from the masked network at ")
    assert {g.name for g in analysis.space.groups} - {g.name for g in proven.space.groups} == {found.name}
    assert [f.reason for f in proven.space.frozen if f.name == found.name] == [found.reason]
    assert proven.space.units == analysis.space.units


def test_a_unit_whose_removal_crashes_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def harm(student: nn.Module) -> None:
        def crash(*arguments: Any) -> None:
            raise AttributeError("Identity has no attribute 'groups'")

        student.register_forward_pre_hook(crash)

    break_when(monkeypatch, lambda a: "stages.0.1" in a.removed, harm)
    proven, proof = prove(zoo_analysis("resnet20"))
    assert [(r.kind, r.name) for r in proof.refused] == [("unit", "stages.0.1")]
    assert proof.refused[0].reason == "a student fails: AttributeError: Identity has no attribute 'groups'"
    assert "stages.0.1" not in {unit.name for unit in proven.space.units}


@pytest.mark.parametrize(
    "between",
    [
        lambda net, y: y + net.gamma[:, None, None] * (y / math.sqrt(len(repr(net.a.bias.tolist()).split(",")))),
        lambda net, y: y + torch.relu(net.b(y) - 100) * len(net.a.bias.tolist()),
        lambda net, y: y + net.zero(net.b(y)) * len(net.a.bias.tolist()),
    ],
    ids=["a layer scale of 1e-9", "a dead activation", "a norm of scale zero"],
)
def test_nothing_hides_behind_small_numbers(between: Any) -> None:
    """With the parameters as they are, these students agree with the masked network; trained ones would not."""
    norm = nn.BatchNorm2d(8)
    nn.init.zeros_(norm.weight)
    analysis = analysed(between, gamma=nn.Parameter(torch.full((8,), 1e-9)), zero=norm)
    _, proof = prove(analysis)
    assert "a" in {found.name for found in proof.refused} or "a" in {f.name for f in analysis.space.frozen}


def test_a_recorded_pass_that_is_not_the_modules_proves_nothing() -> None:
    analysis = analysed(lambda net, y: y * (2.0 if torch.fx._symbolic_trace.is_fx_tracing() else 3.0))
    proven, proof = prove(analysis)
    assert proven.space.groups == proven.space.units == ()
    assert "computes something else than its recorded forward pass" in proof.refused[0].reason


def test_architectures_of_the_part_belong_to_the_whole() -> None:
    """A student's folder is read by the structure alone, without what a proof found."""
    whole = zoo_analysis("resnet20").space
    part = whole.without([REFUSED])
    assert Space.from_json(part.to_json()) == part and part.family == whole.digest != part.digest
    architecture = part.full.with_width("stages.0.0.conv1", 3)
    assert Architecture.from_json(whole, architecture.to_json()).digest == architecture.digest
    analysis = zoo_analysis("resnet20")
    assert torch.equal(
        build(analysis, architecture)(images(1)), build(analysis.without(part.refused), architecture)(images(1))
    )


def test_a_proof_comes_back_from_plain_values() -> None:
    proof = Proof(refused=(REFUSED,), students=3, largest=1e-15, dtype="float64")
    assert Proof.from_dict(proof.to_dict()) == proof
    assert proof.summary.endswith("not offered, because students were wrong: 1 group")


def test_the_teacher_and_the_random_state_are_left_alone() -> None:
    analysis = analysed()
    before = copy.deepcopy(analysis.teacher.state_dict())
    state, dtype = torch.random.get_rng_state(), torch.get_default_dtype()
    prove(analysis)
    assert all(torch.equal(value, before[name]) for name, value in analysis.teacher.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state) and torch.get_default_dtype() == dtype
    assert not any(module.training for module in (*analysis.teacher.modules(), *analysis.trace.root.modules()))


def test_what_python_cannot_double_is_proved_in_single_precision() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32
            return self.b(torch.relu(self.a(x))).mean((2, 3))

    proven, proof = prove(analyse(Single().eval(), images(2, size=4)))
    assert proof.dtype == "float32" and not proof.refused and proof.largest < 1e-5
    assert Trials(proven).reference == ""


class AddedInPlace(nn.Module):
    """Two residual blocks that add in place; what lies between them is read afterwards as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.low, self.high = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)
        self.first, self.second = (nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 5, H - 2, W - 2) of x (B, 3, H, W)."""
        x = self.stem(x)
        first = self.first(x)
        first += x
        second = self.second(first)
        second += first
        return self.low(first) + self.high(second)


def test_what_passes_by_a_removed_block_is_not_written_into() -> None:
    analysis = analyse(AddedInPlace().eval(), images(2, size=6))
    assert {"first", "second"} <= {unit.name for unit in analysis.space.units}
    assert prove(analysis)[1].refused == ()


class OverwritingBranch(nn.Module):
    """As pix2pix and VQ-VAEs: a branch begins in place, so what passes by it is changed as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(16, 5, 1))
        self.before, self.first, self.second = (
            nn.Sequential(relu, nn.Conv2d(8, 8, 1)) for relu in (nn.Tanh(), nn.ReLU(True), nn.LeakyReLU(0.2, True))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 5, H - 2, W - 2) of x (B, 3, H, W)."""
        x = self.before(self.stem(x))
        x = x + self.first(x)
        return self.head(torch.cat([x, self.second(x)], 1))  # type: ignore[no-any-return]


def test_a_branch_that_overwrites_what_passes_by_it_does_so_in_students() -> None:
    analysis = analyse(OverwritingBranch().eval(), images(2, size=6))
    assert {"branch:first.0", "joined:second.0"} <= {unit.name for unit in analysis.space.units}
    assert prove(analysis)[1].refused == ()


class Centred(nn.Module):
    """Subtracts a running mean, as DINO's head does: a tensor that takes the former one's place."""

    mean: Tensor

    def __init__(self, channels: int, always: bool) -> None:
        super().__init__()
        self.always = always
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = x - self.mean
        if self.training or self.always:
            self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3), keepdim=True).detach()
        return found


@pytest.mark.parametrize("always", [False, True])
def test_a_running_mean_is_told_from_what_evaluation_mode_remembers(always: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), Centred(8, always), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 3))
    _, proof = prove(analyse(net.eval(), images(2, size=6)))
    told = {found.reason.partition(", which")[0] for found in proof.refused}
    remembers = "the module must give the same for the same inputs, but in evaluation mode it reads what an earlier"
    assert told == ({f"{remembers} forward pass has stored"} if always else set())


class AsItsWeights(nn.Module):
    """Casts its input to the type of its own parameters, which stands in the recorded graph."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 3)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(next(self.parameters()).dtype)
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3))).float()  # type: ignore[no-any-return]


class CountedNorm(nn.BatchNorm2d):
    """A norm whose forward pass counts batches itself, in training, before it reads its input."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)


def test_a_norm_that_counts_in_its_own_forward_pass_can_go() -> None:
    analysis = analysed(
        lambda net, y: torch.relu(net.counted(net.more(y))), more=nn.Conv2d(8, 8, 1), counted=CountedNorm(8)
    )
    proven, proof = prove(analysis)
    assert proof.refused == () and {"more", "layer:counted"} <= {unit.name for unit in proven.space.units}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_network_in_half_precision_is_proved(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    analysis, proof = prove(analyse(AsItsWeights(dtype).eval(), torch.randn(2, 3, 8, 8)))
    assert [group.name for group in analysis.space.groups] == ["a", "b"] and proof.refused == ()
    student = build(analysis, analysis.space.full.with_width("a", 5))
    assert {p.dtype for p in student.parameters()} == {dtype}
