"""A teacher that was trained on textures, and evaluators of its students."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.textures import AUGMENTATION, CANDIDATES, Teacher
from understudy.config.training import Augmentation, Training
from understudy.core.architecture import Architecture
from understudy.data import Data, Views
from understudy.graph.analysis import Analysis, analyse
from understudy.training.evaluator import Evaluator
from understudy.training.loop import Compute, train


@pytest.fixture(scope="session")
def data() -> Data:
    """Images (n, 1, 8, 8) whose texture tells their class."""
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 3
    stripes = np.stack([np.arange(8) % (2 + label) == 0 for label in labels])[:, None, None, :] * 90
    images = stripes + generator.integers(0, 120, (240, 1, 8, 8))
    return Data.from_arrays(images.astype(np.uint8), labels, val_fraction=0.25)


@pytest.fixture(scope="session")
def analysis(data: Data) -> Analysis:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = Teacher()
    training = Training(epochs=8, batch_size=32, lr=0.02, loss="ce")
    views = Views(len(data.train), Augmentation(), 0)
    train(teacher, data.train, training, normalise=data.normalise, views=views, compute=Compute(threads=1), seed=0)
    return analyse(teacher.eval(), torch.zeros(2, 1, 8, 8))


@pytest.fixture
def make(data: Data, analysis: Analysis, tmp_path: Path, device: torch.device) -> Callable[..., Evaluator]:
    """Return a function that makes an evaluator of these settings."""

    def made(**settings: Any) -> Evaluator:
        defaults = {
            "analysis": analysis,
            "teacher": settings.get("analysis", analysis).teacher,
            "data": data,
            "candidates": CANDIDATES,
            "augmentation": AUGMENTATION,
            "compute": Compute(device=device, threads=1),
            "seed": 3,
            "folder": tmp_path / "logits",
        }
        return Evaluator(**{**defaults, **settings})

    return made


@pytest.fixture
def narrow(analysis: Analysis) -> Architecture:
    return analysis.space.architecture(widths={"conv1": 8, "conv2": 12})
