"""Training of teachers, and the folder that a teacher lives in: its weights, and a JSON of what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from understudy.config.text import flat
from understudy.config.training import Device, Teaching
from understudy.core.caller import alone, as_usual
from understudy.core.errors import ConfigError, DataError, ModelError, RunError, a_kind
from understudy.core.files import path_of, read_json, write_json
from understudy.data import Data, Views
from understudy.data.data import first_images
from understudy.data.views import check_augmentation
from understudy.models.card import TeacherCard
from understudy.models.code import allowed, code_of, portable, write_code
from understudy.models.spec import ModelSpec, Teacher, check_outputs
from understudy.models.weights import load_into, load_kept, read_weights, save_weights
from understudy.report.progress import Display
from understudy.runs.claim import claimed
from understudy.runs.folder import versions
from understudy.training.compute import choice, pinned
from understudy.training.loop import Compute, Outcome, Progress, accuracy, choose_compute, train

_CARD = "teacher.json"
_STARTED = "teaching.json"


@alone
@as_usual
def teach(
    model: str,
    data: Data,
    out: str | Path,
    *,
    teaching: Teaching | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    on_epoch: Callable[[Progress], object] = lambda progress: None,
    progress: bool = True,
) -> Teacher:
    """Train a model by name on data and leave it in the folder `out`; called again it continues.

    Args:
        model: `zoo:NAME`, `torchvision:NAME`, `timm:NAME` or `FILE.py:FACTORY`.
        data: trained on its training split; the JSON gets its validation and test accuracy.
        out: folder; a finished teacher in it is loaded, an interrupted training goes on.
        teaching: settings; None for the defaults.
        arguments: more arguments of the model, such as `{"width": 16}`.
        weights: file to start from (safetensors, or a state dict of tensors); None for fresh weights.
        on_epoch: called after each epoch.
        progress: show what is going on.

    Raises:
        RunError: the folder is of another training (each difference is listed) or cannot be written.
        ModelError: there is no such model.
        ConfigError: a setting is impossible, or the training failed, with the reason.
    """
    _refuse_other_kinds(model, data, teaching)
    teaching, out = teaching or Teaching(), path_of(out, "the folder of a teacher", RunError).absolute()
    check_augmentation(teaching.augmentation, data)
    weights = None if weights is None else Path(weights).absolute()  # a model's file may go to another folder
    spec = ModelSpec.for_data(model, data, arguments or {})
    with (
        claimed(out, markers=(_STARTED,), again=lambda: f"the same command, into {out}"),
        Display(shown=progress) as display,
    ):
        start = None if weights is None else read_weights(weights)
        started = _check_same(out, spec, data, teaching, start)
        if not (out / _CARD).is_file():
            module = spec.build(teaching.seed)
            if start is not None:
                load_into(module, start, source=str(weights))
            check_outputs(module, data)
            with display.steps("choosing precision and memory format", None):
                compute = _compute(out, module, data, teaching.device, started)
            with display.steps(f"teaching {model}", teaching.training.epochs, unit="epochs"):
                outcome = _train(module, data, out, teaching, compute, on_epoch=on_epoch, display=display)
            with display.steps("measuring accuracy", None):
                scored = _scores(module, data, compute)
            card = TeacherCard(
                **_described(spec, data),
                teaching=asdict(teaching),
                compute=compute.name,
                start=started["start"],
                val=scored["val"],
                test=scored["test"],
                seconds=round(outcome.seconds, 1),
            )
            write_code(out, code_of(spec.name))
            save_weights(out / "teacher.safetensors", module)
            card.write(out)
        (out / "checkpoint.pt").unlink(missing_ok=True)
    return load_teacher(out, model=model)


def _refuse_other_kinds(model: Any, data: Any, teaching: Any) -> None:
    """Refuse what is of another kind before a folder is made.

    Raises:
        ModelError, DataError, ConfigError: with what to write.
    """
    if not isinstance(model, str):
        raise ModelError(
            "a model to teach must have a name, by which it can be made again: zoo:NAME or FILE.py:FACTORY, a function "
            f"that returns it, but got {a_kind(model)}; one that is trained goes to compress() as it is"
        )
    if not isinstance(data, Data):
        raise DataError(f'data must be a us.Data, such as us.Data.from_folder("photos/"), but got {data!r}')
    if not isinstance(teaching, Teaching | None):
        raise ConfigError(f"teaching must be a us.Teaching, but got {teaching!r}")


@as_usual
def load_teacher(folder: str | Path, *, trust_code: bool = False, model: str | None = None) -> Teacher:
    """Return the teacher that `teach` left in a folder.

    Args:
        folder: of the teacher.
        trust_code: run the Python file in the folder that makes it, if there is one.
        model: FILE.py:FACTORY, to run in its place.

    Raises:
        ModelError: there is none, its training is not finished, its weights do not fit, or it is made by code that may
            not be run.
    """
    folder = path_of(folder, "the folder of a teacher", ModelError)
    card = TeacherCard.read(folder)
    name = allowed(folder, str(card.model), trust_code=trust_code, model=model)
    spec = ModelSpec(name=name, arguments=card.arguments)
    module = spec.build()
    load_kept(module, folder / "teacher.safetensors")
    return Teacher(
        module=module.eval(),
        spec=spec,
        mean=card.mean,
        std=card.std,
        taught_on=card.data_digest,
    )


def _train(
    module: nn.Module,
    data: Data,
    out: Path,
    teaching: Teaching,
    compute: Compute,
    *,
    on_epoch: Callable[[Progress], object],
    display: Display,
) -> Outcome:
    def told(progress: Progress) -> bool:
        display.step(progress.epoch, title=f"loss {progress.loss:.3f}")
        on_epoch(progress)
        return True

    outcome = train(
        module,
        data.train.to(compute.device),
        teaching.training,
        normalise=data.normalise,
        views=Views(len(data.train), teaching.augmentation, teaching.seed),
        compute=compute,
        seed=teaching.seed,
        on_epoch=told,
        on_part=display.step,
        checkpoint=out / "checkpoint.pt",
    )
    if outcome.status == "failed":
        (out / "checkpoint.pt").unlink(missing_ok=True)
        raise ConfigError(f"the training of a teacher must not fail, but it did: {outcome.error}; a lower lr may help")
    return outcome


def _scores(module: nn.Module, data: Data, compute: Compute) -> dict[str, float | None]:
    """Return the accuracies on validation and test split; the one reading of the test split."""
    splits = {"val": data.val, "test": data.test}
    return {
        name: None if split is None else accuracy(module, split, normalise=data.normalise, compute=compute)
        for name, split in splits.items()
    }


def _described(spec: ModelSpec, data: Data) -> dict[str, Any]:
    return {
        "model": portable(spec.name),
        "arguments": dict(spec.arguments),
        "input": tuple(data.shape),
        "classes": tuple(data.classes),
        "mean": tuple(data.mean),
        "std": tuple(data.std),
        "data_source": Path(data.source).name,
        "data_digest": data.digest,
        "versions": versions(),
    }


def _check_same(
    out: Path, spec: ModelSpec, data: Data, teaching: Teaching, start: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """Return what was written down when the training started, now or before."""
    now: dict[str, Any] = {"model": portable(spec.name), "arguments": dict(spec.arguments), "data": data.digest}
    now["start"] = None if start is None else hashlib.sha256(to_safetensors(dict(start))).hexdigest()[:16]
    now |= {name: list(value) if isinstance(value, tuple) else value for name, value in flat(teaching)}
    path = out / _STARTED
    if not path.is_file():
        write_json(path, now)
        return now
    was = read_json(path, RunError)
    unlike = [f"{name} was {was.get(name)!r}, is {value!r}" for name, value in now.items() if was.get(name) != value]
    if unlike:
        raise RunError(
            f"a training is continued with the settings that it was started with, but for {out}:\n  "
            + "\n  ".join(unlike)
            + "\nGive another folder, or the same settings."
        )
    return was


def _compute(out: Path, module: nn.Module, data: Data, device: Device, started: dict[str, Any]) -> Compute:
    images = first_images(data, data.train, 128)
    compute = choose_compute(module, images, pinned(device, started.get("compute")))
    write_json(out / _STARTED, {**started, "compute": choice(compute)})
    return compute
