"""What is compared, as values: a teacher on data, one recipe for all contenders, operating points and seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from benchmarks import option_a
from understudy.config.training import Augmentation, Candidates, Device, Teaching, Training
from understudy.config.widths import Widths
from understudy.core.errors import DataError, ModelError
from understudy.core.goal import Goal
from understudy.data import Data
from understudy.jobs.teach import teach
from understudy.models.spec import Teacher, load_model

DEVICE = Device(threads=1)


@dataclass(frozen=True)
class Point:
    """An operating point: how many times fewer parameters, or MACs, a student must have."""

    figure: Literal["params", "macs"]
    factor: float

    def __str__(self) -> str:
        """Return its name: "params-10x"."""
        return f"{self.figure}-{self.factor:g}x"

    @property
    def goal(self) -> Goal:
        """What asks for it."""
        return Goal(**{self.figure: f"{self.factor:g}x"})  # type: ignore[arg-type]


POINTS = tuple(Point(figure, factor) for figure in ("params", "macs") for factor in (2.0, 5.0, 10.0, 20.0))
# Settings were chosen on seeds under 10 (docs/history.md); no setting was chosen on these.
SEEDS = (101, 102, 103)


@dataclass(frozen=True, kw_only=True)
class Taught:
    """A teacher that is trained here: on the training split alone, by labels, the last epoch's weights."""

    model: str
    arguments: Mapping[str, int] = field(default_factory=dict)
    teaching: Teaching
    note: str = "trained here by labels; it has not seen the validation images"

    def open(self, data: Data, folder: Path, weights: Path | None) -> Teacher:
        """Return the teacher: with the weights of a file, or trained now or before.

        Raises:
            ModelError: the file does not hold its weights.
        """
        if weights is not None:
            return load_model(self.model, data, weights=weights, arguments=self.arguments)
        return teach(self.model, data, folder, teaching=self.teaching, arguments=self.arguments)


@dataclass(frozen=True, kw_only=True)
class Given:
    """A CIFAR-10 ResNet with parameter-free shortcuts whose weights others trained; see `benchmarks/option_a.py`."""

    depth: int
    note: str = (
        "trained by Y. Idelbayev on all 50,000 training images, the validation images here among them, its epoch "
        "chosen on the test split"
    )

    def open(self, data: Data, folder: Path, weights: Path | None) -> Teacher:
        """Return the teacher with the weights of a file.

        Raises:
            ModelError: there is no such file.
        """
        if weights is None or not weights.is_file():
            raise ModelError(
                f"the ResNet-{self.depth} needs the weights that akamaster/pytorch_resnet_cifar10 gives, re-saved as "
                f"safetensors, but got {weights}: give the file by --weights"
            )
        return option_a.trained(self.depth, weights)


@dataclass(frozen=True, kw_only=True)
class Track:
    """One comparison. All contenders share what stands here, and the total number of image passes."""

    name: str
    data: str  # "digits", or what the user's folder must hold
    teacher: Taught | Given
    points: tuple[Point, ...] = POINTS
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(crop=4, flip=True))
    widths: Widths = field(default_factory=lambda: Widths(round_to=1, min_width=2))
    students: int = 40  # of a search, a multiple of N2N's 5 rollouts
    candidates: Candidates
    final: Training
    views: int = 8  # looks of each image in final trainings, so that teacher logits are computed once
    seeds: tuple[int, ...] = SEEDS
    device: Device = DEVICE
    size: int | None = None  # pixels that images are brought to, which `data` says; None: as they are

    @property
    def recipe(self) -> str:
        """16 hexadecimal digits of what decides a result besides contender, operating point and seed."""
        names = ("data", "teacher", "augmentation", "widths", "students", "candidates", "final", "views")
        values = {name: value for name, value in asdict(self).items() if name in names}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def search_passes(self, examples: int) -> int:
        """Return the image passes of a whole search, with that many training images."""
        return self.students * self.candidates.training.epochs * (self.candidates.examples or examples)

    def open_data(self, folder: str | None, cache: Path) -> Data:
        """Return the data.

        Raises:
            DataError: the folder is missing or does not hold images as they should lie.
        """
        if self.data == "digits":
            return Data.digits()
        if folder is None or not (Path(folder) / "train").is_dir() or not (Path(folder) / "test").is_dir():
            raise DataError(
                f"the track {self.name} needs {self.data} as image files, train/CLASS/* and test/CLASS/* in one "
                f"folder, but got {folder}: give the folder by --data"
            )
        return Data.open(folder, cache=cache, size=self.size)


