"""Whole compressions of what is no classifier of images: parts of models, tokens, numbers, places, objectives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

import understudy as us
from understudy.core.errors import ConfigError, DataError, MachineError, ModelError, RunError, TraceError
from understudy.models.card import StudentCard
from understudy.runs.folder import Run

DEVICE = us.Device(device="cpu", precision="fp32", workers=0)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.out = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.out(torch.relu(self.inner(torch.relu(self.stem(x)))))
        return {"features": features, "pooled": features.mean((2, 3))}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.norm, self.head = Backbone(), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.backbone(x)["pooled"]))


@dataclass
class Output:
    last: Tensor
    pooled: Tensor
    cache: object = None


class Tokens(nn.Module):
    """Two inputs by name, one of them whole numbers, and a dataclass of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(20, 16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, ids: Tensor, mask: Tensor | None = None, extra: Tensor | None = None) -> Output:
        x = self.table(ids)
        x = x + self.down(torch.relu(self.up(x)))
        assert mask is not None
        weights = mask.unsqueeze(-1).float()
        return Output(last=x, pooled=(x * weights).sum(1) / weights.sum(1))


def squeeze(teacher: nn.Module, data: us.Data, run: Path, **more: Any) -> us.Result:
    chosen: dict[str, Any] = {
        "method": us.RandomSearch(students=2),
        "goal": us.Goal(params="1.1x"),
        "candidates": us.Candidates(training=us.Training(epochs=1, batch_size=32)),
        "final": us.Final(students=1, training=us.Training(epochs=4, batch_size=16, loss="mse+ce")),
        "device": DEVICE,
        **more,
    }
    return us.compress(teacher, data, run=run, progress=False, **chosen)


def test_a_part_is_compressed_without_labels_and_put_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Model().eval(), drawn(120, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = us.Data.from_inputs(DataLoader(images, batch_size=50, shuffle=True))
    result = squeeze(model.backbone, data, tmp_path / "run")
    summary = result.summary
    assert summary.metric == "agreement" and summary.teacher.val.value == 1.0 and 0.1 < summary.student.val.value < 1
    with torch.no_grad():
        inputs = data.val.images
        wanted, found = model.backbone(inputs), result.student(inputs)
    errors = [(found[k] - v).norm() / (v - v.mean(0)).norm() for k, v in wanted.items()]
    assert sum(max(0.0, 1 - float(e)) for e in errors) / 2 == pytest.approx(summary.student.val.value, abs=1e-4)
    assert any("agreement" in line for line in str(result.table).splitlines())

    smaller = result.into(model)
    assert isinstance(smaller, Model) and smaller is not model and not smaller.backbone.training
    state = smaller.state_dict()
    assert all(torch.equal(state[k], v) for k, v in before.items() if not k.startswith("backbone"))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    fewer = summary.teacher.cost.parameters - summary.student.cost.parameters
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in smaller.parameters()) == fewer > 0
    with torch.no_grad():
        assert torch.equal(smaller(images), smaller.head(smaller.norm(result.student(images)["pooled"])))
    for other in (Model(), "backbone"):
        with pytest.raises(ModelError, match="the very module that compress"):
            result.into(other)  # type: ignore[arg-type]

    parity = result.export(tmp_path / "exported", ["source"]).parity
    assert parity["source"].absolute == 0.0 and parity["source"].agreement is None
    assert "| agreement on validation |" in (tmp_path / "exported" / "README.md").read_text()
    result.save(tmp_path / "saved")
    again = us.load_student(tmp_path / "saved", Backbone())
    assert torch.equal(again(images)["features"], result.student(images)["features"])
    assert squeeze(model.backbone, data, tmp_path / "run").evaluation == result.evaluation  # loaded


