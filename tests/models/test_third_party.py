"""What must hold exactly, on models that nobody here wrote: their classes, with fewer and narrower layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import images, macs, parameters, random_architecture, random_widths
from tests.support.third_party import MODELS, Model
from understudy.core.architecture import Architecture
from understudy.cost.predict import predict
from understudy.graph.analysis import Analysis, analyse
from understudy.surgery.build import build, rebuild
from understudy.surgery.masked import relative_error, tensors_of

# One of each kind of difficulty in every run; the others in the slow set.
QUICK = {"resnet18", "squeezenet1_0", "shufflenet_v2_x1_0", "ghostnet_100", "convnext_atto"}
EACH = [pytest.param(model, id=model.name, marks=() if model.name in QUICK else pytest.mark.slow) for model in MODELS]
# Families whose parameters lie in layers whose width can shrink, at least 95% of them.
SHRINKABLE = {"vgg16_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "googlenet", "inception_v3"}
SHRINKABLE |= {"mobilenet_v2", "mobilenet_v3_small", "mobilenetv3_large_100", "mnasnet1_0", "efficientnet_b0"}
SHRINKABLE |= {"regnet_y_400mf", "regnety_004", "convnext_tiny", "convnext_atto", "seresnet50"}
WHOLE = {"vit_b_16", "swin_t", "edgenext_xx_small", "nfnet_f0"}  # as their libraries have them, and with fewer layers
SHRINKABLE |= WHOLE


@pytest.fixture(scope="module", params=EACH)
def model(request: pytest.FixtureRequest) -> Model:
    """One after the other, so that each is analysed once."""
    found: Model = request.param
    return found


@pytest.fixture(scope="module")
def analysis(model: Model) -> Analysis:
    return analyse(model.small(), images(2, size=model.size))


@pytest.fixture(scope="module", autouse=True)
def plain_attention() -> Iterator[None]:
    """Torch's flop counter does not see into the fused kernel of attention. From before a model is recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
        yield


def check_student(analysis: Analysis, architecture: Architecture, size: int) -> None:
    """A student is what was predicted, computes what it should, runs at two batch sizes, reloads and trains."""
    cost, x = predict(analysis, architecture), images(2, size=size)
    student = build(analysis, architecture).eval()
    assert cost.parameters == parameters(student)
    assert cost.macs == macs(student, x)
    with torch.no_grad():
        assert all(len(t) == 3 for t in tensors_of(student(images(3, size=size))))
    if not architecture.removed and not architecture.kernels:  # then dropping channels is multiplying them by zero
        assert relative_error(analysis, architecture, student, x) < 1e-5
    again = rebuild(analysis, architecture, student.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), student.parameters(), strict=True))
    student.train()
    sum(t.sum() for t in tensors_of(student(x))).backward()
    assert any(p.grad is not None for p in student.parameters())
    assert all(p.grad is None or p.grad.shape == p.shape for p in student.parameters())


def test_keep_all_is_the_teacher_bit_for_bit(model: Model, analysis: Analysis) -> None:
    teacher, student = copy.deepcopy(analysis.teacher), build(analysis, analysis.space.full)
    x = images(2, size=model.size)
    with torch.no_grad():
        for training in (False, True):
            outputs = []
            for module in (teacher.train(training), student.train(training)):
                torch.manual_seed(0)  # of dropout
                outputs.append(list(tensors_of(module(x))))
            assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_students(model: Model, analysis: Analysis) -> None:
    """20 random architectures of widths only and, every second one, without some units and with smaller kernels.

    8 of those that have 200 modules and more, as each decides about as much as several of the others; 5 where images
    are large.
    """
    draws = 20 if sum(1 for _ in analysis.teacher.modules()) < 200 else 8

    @settings(max_examples=draws if model.size < 200 else 5)
    @given(seed=st.integers(0, 2**32))
    def hold(seed: int) -> None:
        draw = random_architecture if seed % 2 else random_widths
        check_student(analysis, draw(analysis.space, seed), model.size)

    hold()


def test_most_of_it_can_shrink(model: Model, analysis: Analysis) -> None:
    assert model.name not in SHRINKABLE or analysis.shrinkable >= 0.95
    assert analysis.shrinkable > 0 or analysis.space.frozen  # or it is said what is in the way


# NFNet's asks for many narrower copies, which takes half a minute.
AT_NIGHT = {"nfnet_f0": pytest.mark.nightly}
EACH_WHOLE = [pytest.param(m, id=m.name, marks=AT_NIGHT.get(m.name, ())) for m in MODELS if m.name in WHOLE]


@pytest.mark.slow
@pytest.mark.parametrize("model", EACH_WHOLE)
def test_most_of_the_whole_model_can_shrink(model: Model) -> None:
    assert analyse(model.create(), images(2, size=model.size)).shrinkable >= 0.95
