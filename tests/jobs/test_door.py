"""The first look at a teacher, on one that knows the digits by heart."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.modules import module as modules
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

import understudy as us
from tests.support.tiny import CANDIDATES, DEVICE, FINAL, METHOD, Tiny, squeeze
from understudy.config.job import Compression
from understudy.config.training import Device
from understudy.core import caller
from understudy.core.architecture import Frozen
from understudy.core.errors import (
    ArchitectureError,
    ConfigError,
    DataError,
    GoalError,
    MachineError,
    ModelError,
    RunError,
)
from understudy.core.summary import Score
from understudy.data import Data
from understudy.data.repeated import repeated
from understudy.jobs.door import Look, Losses, Normalisation, look_at
from understudy.jobs.dry_run import plan, plan_table
from understudy.jobs.task import Task, refuse_other_kinds
from understudy.models.spec import Teacher
from understudy.models.student import student_folder
from understudy.models.weights import weights_digest
from understudy.training.compute import choose_compute, refuse_untrainable


class Brightness(nn.Module):
    """Tells dark from bright images by how they were normalised: above `at` in the mean is bright."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.first, self.at = nn.Conv2d(1, 4, 1), at
        self.classifier = nn.Linear(4, 2)
        with torch.no_grad():
            self.first.weight.fill_(1.0)
            self.first.bias.fill_(-at)
            self.classifier.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 4))
            self.classifier.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 2) of images (B, 1, h, w)."""
        return self.classifier(self.first(images).mean((2, 3)))


def shades(*, val: bool = False) -> Data:
    """Return flat images but for two pixels, of class 1 from 100 of 255 on: in the mean they are brighter than that."""
    grey = np.random.default_rng(0).integers(1, 255, 2000).astype(np.uint8)
    images, labels = np.repeat(grey[:, None], 64, axis=1), (grey >= 100).astype(np.int64)
    for image, (more, less) in zip(images, permutations(range(64), 2), strict=False):  # no two images are the same
        image[more] += 1
        image[less] -= 1
    images = images.reshape(-1, 8, 8)
    half = slice(1000, 1200)
    return Data.from_arrays(images[:1000] if val else images, labels[:1000] if val else labels,
                            val=(images[half], labels[half]) if val else None)  # fmt: skip


def task_of(module: nn.Module, data: Data, **known: object) -> Task:
    settings = Compression(method=METHOD, candidates=CANDIDATES, final=FINAL, device=DEVICE)
    return Task.of(Teacher(module=module, **known), data, settings)  # type: ignore[arg-type]


def test_random_weights_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    torch.manual_seed(0)  # of a hundred random networks some are better than a guess
    guessing = Tiny()
    with pytest.raises(
        ModelError,
        match=r"(?s)gets \d+\.\d+% ± \S+ of \d+ images right, where a guess gets 10\.00%.*"
        r"1\. its weights were not loaded.*2\. it was trained with another normalisation.*"
        r"3\. its classes are in another order than the data's: 0, 1, 2, 3, \.\.\.\n.*--untrained",
    ):
        squeeze(guessing, tmp_path / "run", untrained=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ModelError, match="must be trained"):
        plan(task_of(guessing, Data.digits()))


def test_what_workers_could_not_get_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    class Local(Tiny):
        """In no module that a process could import."""

    with pytest.raises(RunError, match=r"must be picklable, its class at the top level .* or use workers=1"):
        squeeze(Local(), tmp_path / "run", device=replace(DEVICE, workers=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("teacher", "data", "method", "error", "text"),
    [
        (
            "model.py:make",
            Data.digits(),
            None,
            ModelError,
            "a teacher must be a torch.nn.Module, or .* got 'model.py:make'",
        ),
        (Tiny(), "photos", None, DataError, r"data must be a us.Data, such as us.Data.from_folder\(.* got 'photos'"),
        (Tiny(), [1, 2], None, DataError, "but got a list"),
        (Tiny(), Data.digits(), "random", ConfigError, r"must be its settings, such as us.N2N\(\) .* got 'random'"),
    ],
)
def test_names_and_paths_are_refused_where_python_takes_objects(
    teacher: Any, data: Any, method: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        refuse_other_kinds(teacher, data, method)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: us.Data.from_inputs(None), DataError, "train must hold inputs, but got NoneType"),
        (lambda: us.load_student(3), ModelError, "the folder of a student must be a path, but got an int"),  # type: ignore[arg-type]
        (lambda: us.load_teacher(None), ModelError, "the folder of a teacher must be a path"),  # type: ignore[arg-type]
        (lambda: student_folder([]), ModelError, "a start must be a path, but got a list"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_path_is_refused(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("wrong", [None, 3, "x", [], {}, Tiny(), torch.zeros(2)])
def test_what_is_no_analysis_and_no_architecture_is_refused(wrong: Any) -> None:
    analysis = us.analyse(Tiny(), torch.zeros(2, 1, 8, 8))
    full = analysis.space.full
    for call in (us.predict, us.build, lambda *given: us.rebuild(*given, {}), lambda given, _: us.prove(given)):
        with pytest.raises(
            ConfigError, match=r"an analysis must be what us.analyse\(teacher, example\) returns, but got"
        ):
            call(wrong, full)
    for call in (us.predict, us.build, lambda *given: us.rebuild(*given, {})):
        with pytest.raises(ArchitectureError, match=r"an architecture must be one of the Space, .* but got"):
            call(analysis, wrong)
    for text, call in {
        "weights must be one of": lambda: us.build(analysis, full, weights=wrong),
        "a method with a paper must be": lambda: us.paper(wrong),
        "on_student must be a function": lambda: us.prove(analysis, on_student=0),  # type: ignore[arg-type]
        "a seed must be a whole number": lambda: us.build(analysis, full, seed=0.5),  # type: ignore[arg-type]
    }.items():
        with pytest.raises(ConfigError, match=text):
            call()
    with pytest.raises(GoalError, match="budgets are of a Cost"):
        us.Goal(params="2x").budgets(wrong, 0.5)


def test_settings_are_refused_where_they_are_a_dictionary() -> None:
    with pytest.raises(ConfigError, match=r"settings must be a us.Compression, but got a dict"):
        refuse_other_kinds(Tiny(), Data.digits(), None, settings={})


class Elsewhere(Dataset[Any]):
    """Items whose code goes to another folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, Data.digits().train

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        os.chdir(self.folder)
        image, label = self.data.batch(torch.tensor([index]))
        return image[0], int(label)


