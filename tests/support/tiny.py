"""A network so small that a whole compression takes a second or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from understudy.config.methods import N2N
from understudy.config.training import Candidates, Device, Final, Teaching, Training
from understudy.config.widths import Widths
from understudy.data import Data
from understudy.jobs.compress import Result, compress
from understudy.jobs.teach import teach
from understudy.models.spec import Teacher

DEVICE = Device(
    device="cpu", precision="fp32", memory_format="contiguous", workers=0
)  # nothing is timed, no process started
TEACHING = Teaching(training=Training(epochs=3, batch_size=64, lr=0.01, loss="ce"), device=DEVICE)
METHOD = N2N(removal_updates=2, shrinkage_updates=2, rollouts=2)
WIDTHS = Widths(round_to=1, min_width=2)
CANDIDATES = Candidates(training=Training(epochs=1, batch_size=32), examples=128)
FINAL = Final(students=2, training=Training(epochs=2, batch_size=64, loss="mse+ce"))


class Tiny(nn.Module):
    """Two convolutions, a residual one and a classifier, for 8x8 images."""

    def __init__(self, *, in_channels: int = 1, classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, in_channels, 8, 8)."""
        x = self.second(self.first(images))
        x = x + self.third(x)
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def make(*, in_channels: int = 1, classes: int = 10, width: int = 8) -> Tiny:
    """Return an untrained Tiny."""
    return Tiny(in_channels=in_channels, classes=classes, width=width)


FACTORY = f"{__file__}:make"


def teach_tiny(folder: Path) -> Teacher:
    """Return a Tiny that was taught the digits, and leave it in a folder."""
    return teach(FACTORY, Data.digits(), folder, teaching=TEACHING)


def squeeze(teacher: nn.Module | Teacher, folder: Path, **settings: Any) -> Result:
    """Compress on the digits in a second or two; teachers need not be trained."""
    quick = {
        "method": METHOD,
        "widths": WIDTHS,
        "candidates": CANDIDATES,
        "final": FINAL,
        "device": DEVICE,
        "untrained": True,
    }
    return compress(teacher, Data.digits(), run=folder, progress=False, **{**quick, **settings})


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return all that a run found: its summary without times, its students' weights, and what the searcher learned."""
    summary = json.loads((folder / "summary.json").read_text())
    del summary["latency"], summary["sum"]
    for figures in (summary["search"], *summary["finals"]):
        del figures["seconds"]
    files = [*(folder / "students").glob("*.safetensors"), *folder.glob("policy.safetensors")]
    return summary, {path.name: path.read_bytes() for path in files}