@pytest.mark.parametrize("method", [us.UniformWidth(students=1), us.Decore(training=us.Training(epochs=1))])
def test_tokens_by_name_and_outputs_in_a_dataclass(method: us.Method, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = Tokens().eval()
    ids = torch.randint(0, 20, (100, 6), generator=torch.Generator().manual_seed(0))
    inputs = {"ids": ids, "mask": (ids > 2).long()}
    result = squeeze(teacher, us.Data.from_inputs(inputs), tmp_path / "run", method=method)
    assert result.kept and result.summary.metric == "agreement" and 0.0 < result.summary.student.val.value < 1.0
    assert isinstance(result.student(**inputs), Output)
    result.save(tmp_path / "saved")
    card = StudentCard.read(tmp_path / "saved")
    part = {"dtype": "int64", "shape": [6]}
    assert card.input == {"named": {"ids": part, "mask": part}} and card.objective == "agreement"
    again = us.load_student(tmp_path / "saved", Tokens())
    assert torch.equal(again(**inputs).pooled, result.student(**inputs).pooled)
    with pytest.raises(ModelError, match=r"which are ids, mask, extra, but the data have 'idz' \(did you mean 'ids'"):
        squeeze(teacher, us.Data.from_inputs({"idz": ids, "mask": ids}), tmp_path / "wrong")
    with pytest.raises(ModelError, match=r"here ids: int64 \(10, 6\), but it failed"):
        squeeze(teacher, us.Data.from_inputs({"ids": ids}), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def numbers() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a teacher of two numbers, inputs and targets."""
    torch.manual_seed(0)
    teacher, inputs = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2)).eval(), drawn(200, 6)
    return teacher, inputs, teacher(inputs).detach() + 0.05 * drawn(200, 2, seed=1)


def test_regression_within_a_goal_for_the_score(tmp_path: Path) -> None:
    teacher, inputs, targets = numbers()
    data = us.Data.from_inputs(inputs, targets, test=(inputs[:50], targets[:50]))
    goal = us.Goal(params="1.1x", score_drop=0.9)
    result = squeeze(teacher, data, tmp_path / "run", objective="regression", goal=goal)
    with torch.no_grad():
        error = (result.student(inputs[:50]) - targets[:50]).square().sum()
    r2 = 1 - error / (targets[:50] - targets[:50].mean(0)).square().sum()
    assert result.summary.student.test is not None and result.summary.metric == "R2"
    assert result.summary.student.test.value == pytest.approx(float(r2), abs=1e-5) and result.kept
    assert Run(tmp_path / "run").settings.objective == "regression"
    assert not (tmp_path / "run" / "predictions.npz").exists()


def closeness(outputs: Any, targets: Tensor) -> Tensor:
    return 1 / (1 + (outputs[""] - targets).square().mean(1))


def constant(outputs: Any, targets: Tensor) -> Tensor:
    return torch.full((len(targets),), 0.5)


def undefined(outputs: Any, targets: Tensor) -> Tensor:
    return torch.full((len(targets),), float("nan"))


def test_an_objective_of_ones_own(tmp_path: Path) -> None:
    teacher, inputs, targets = numbers()
    data = us.Data.from_inputs(inputs, targets)
    own = us.Objective(teach="cosine", scored=closeness, learn=lambda o, t: functional.l1_loss(o[""], t))
    result = squeeze(teacher, data, tmp_path / "run", objective=own)
    with torch.no_grad():
        expected = closeness({"": result.student(data.val.images)}, data.val.labels).mean()
    assert result.evaluation.score == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(RunError, match="your own objective is another"):
        squeeze(teacher, data, tmp_path / "run", objective=replace(own, scored=constant))
    for score, message in ((constant, "score is 50.00% for the teacher and 50.00%"), (undefined, "score is nan")):
        with pytest.raises(ModelError, match=message):
            squeeze(teacher, data, tmp_path / score.__name__, objective=us.Objective(scored=score))
    with pytest.raises(ConfigError, match="must be given again"):
        squeeze(teacher, data, tmp_path / "other", objective="own")


def failing(outputs: Any, targets: Any = None) -> Tensor:
    raise KeyError("mine")


def of_each(outputs: Any, targets: Any) -> Tensor:
    return (outputs[""] - targets).square().mean(1)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"scored": failing}, "the score of an objective must work on .* but it failed: KeyError: 'mine'"),
        ({"scored": lambda o, t: {"": 0.5}}, "scored returned a dict"),
        ({"scored": closeness, "learn": failing}, "the loss of an objective must work on .* KeyError: 'mine'"),
        ({"scored": closeness, "learn": of_each}, r"one number, a tensor of shape \(\), but got one of shape \(\d+,\)"),
        ({"scored": closeness, "teach": failing}, "the loss of an objective must work on .* KeyError: 'mine'"),
        ({"scored": closeness, "teach": lambda s, t: 0.5}, "the loss of an objective must work on .* TypeError"),
    ],
)
def test_an_objective_of_ones_own_is_tried_at_the_door(functions: Any, message: str, tmp_path: Path) -> None:
    teacher, inputs, targets = numbers()
    data = us.Data.from_inputs(inputs, targets)
    with pytest.raises(DataError, match=message):
        squeeze(teacher, data, tmp_path / "run", objective=us.Objective(**functions))
    assert not (tmp_path / "run").exists()


class Contrastive(nn.Module):
    """How alike each two examples of a batch are, as CLIP gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(x)
        return y @ y.t()


def test_outputs_that_are_of_the_batch_are_refused_with_the_way_out(tmp_path: Path) -> None:
    data = us.Data.from_inputs(torch.randn(40, 6))
    with pytest.raises(ModelError, match=r"outputs of its own.*gives float32 \(2, 2\) for 2 examples.*part=model"):
        us.compress(Contrastive(), data, run=tmp_path / "run")


def test_what_does_not_fit_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    teacher, inputs, targets = numbers()
    wrong: list[tuple[us.Data, dict[str, Any], type[Exception], str]] = [
        (us.Data.from_inputs(inputs, targets), {}, ConfigError, "must be said to be for something"),
        (us.Data.from_inputs(inputs, targets), {"objective": "segmentation"}, DataError, "logits for each place"),
        (us.Data.from_inputs(inputs, targets[:, :1]), {"objective": "regression"}, DataError, "one target for each"),
        (us.Data.from_inputs(inputs, targets.flip(0)), {"objective": "regression"}, ModelError, "R2 is 0.00%"),
        (us.Data.from_inputs(inputs[:, :5]), {}, ModelError, r"here float32 \(20, 5\), but it failed"),
        (us.Data.from_inputs((inputs, inputs)), {}, ModelError, "takes 2 positional|takes from|but 3 were given"),
        (us.Data.from_inputs(inputs), {"augmentation": us.Augmentation(flip=True)}, ConfigError, "varies images"),
        (
            us.Data.from_inputs(inputs),
            {"final": us.Final(training=us.Training(loss="ce"))},
            ConfigError,
            "learns from labels alone, but the data have none: give final.training.loss mse",
        ),
        (us.Data.from_inputs(inputs), {"method": us.Decore()}, ConfigError, "give decore.training.loss mse"),
    ]
    for data, more, error, message in wrong:
        with pytest.raises(error, match=message):
            squeeze(teacher, data, tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


class Tagger(nn.Module):
    """Logits of 9 tags for each of a text's tokens, of which there are 20, and for each example a kind, one of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.kinds, self.last = nn.Embedding(20, 8), nn.Embedding(3, 8), nn.Linear(8, 9)

    def forward(self, tokens: Tensor, kinds: Tensor) -> Tensor:
        return self.last(torch.relu(self.tokens(tokens) + self.kinds(kinds)[:, None]))


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("part", "wrong", "message"),
    [
        ("targets", 9, r"for language targets must be in 0\.\.8, or -100 for none, but got 9 \(in SPLIT\)"),
        ("targets", -1, r"but got -1 \(in SPLIT\)"),
        ("tokens", 20, r"every example of SPLIT, but it fails where .*\.\.20, 0\.\.2, are largest .*: index out of"),
        ("kinds", 3, r"every example of SPLIT, but it fails where .*\.\.19, 0\.\.3, are largest"),
        ("kinds", -1, r"every example of SPLIT, but it fails where .*\.\.19, -1\.\.2, are largest"),
    ],
)
def test_a_number_out_of_range_anywhere_is_refused_at_the_door(
    part: str, wrong: int, message: str, split: str, tmp_path: Path
) -> None:
    drawn_by = torch.Generator().manual_seed(0)

    def examples(name: str) -> Any:
        found = {key: torch.randint(0, most, (60, 5), generator=drawn_by) for key, most in
                 {"tokens": 20, "kinds": 3, "targets": 9}.items()}  # fmt: skip
        found["kinds"] = found["kinds"][:, 0]
        if name == split:
            found[part].view(-1)[-1] = wrong  # beyond the first examples, which the outputs are measured on
        return {key: found[key] for key in ("tokens", "kinds")}, found["targets"]

    data = us.Data.from_inputs(*examples("train"), val=examples("val"), test=examples("test"))
    with pytest.raises(DataError, match=message.replace("SPLIT", split)):
        squeeze(Tagger(), data, tmp_path / "run", objective="language")
    assert not (tmp_path / "run").exists()


class Hungry(Tagger):
    """Has no memory for the token 19."""

    def forward(self, tokens: Tensor, kinds: Tensor) -> Tensor:
        if (tokens == 19).any():
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")
        return super().forward(tokens, kinds)


def test_memory_that_runs_out_is_no_fault_of_the_numbers(tmp_path: Path) -> None:
    inputs = {"tokens": torch.zeros(60, 5, dtype=torch.int64), "kinds": torch.zeros(60, dtype=torch.int64)}
    data = us.Data.from_inputs(inputs, val={**inputs, "tokens": inputs["tokens"].clone()})
    data.val.images["tokens"][-1] = 19
    with pytest.raises(MachineError, match=r"memory ran out while the teacher ran on a few examples; .*20.00 GiB"):
        squeeze(Hungry(), data, tmp_path / "run")


class OneNumber(nn.Module):
    """One number for each example, (B,), as regressions and two-class networks that squeeze give it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x))).squeeze(1)


@pytest.mark.parametrize("labelled", [False, True])
def test_a_network_may_give_one_number_for_each_example(tmp_path: Path, labelled: bool) -> None:
    teacher, inputs = OneNumber(), drawn(24, 6)
    data = us.Data.from_inputs(inputs, drawn(24) if labelled else None)
    result = us.compress(
        teacher,
        data,
        run=tmp_path,
        objective="regression" if labelled else None,
        method=us.RandomSearch(students=1),
        candidates=us.Candidates(training=us.Training(epochs=1), examples=16),
        final=us.Final(students=1, training=us.Training(epochs=1)),
        device=DEVICE,
        untrained=True,
        progress=False,
    )
    assert result.student(inputs).shape == (24,)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["frozen", "scripted"])
def test_a_teacher_that_cannot_learn_is_refused_at_the_door(tmp_path: Path, kind: str) -> None:
    frozen = OneNumber().requires_grad_(False)
    teacher = frozen if kind == "frozen" else torch.jit.script(OneNumber())
    with pytest.raises(
        TraceError, match=r"requires_grad_\(True\)" if kind == "frozen" else "torch.jit.script was called"
    ):
        us.compress(teacher, us.Data.from_inputs(drawn(24, 6)), run=tmp_path, progress=False)
