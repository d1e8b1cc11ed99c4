from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import understudy as us
from tests.support.kills import kill_and_go_on
from tests.support.tiny import DEVICE, FACTORY, FINAL, Tiny, outcome, squeeze, teach_tiny
from understudy.cli import main
from understudy.config.methods import Decore
from understudy.config.training import Training
from understudy.core.errors import ConfigError, GoalError, RunError, SurgeryError
from understudy.cost import measure
from understudy.data import Data
from understudy.jobs import prune
from understudy.jobs.teach import load_teacher
from understudy.methods import decore
from understudy.models.spec import Teacher
from understudy.models.student import load_student
from understudy.models.zoo.densenet import densenet
from understudy.models.zoo.resnet import resnet_thin

JOB = import_module("understudy.jobs.compress")
METHOD = Decore(training=Training(epochs=6, batch_size=32, lr=0.002, schedule="constant", loss="ce"), agent_lr=0.1)
GOAL = us.Goal(params="3x")


def quick(**rules: Any) -> pytest.MonkeyPatch:
    """Let agents start less sure than they do, for loops of a second."""
    patch = pytest.MonkeyPatch()
    patch.setattr(decore, "TUNED", replace(decore.TUNED, **rules))
    return patch


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    patch = quick(initial=3.0)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return teach_tiny(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def done(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> us.Result:
    """A finished run, not to be changed."""
    return squeeze(teacher, tmp_path_factory.mktemp("runs") / "done", method=METHOD, goal=GOAL)


def test_the_student_keeps_the_budget_and_uses_it(done: us.Result) -> None:
    parameters = sum(p.numel() for p in done.student.parameters())
    most = done.summary.teacher.cost.parameters / 3
    assert parameters == done.summary.student.cost.parameters and done.kept
    assert 0.8 * most < parameters <= most  # one more channel of the second layer would be too much
    assert done.architecture.channels and not done.architecture.removed
    # Better than what the agents left, which is far better than chance.
    pruned = json.loads(stored(done.run)[0])
    assert pruned["architecture"]["channels"] == {n: [*c] for n, c in done.architecture.channels}
    assert done.evaluation.score >= pruned["score"] > 0.3


def test_the_final_student_starts_from_the_network_that_learned_with_the_agents(
    teacher: Teacher, done: us.Result, tmp_path: Path
) -> None:
    final = replace(FINAL, weights="inherited")
    assert FINAL.weights == "compensated"
    again = squeeze(teacher, tmp_path / "run", method=METHOD, goal=GOAL, final=final)
    assert outcome(again.run)[1] == outcome(done.run)[1]
    fresh = squeeze(teacher, tmp_path / "fresh", method=METHOD, goal=GOAL, final=replace(FINAL, weights="fresh"))
    assert fresh.architecture == done.architecture and outcome(fresh.run)[1] != outcome(done.run)[1]


def test_agents_know_their_steps(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, told, taken = Data.digits(), list[int](), list[int]()
    few = replace(data, train=data.train.subset(33, seed=0))  # the last one joins the 32 before

    class Counting(decore.Agents):
        def __init__(self, *args: Any, steps: int, **more: Any) -> None:
            super().__init__(*args, steps=steps, **more)
            told.append(steps)

    class Stopped(Exception):
        pass

    def chosen(*_: Any) -> None:
        raise Stopped

    def trained(learner: prune.Learner, *args: Any, **more: Any) -> Any:
        outcome = train(learner, *args, **more)
        taken.append(int(learner.agents.steps))
        return outcome

    train = prune.train
    monkeypatch.setattr(prune, "Agents", Counting)
    monkeypatch.setattr(prune, "train", trained)
    monkeypatch.setattr(prune, "chosen", chosen)
    with pytest.raises(Stopped):
        us.compress(teacher, few, run=tmp_path, method=METHOD, goal=GOAL, device=DEVICE, progress=False, untrained=True)
    assert told == taken == [6]


def stored(folder: Path) -> list[str]:
    import optuna

    study = optuna.load_study(study_name="candidates", storage=f"sqlite:///{folder / 'study.db'}")
    return [trial.user_attrs["evaluation"] for trial in study.trials]


def test_run_folder_holds_everything(done: us.Result, teacher: Teacher) -> None:
    assert {path.name for path in (done.run / "decore").iterdir()} == {"architecture.json", "network.safetensors"}
    log = (done.run / "run.log").read_text()
    assert "epoch 6/6" in log and "masked equals sliced" in log and "pruned: " in log
    policy = load_file(done.run / "policy.safetensors")
    assert {name: len(part) for name, part in policy.items()} == {"first.0": 8, "second.0": 16}
    # The network learned together with its agents.
    learned = load_file(done.run / "decore" / "network.safetensors")
    assert not torch.equal(learned["first.0.weight"], teacher.module.get_parameter("first.0.weight"))


def test_a_finished_run_is_loaded_without_training(
    teacher: Teacher, done: us.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("understudy.training.evaluator.train", "understudy.jobs.prune.train"):
        monkeypatch.setattr(place, _unexpected)
    again = squeeze(teacher, done.run, method=METHOD, goal=GOAL)
    assert again.summary == done.summary


@pytest.mark.parametrize("name", ["network.safetensors", "architecture.json"])
def test_what_the_loop_found_is_found_again_where_it_is_damaged(
    teacher: Teacher, done: us.Result, tmp_path: Path, name: str
) -> None:
    shutil.copytree(done.run, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    damaged = tmp_path / "run" / "decore" / name
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(RunError, match=f"{name}.* move it away: without it the run finds out again"):
        squeeze(teacher, tmp_path / "run", method=METHOD, goal=GOAL)
    damaged.unlink()
    again = squeeze(teacher, tmp_path / "run", method=METHOD, goal=GOAL)
    assert again.architecture == done.architecture and outcome(again.run)[0] == outcome(done.run)[0]


def _unexpected(*args: object, **kwargs: object) -> None:
    raise AssertionError("nothing is to be done again")


def test_the_student_comes_back_from_its_folder(done: us.Result, tmp_path: Path) -> None:
    done.save(tmp_path / "student")
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_student(tmp_path / "student", trust_code=True)(images), done.student(images))


class Interruption(BaseException):
    """As if the process had died."""


def test_an_interrupted_loop_ends_as_an_undisturbed_one(
    teacher: Teacher, done: us.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After the second epoch, after the fifth, before anything of the result was written, and before the last file.
    for place, name, calls in (
        (prune._Report, "__call__", 2),
        (prune._Report, "__call__", 3),
        (prune, "save_weights", 1),
        (prune.Pruning, "analysed", 2),
        (JOB.Job, "tell_of_final", 1),
    ):
        with monkeypatch.context() as m:
            m.setattr(place, name, _dying(getattr(place, name), calls))
            with pytest.raises(Interruption):
                squeeze(teacher, tmp_path / "run", method=METHOD, goal=GOAL)
    squeeze(teacher, tmp_path / "run", method=METHOD, goal=GOAL)
    assert outcome(tmp_path / "run") == outcome(done.run)
    for name in ("policy.safetensors", "decore/network.safetensors", "decore/architecture.json"):
        assert (tmp_path / "run" / name).read_bytes() == (done.run / name).read_bytes()
    epochs = [line for line in (tmp_path / "run" / "run.log").read_text().splitlines() if "channels kept" in line]
    # An epoch that was told of but not yet kept is done again, nothing else.
    assert [line.split("epoch ")[1][0] for line in epochs] == ["1", "2", "2", "3", "4", "4", "5", "6"]


def _dying(function: Any, calls: int) -> Any:
    left = [calls]

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        answer = function(*args, **kwargs)
        if not left[0]:
            raise Interruption
        return answer

    return wrapper


def drive(teacher: str, folder: str) -> None:
    """Prune, in a process that may be killed."""
    measure.PAIRS = (3, 3)
    quick(initial=3.0)
    squeeze(load_teacher(teacher, trust_code=True), Path(folder), method=METHOD, goal=GOAL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked there")
def test_kills_change_nothing(teacher: Teacher, done: us.Result, tmp_path: Path) -> None:
    teach_tiny(tmp_path / "teacher")

    def check(folder: Path, undisturbed: Path) -> None:
        assert outcome(folder) == outcome(undisturbed)
        policy = "policy.safetensors"
        assert (folder / policy).read_bytes() == (undisturbed / policy).read_bytes()

    given = (str(tmp_path / "teacher"),)
    undisturbed = kill_and_go_on(drive, given, tmp_path, kills=4, between=(0.2, 0.8), check=check)
    assert outcome(undisturbed) == outcome(done.run)


@pytest.mark.parametrize(
    ("goal", "worth", "by_cost"),
    [
        (us.Goal(params="3x"), "cost", True),
        (us.Goal(params="3x", size_mb="3x"), "cost", True),
        (us.Goal(params="3x"), "channel", False),
        (us.Goal(params="3x", macs="3x", latency_ms="50"), "cost", True),
        (us.Goal(params="3x", memory_mb="2x"), "cost", False),
    ],
)
def test_agents_earn_the_cost_that_all_save_where_each_layer_has_some(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goal: us.Goal, worth: Any, by_cost: bool
) -> None:
    def seen(self: prune.Pruning, learner: Any, steering: Any, recipe: Any) -> None:
        assert steering.by_cost == learner.agents.together == by_cost
        raise Interruption

    monkeypatch.setattr(prune.Pruning, "train_network", seen)
    monkeypatch.setattr(decore, "TUNED", replace(decore.TUNED, worth=worth))
    with pytest.raises(Interruption):
        squeeze(teacher, tmp_path / "run", method=METHOD, goal=goal)


@pytest.mark.parametrize(("name", "goal"), [("macs", us.Goal(macs="3x")), ("latency_ms", us.Goal(latency_ms="50"))])
def test_other_budgets(teacher: Teacher, tmp_path: Path, name: str, goal: us.Goal) -> None:
    result = squeeze(teacher, tmp_path / "run", method=METHOD, goal=goal)
    assert result.kept and [budget.name for budget in result.summary.goal] == [name]
    if name == "macs":
        assert result.summary.student.cost.macs > 0.8 * result.summary.teacher.cost.macs / 3


def test_an_estimate_that_promised_too_little_is_corrected(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An imagined clock that goes by parameters, where the estimate goes by MACs and layers.
    def forward_ms(model: nn.Module, images: torch.Tensor, calls: int) -> float:
        share = sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in teacher.module.parameters())
        return 2.0 * share + 0.01

    monkeypatch.setattr("understudy.cost.measure.forward_ms", forward_ms)
    result = squeeze(teacher, tmp_path / "run", method=METHOD, goal=us.Goal(latency_ms="3x"))
    (budget,) = result.summary.goal
    assert result.kept and budget.obtained > 0.5 * budget.limit


def test_without_a_budget_the_penalty_decides(teacher: Teacher, tmp_path: Path) -> None:
    def kept(penalty: float) -> tuple[int, str]:
        method = Decore(training=METHOD.training, agent_lr=0.1, penalty=penalty)
        result = squeeze(teacher, tmp_path / str(penalty), method=method)
        assert result.summary.goal == ()
        return result.summary.student.cost.parameters, (tmp_path / str(penalty) / "run.log").read_text()

    (bold, quiet), (careful, warned) = kept(0.3), kept(1000.0)
    assert bold < careful == 3818
    assert "dropping does not pay" in warned and "dropping does not pay" not in quiet


def test_saturated_agents_are_warned_of(teacher: Teacher, tmp_path: Path) -> None:
    patch = quick(initial=9.6, importance=0.0, limit=0.0)
    method = Decore(training=METHOD.training, agent_lr=0.001)
    squeeze(teacher, tmp_path / "run", method=method, goal=us.Goal(params="1.1x"))
    patch.undo()
    log = (tmp_path / "run" / "run.log").read_text()
    assert "every agent still keeps its channel" in log and "100.00% saturated" in log
    assert "the agents did not reach the budget" not in log  # 1.1 times of it is near
    assert "every agent" not in (tmp_path / "run" / "config.toml").read_text()


def test_the_default_rate_gets_to_the_budget_on_small_data(teacher: Teacher, tmp_path: Path) -> None:
    logs, patch = [], quick(initial=6.9)
    for name, rate in (("default", 0.0), ("slow", 0.01)):
        squeeze(teacher, tmp_path / name, method=Decore(training=METHOD.training, agent_lr=rate), goal=GOAL)
        logs.append((tmp_path / name / "run.log").read_text())
    patch.undo()
    assert "the agents did not reach the budget" not in logs[0]
    assert re.search(r"did not reach the budget \(their expected cost is [1-3]\.\d\dx of it\)", logs[1])
    assert "increase decore.training.epochs or decore.agent_lr (it was 0.01)" in logs[1]


def test_agents_of_a_network_that_guesses_are_warned_of(teacher: Teacher, tmp_path: Path) -> None:
    logs = []
    for name, goal, rate in (("careful", GOAL, METHOD.agent_lr), ("hasty", us.Goal(params="27x"), 1.0)):
        squeeze(teacher, tmp_path / name, method=replace(METHOD, agent_lr=rate), goal=goal)
        logs.append((tmp_path / name / "run.log").read_text())
    assert "learning signal has vanished" not in logs[0]
    assert re.search(r"masked network's score fell to \d+\.\d+% \(chance level is \d+", logs[1])


class Noisy(Tiny):
    """Draws random numbers in every mode."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits + torch.randn_like(logits)


def test_a_network_that_draws_random_numbers_agrees_with_its_masks(tmp_path: Path) -> None:
    assert squeeze(Noisy(), tmp_path / "run", method=METHOD, goal=us.Goal(params="2x")).kept


def test_what_does_not_agree_is_not_saved(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from understudy.surgery.gated import Gate

    monkeypatch.setattr(Gate, "forward", lambda self, x: torch.relu(x) if self.relu else x)  # masks nothing
    with pytest.raises(SurgeryError, match="must answer as the masked one, but outputs of up to"):
        squeeze(teacher, tmp_path / "run", method=METHOD, goal=GOAL)
    assert not (tmp_path / "run" / "policy.safetensors").exists()
    assert [path.name for path in (tmp_path / "run" / "decore").iterdir()] == ["loop.checkpoint.pt"]


def test_widths_are_multiples(teacher: Teacher, tmp_path: Path) -> None:
    method = Decore(training=METHOD.training, agent_lr=0.1)
    result = squeeze(
        teacher, tmp_path / "run", method=method, goal=us.Goal(params="2x"), widths=us.Widths(round_to=4, min_width=4)
    )
    assert {width % 4 for _, width in result.architecture.widths} == {0}


def test_agents_can_learn_from_the_teacher_too(teacher: Teacher, tmp_path: Path) -> None:
    training = Training(epochs=2, batch_size=64, loss="mse+ce")
    result = squeeze(teacher, tmp_path / "run", method=Decore(training=training, agent_lr=0.1), goal=GOAL)
    assert result.kept and any((tmp_path / "run" / "logits").iterdir())


def test_a_training_that_fails_says_why(teacher: Teacher, tmp_path: Path) -> None:
    training = Training(epochs=1, batch_size=64, optimizer="sgd", lr=1e9, gradient_clip=0.0, loss="ce")
    with pytest.raises(RunError, match="must succeed, but it failed: diverged"):
        squeeze(teacher, tmp_path / "run", method=Decore(training=training), goal=GOAL)


@pytest.mark.slow
def test_methods_chain(teacher: Teacher, tmp_path: Path) -> None:
    first = squeeze(teacher, tmp_path / "n2n", goal=us.Goal(params="1.5x"))
    method = Decore(training=METHOD.training, agent_lr=0.1)
    second = squeeze(teacher, tmp_path / "decore", method=method, goal=us.Goal(params="4x"), start=first.student)
    assert second.kept and second.summary.teacher.cost.parameters == 3818 > first.summary.student.cost.parameters
    assert second.summary.teacher.val == first.summary.teacher.val
    assert second.summary.student.cost.parameters <= 3818 / 4
    narrow, any_width = us.UniformWidth(students=8), us.Widths(round_to=1, min_width=1)
    goal = us.Goal(params="6x")
    third = squeeze(teacher, tmp_path / "third", method=narrow, widths=any_width, goal=goal, start=second.student)
    assert third.summary.student.cost.parameters < second.summary.student.cost.parameters
    images = torch.randn(3, 1, 8, 8)
    second.save(tmp_path / "student")
    with torch.no_grad():
        assert torch.equal(load_student(tmp_path / "student", first.student)(images), second.student(images))
    with pytest.raises(RunError, match="the student to start from is another"):
        squeeze(teacher, tmp_path / "decore", method=method, goal=us.Goal(params="4x"))


class Normed(nn.Module):
    """A trunk with layer norms over channels, as ConvNeXt's, and a hidden layer beside it."""

    def __init__(self, *, centred: bool = False) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 12, 2, 2), nn.LayerNorm(12)
        self.wide, self.back = nn.Linear(12, 24), nn.Linear(24, 12)
        self.classifier = nn.Linear(12, 10)
        self.centred = centred

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 10) of images (B, 1, 8, 8)."""
        x = self.stem(images).permute(0, 2, 3, 1)
        x = x - x.mean(-1, keepdim=True) if self.centred else self.norm(x)
        x = x + self.back(torch.relu(self.wide(x)))
        return self.classifier(x.mean((1, 2)))


def test_a_trunk_with_layer_norms_over_channels_gets_narrower(tmp_path: Path) -> None:
    result = squeeze(Normed(), tmp_path / "run", method=METHOD, goal=us.Goal(params="3x"))
    assert {name for name, _ in result.architecture.widths} == {"stem", "wide"}
    assert "masked equals sliced" in (tmp_path / "run" / "run.log").read_text()


def test_channels_that_another_statistic_is_taken_over_stay(tmp_path: Path) -> None:
    result = squeeze(Normed(centred=True), tmp_path / "run", method=METHOD, goal=us.Goal(params="1.3x"))
    assert {name for name, _ in result.architecture.widths} == {"wide"}
    log = (tmp_path / "run" / "run.log").read_text()
    assert re.search(r"group stem keeps its 12 channels: at test_prune.py:\d+.* statistics are taken over these", log)
    assert "masked equals sliced" in log


@pytest.mark.slow
@pytest.mark.parametrize("make", [partial(resnet_thin, 20), partial(densenet, 22)], ids=["resnet20", "densenet22"])
def test_additions_and_concatenations_end_to_end(tmp_path: Path, make: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    deep = make(width=8, input_channels=1)
    method = Decore(training=Training(epochs=2, batch_size=32, lr=0.002, schedule="constant", loss="ce"), agent_lr=0.1)
    result = squeeze(deep, tmp_path / "run", method=method, goal=us.Goal(params="2x"))
    assert result.kept and result.summary.student.cost.parameters > result.summary.teacher.cost.parameters / 2.4
    assert "masked equals sliced" in (tmp_path / "run" / "run.log").read_text()


def test_there_must_be_something_to_decide(tmp_path: Path) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ConfigError, match="DECORE needs a group of channels that masks can drop"):
        squeeze(teacher, tmp_path / "run", method=METHOD)
    with pytest.raises(GoalError, match="within reach"):
        squeeze(Tiny(), tmp_path / "other", method=METHOD, goal=us.Goal(params="1000x"))


def test_the_command_line_knows_it(teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teach_tiny(tmp_path / "tiny")
    common = [str(tmp_path / "tiny"), "--trust-code", "--data", "digits", "--method=decore", "--params=3x"]
    device = [f"--device.device={DEVICE.device}", "--device.precision=fp32", "--device.memory-format=contiguous"]
    quick = [
        *("--decore.training.epochs=2", "--decore.agent-lr=0.2", *device),
        *(f"--final.training.epochs={FINAL.training.epochs}", "--final.training.batch-size=64"),
    ]
    assert main(["compress", *common, *quick, "--dry-run"]) == 0
    assert "What would be done" in capsys.readouterr().out
    run = str(tmp_path / "runs" / "one")
    assert main(["compress", *common, *quick, "--run", run]) == 0
    assert main(["resume", run, "--trust-code"]) == 0
    assert main(["runs", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "decore" in out and "1/1" in out and "finished" in out
    assert FACTORY and Data.digits().classes