def test_a_run_stays_where_it_began_whatever_the_data_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    data = Data.from_datasets(Elsewhere(tmp_path / "other"), memory_gb=0.0, progress=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    result = us.compress(
        Tiny(), data, run="~/here", method=METHOD, candidates=CANDIDATES, final=FINAL, device=DEVICE, progress=False,
        untrained=True,
    )  # fmt: skip
    assert result.run == tmp_path / "here"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "other"] and not any(
        (tmp_path / "other").iterdir()
    )


@contextmanager
def doubles() -> Iterator[None]:
    """Make numbers in float64 inside, unless their kind is given."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("setting", "device"),
    [
        (lambda: torch.device("meta"), DEVICE),
        (doubles, DEVICE),
        (lambda: torch.autocast("cpu"), DEVICE),
        (lambda: torch.autocast("cpu", enabled=False), replace(DEVICE, precision="bf16")),  # keeps rounded weights
    ],
)
def test_what_the_caller_set_in_torch_changes_nothing(
    setting: Callable[[], AbstractContextManager[Any]], device: Device, tmp_path: Path
) -> None:
    teacher, usual = Tiny(), Data.digits()
    with setting():
        assert Data.digits().digest == usual.digest
        there = squeeze(teacher, tmp_path / "there", method=us.RandomSearch(students=2), device=device)
    here = squeeze(teacher, tmp_path / "here", method=us.RandomSearch(students=2), device=device)
    assert weights_digest(here.student) == weights_digest(there.student)
    assert here.summary.teacher == there.summary.teacher


@pytest.mark.parametrize(
    "setting", [lambda: torch.device("meta"), doubles, lambda: torch.autocast("cpu"), torch.inference_mode]
)
def test_nor_does_it_when_students_are_used(setting: Callable[[], AbstractContextManager[Any]], tmp_path: Path) -> None:
    teacher = Tiny()
    result = squeeze(teacher, tmp_path / "run", method=us.UniformWidth(students=2))
    result.save(tmp_path / "student")
    analysis, images = us.analyse(teacher, torch.randn(2, 1, 8, 8)), torch.randn(3, 1, 8, 8)
    with setting():
        loaded, whole = us.load_student(tmp_path / "student", teacher), result.into(nn.Sequential(teacher))
        exported = result.export(tmp_path / "export", ("source", "pt2"))
        assert not us.prove(analysis)[1].refused
    assert set(exported.parity) == {"source", "pt2"} and not exported.skipped
    for made in (loaded, whole.eval()):
        assert torch.equal(made(images), result.student(images)) and not any(
            p.is_inference() for p in made.parameters()
        )


class Seen(TorchFunctionMode):
    """Sees every function of torch."""


@pytest.mark.parametrize("mode", [lambda: FlopCounterMode(display=False), FakeTensorMode, Seen])
def test_what_sees_every_operation_is_refused(mode: Callable[[], Any], tmp_path: Path) -> None:
    teacher, data = Tiny(), Data.digits()
    images = data.train.images[:2].float()
    with mode() as found, pytest.raises(ConfigError, match=f"inside of `with {type(found).__name__}`: end that"):
        us.compress(teacher, data, run=tmp_path / "run")
    with mode(), pytest.raises(ConfigError, match="end that before"):  # units and kernels would be missing
        us.analyse(teacher, images)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("register", "place"),
    [
        (modules.register_module_forward_hook, "nn.modules.module._global_forward_hooks"),
        (modules.register_module_forward_pre_hook, "nn.modules.module._global_forward_pre_hooks"),
        (modules.register_module_full_backward_hook, "nn.modules.module._global_backward_hooks"),
        (modules.register_module_parameter_registration_hook, "nn.modules.module._global_parameter_registration_hooks"),
        (register_optimizer_step_post_hook, "optim.optimizer._global_optimizer_post_hooks"),
    ],
)
def test_hooks_on_every_module_or_optimizer_are_refused(register: Any, place: str, tmp_path: Path) -> None:
    teacher, images = Tiny(), Data.digits().train.images[:2].float()
    handle = register(lambda *_: None)
    try:
        for call in (lambda: squeeze(teacher, tmp_path / "run"), lambda: us.analyse(teacher, images)):
            with pytest.raises(ConfigError, match=rf"among torch\.{place}: call remove\(\)"):
                call()
    finally:
        handle.remove()
    assert not (tmp_path / "run").exists()
    us.analyse(teacher, images)


def test_one_thread_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "_PATIENCE", 0.2)
    teacher, images = Tiny(), Data.digits().train.images[:2].float()
    inside, told = threading.Event(), threading.Event()

    @caller.alone
    def stay() -> None:
        us.analyse(teacher, images)  # the same thread may
        inside.set()
        told.wait(60.0)

    other = threading.Thread(target=stay)
    other.start()
    inside.wait(60.0)
    for call in (lambda: squeeze(teacher, tmp_path / "run"), lambda: us.analyse(teacher, images)):
        with pytest.raises(ConfigError, match=r"by one thread of a process at a time, .*\(\) was called while another"):
            call()
    told.set()
    other.join()
    us.analyse(teacher, images)
    assert not (tmp_path / "run").exists()


class Picky(Tiny):
    """Takes no odd batches, or none beyond some size."""

    def __init__(self, *, even: bool = False, most: int = 1000) -> None:
        super().__init__()
        self.even, self.most = even, most

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most or (self.even and len(images) % 2):
            raise AssertionError(f"no {len(images)}")
        return super().forward(images)


def test_a_network_of_some_sizes_of_batches_is_refused_at_the_door(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"float32 \(1, 1, 8, 8\), but it failed: no 1"):
        squeeze(Picky(even=True), tmp_path / "run")
    for data in (Data.digits(), Data.from_inputs(torch.rand(600, 1, 8, 8))):
        with pytest.raises(ModelError, match="in batches of any size, but it failed: no "):
            plan(task_of(Picky(most=32), data))
    assert not (tmp_path / "run").exists()


def test_a_current_folder_that_was_removed_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, images = Tiny(), Data.digits().train.images[:2].float()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for call in (lambda: squeeze(teacher, tmp_path / "run"), lambda: us.analyse(teacher, images)):
        with pytest.raises(ConfigError, match=r"a folder that exists, but the current folder was removed: go to"):
            call()
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a run must be the path of its folder, .* but got None"):
        squeeze(Tiny(), None)  # type: ignore[arg-type]


class Untrainable(Tiny):
    """Computes what `Tiny` does in a way that gives no gradients."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 10)."""
        if self.how == "out=":
            logits = super().forward(images)
            return torch.mul(logits, 2.0, out=torch.empty_like(logits))
        if self.how == "memory" or (self.how == "memory in training" and self.training):
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")
        with torch.no_grad():
            return super().forward(images)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("out=", r"out=... arguments don't support .* Write y = torch.mul\(a, b\) in place of"),
        ("no_grad", r"none of its outputs has a gradient; is the forward pass in torch.no_grad\(\)"),
    ],
)
def test_a_network_that_cannot_learn_is_refused_before_anything_is_made(how: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"must learn by gradients in training mode, but a step .* failed: .*{text}"):
        squeeze(Untrainable(how), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_memory_that_runs_out_at_the_door_is_the_machines_error(tmp_path: Path) -> None:
    images = torch.zeros(8, 1, 8, 8)
    with pytest.raises(MachineError, match=r"memory ran out while the teacher ran on a few examples; .*20.00 GiB"):
        squeeze(Untrainable("memory"), tmp_path / "run")
    for tried in (refuse_untrainable, choose_compute):
        with pytest.raises(
            MachineError, match=r"memory ran out in a training step on .*use a machine with more memory"
        ):
            tried(Untrainable("memory in training"), images, Device(device="cpu"))
    assert not (tmp_path / "run").exists()


def test_a_norm_of_single_features_is_no_reason_to_refuse(tmp_path: Path) -> None:
    teacher = Tiny()
    teacher.classifier = nn.Sequential(nn.BatchNorm1d(teacher.classifier.in_features), teacher.classifier)
    assert look_at(task_of(teacher, Data.digits())).score.value > 0.0


def test_a_normalisation_that_is_clearly_better_is_named() -> None:
    # Made for pixels in 0..1, given the data's own mean and deviation.
    task = task_of(Brightness(at=99.5 / 255), shades())
    look = look_at(task)
    assert 0.6 < look.score.value < 0.9 and not look.guesses
    assert look.better is not None and look.better.name == "pixels in 0..1" and look.better.reached.value == 1.0
    with pytest.raises(DataError, match=r"with pixels in 0\.\.1, --mean 0 --std 1, it gets 100\.00% ± 0 right"):
        look.refuse(task.teacher, untrained=False)
    look.refuse(task.teacher, untrained=True)
    # Whoever says which normalisation it is, is told and believed.
    given = task_of(Brightness(at=99.5 / 255), shades(), mean=(0.4,), std=(0.3,))
    look_at(given).refuse(given.teacher, untrained=False)
    assert "is the normalisation that of the teacher's training? with pixels in 0..1" in look_at(given).notes[0]
    right = task_of(Brightness(at=99.5 / 255), shades(), mean=(0.0,), std=(1.0,))
    assert look_at(right).better is None and look_at(right).score.value == 1.0


def test_floats_that_are_whole_numbers_are_told_of() -> None:
    data = shades()
    network = Brightness(data.normalise(torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)).mean().item())
    raw = Data.from_arrays(data.train.images.float(), data.train.labels, val=(data.val.images.float(), data.val.labels))
    look = look_at(task_of(network, raw))
    assert isinstance(look, Look) and look.score.value < 0.9
    assert "the images are whole numbers up to 255 as floats" in look.notes[0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_students_are_not_trained_where_nothing_can_be_learned(mode: Any, tmp_path: Path) -> None:
    with mode(), pytest.raises(ConfigError, match=r"outside of torch.no_grad\(\) and torch.inference_mode\(\)"):
        squeeze(Tiny(), tmp_path / "run")


def test_a_validation_split_that_the_teacher_has_seen_is_noted() -> None:
    data, module = shades(), Brightness(at=99.5 / 255)
    seen = look_at(task_of(module, data, mean=(0.0,), std=(1.0,)))
    assert seen.seen and "a folder val/ beside train/, or val= in Python" in seen.notes[0]
    # Images of the user's own, or a teacher that `teach` kept from them.
    assert look_at(task_of(module, shades(val=True), mean=(0.0,), std=(1.0,))).notes == ()
    digest = data.with_normalisation((0.0,), (1.0,)).digest
    assert look_at(task_of(module, data, mean=(0.0,), std=(1.0,), taught_on=digest)).notes == ()
    unlike = replace(seen, train_loss=Losses(mean=0.01, error=0.001), val_loss=Losses(mean=0.5, error=0.02))
    assert not unlike.seen and unlike.notes == ()


def test_probabilities_in_place_of_logits_are_noted() -> None:
    network = nn.Sequential(Brightness(at=99.5 / 255), nn.Softmax(1))
    look = look_at(task_of(network, shades(val=True), mean=(0.0,), std=(1.0,)))
    assert look.score.value == 1.0 and "gives probabilities" in look.notes[0]
    logs = nn.Sequential(Brightness(at=99.5 / 255), nn.LogSoftmax(1))
    assert look_at(task_of(logs, shades(val=True), mean=(0.0,), std=(1.0,))).notes == ()


class Flickering(nn.Module):
    """What drops features in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Brightness(at=99.5 / 255)

    def forward(self, images: Tensor) -> Tensor:
        """Return other logits each time."""
        return nn.functional.dropout(self.inner(images), 0.01) + 1e-3 * torch.rand(2)


def test_images_that_are_in_two_splits_are_noted() -> None:
    images, labels = shades().train.images.numpy(), shades().train.labels.numpy()
    apart = Data.from_arrays(images[:1000], labels[:1000], val=(images[1000:1100], labels[1000:1100]),
                             test=(images[1100:1200], labels[1100:1200]))  # fmt: skip
    module, normalised = Brightness(at=99.5 / 255), {"mean": (0.0,), "std": (1.0,)}
    assert look_at(task_of(module, apart, **normalised)).notes == ()
    few = replace(apart, val=apart.train.take(torch.arange(1)))
    assert [repeated(split, few.train) for split in (apart.val, few.val)] == [0, 1]
    both = replace(apart, val=apart.train.take(torch.arange(50)), test=apart.train.take(torch.arange(25)))
    first, second = look_at(task_of(module, both, **normalised)).notes
    assert first.startswith("50 of the 50 validation images are training images as well, pixel for pixel: what is")
    assert second.startswith("25 of the 25 test images are training images as well")


def test_a_teacher_that_draws_in_evaluation_mode_is_noted() -> None:
    for data in (shades(val=True), us.Data.from_inputs(torch.rand(40, 1, 8, 8))):
        look = look_at(Task.of(Teacher(module=Flickering()), data, Compression(device=DEVICE)))
        assert "draws random numbers in evaluation mode" in look.notes[-1]


def test_the_likeliest_cause_comes_first() -> None:
    better = Normalisation(name="ImageNet's", mean=(0.5,), std=(0.25,), reached=Score(value=0.9, examples=200))
    guess = Score(value=0.5, examples=200)
    look = Look(score=guess, known=guess, classes=("a", "b"), mean=(0.1,), std=(0.2,), better=better)
    with pytest.raises(ModelError, match=r"(?s)1\. it was trained with another normalisation .*2\. its weights"):
        look.refuse(Teacher(module=Tiny()), untrained=False)


def test_the_dry_run_shows_the_teachers_accuracy(tmp_path: Path) -> None:
    found = plan(task_of(Brightness(at=99.5 / 255), shades(), mean=(0.0,), std=(1.0,)))
    assert found.look.score == Score(value=1.0, examples=200)


def test_a_source_line_with_brackets_is_shown_as_it_stands() -> None:
    found = plan(task_of(Brightness(at=99.5 / 255), shades(), mean=(0.0,), std=(1.0,)))
    frozen = Frozen(name="x", width=4, reason="z[b, 0] is read", source="net.py:3: y = x[i] + z[b, 0]")
    console = Console(width=200)
    with console.capture() as capture:
        console.print(plan_table(replace(found, frozen=(frozen,))))
    assert "y = x[i] + z[b, 0]" in capture.get() and "z[b, 0] is read" in capture.get()