_CIFAR = {
    "data": "CIFAR-10 in its original pixels",
    "candidates": Candidates(training=Training(epochs=3, batch_size=32), examples=2000),
}
_SGD = Teaching(
    training=Training(epochs=60, optimizer="sgd", lr=0.1, loss="ce", label_smoothing=0.1),
    augmentation=Augmentation(crop=4, flip=True),
    device=DEVICE,
)
_SMALL = replace(_SGD, training=replace(_SGD.training, epochs=20), augmentation=Augmentation(crop=2, flip=True))
_MNIST = Track(
    name="mnist-vgg13",
    data="MNIST",
    teacher=Taught(
        model="zoo:vgg13",
        teaching=Teaching(
            training=Training(epochs=3, lr=0.002, loss="ce", label_smoothing=0.05, weight_decay=0.001),
            augmentation=Augmentation(crop=2),
            device=DEVICE,
        ),
    ),
    augmentation=Augmentation(crop=2),
    candidates=Candidates(training=Training(epochs=4, batch_size=32, lr=0.002), examples=3000),
    final=Training(epochs=6, loss="mse+ce"),
    views=3,
)
_SHORT = Training(epochs=8, loss="mse+ce")
# Where TPP (ICLR 2023) has published marks for the ResNet-56, after 200 epochs.
_MARKS = (Point("macs", 11.41), Point("macs", 19.31))
_RESNET56 = Track(
    name="cifar10-resnet56a",
    teacher=Given(depth=56),
    points=(*POINTS, *_MARKS),
    final=_SHORT,
    views=4,
    **_CIFAR,  # type: ignore[arg-type]
)
TRACKS = {
    track.name: track
    for track in (
        Track(
            name="digits",
            data="digits",
            teacher=Taught(model="zoo:resnet20", teaching=Teaching(augmentation=Augmentation(crop=1), device=DEVICE)),
            points=(Point("params", 20.0), Point("macs", 20.0)),
            augmentation=Augmentation(crop=1),
            students=10,
            candidates=Candidates(training=Training(epochs=2, batch_size=64), examples=0),
            final=Training(epochs=10, batch_size=64, loss="mse+ce"),
        ),
        _MNIST,
        replace(_MNIST, name="fashion-vgg13", data="Fashion-MNIST"),
        Track(
            name="cifar10-resnet18w16",
            teacher=Taught(model="zoo:resnet18", arguments={"width": 16}, teaching=_SGD),
            final=_SHORT,
            **_CIFAR,  # type: ignore[arg-type]
        ),
        Track(
            name="cifar10-vgg16w16",
            teacher=Taught(model="zoo:vgg16", arguments={"width": 16}, teaching=_SGD),
            final=_SHORT,
            **_CIFAR,  # type: ignore[arg-type]
        ),
        # Small enough for every contender at every point with all seeds on two cores.
        Track(
            name="cifar10-16px-resnet18w16",
            teacher=Taught(model="zoo:resnet18", arguments={"width": 16}, teaching=_SMALL),
            augmentation=_SMALL.augmentation,
            final=_SHORT,
            size=16,
            **(_CIFAR | {"data": "CIFAR-10, brought to 16x16 pixels"}),  # type: ignore[arg-type]
        ),
        Track(name="cifar10-resnet20a", teacher=Given(depth=20), final=_SHORT, **_CIFAR),  # type: ignore[arg-type]
        _RESNET56,
        # Long final trainings: half the epochs that the marks had, and as many.
        replace(_RESNET56, name="cifar10-resnet56a-long", points=_MARKS, final=replace(_SHORT, epochs=100), views=16),
        replace(_RESNET56, name="cifar10-resnet56a-200", points=_MARKS, final=replace(_SHORT, epochs=200), views=16),
    )
}
