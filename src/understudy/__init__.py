"""Understudy takes a trained PyTorch network and learns a much smaller one that plays the same part.

Everything public is here. Names are loaded when they are first used, so that plans, settings and results can be read
without torch, and a command can be stopped as soon as it starts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from understudy.config.job import Compression as Compression
    from understudy.config.methods import N2N as N2N
    from understudy.config.methods import Allocate as Allocate
    from understudy.config.methods import ArchComp as ArchComp
    from understudy.config.methods import Decore as Decore
    from understudy.config.methods import Free as Free
    from understudy.config.methods import Method as Method
    from understudy.config.methods import OptunaSearch as OptunaSearch
    from understudy.config.methods import RandomSearch as RandomSearch
    from understudy.config.methods import UniformWidth as UniformWidth
    from understudy.config.presets import paper as paper
    from understudy.config.training import Augmentation as Augmentation
    from understudy.config.training import Candidates as Candidates
    from understudy.config.training import Device as Device
    from understudy.config.training import Final as Final
    from understudy.config.training import Teaching as Teaching
    from understudy.config.training import Training as Training
    from understudy.config.widths import Widths as Widths
    from understudy.core import errors as errors
    from understudy.core.architecture import Architecture as Architecture
    from understudy.core.architecture import Space as Space
    from understudy.core.errors import UnderstudyError as UnderstudyError
    from understudy.core.evaluation import Cost as Cost
    from understudy.core.evaluation import Evaluation as Evaluation
    from understudy.core.goal import Goal as Goal
    from understudy.cost.predict import predict as predict
    from understudy.data import Data as Data
    from understudy.graph.analysis import analyse as analyse
    from understudy.jobs.compress import Result as Result
    from understudy.jobs.compress import compress as compress
    from understudy.jobs.teach import load_teacher as load_teacher
    from understudy.jobs.teach import teach as teach
    from understudy.methods.base import Problem as Problem
    from understudy.methods.base import Searcher as Searcher
    from understudy.models import zoo
    from understudy.models.student import load_student as load_student
    from understudy.proof.prove import prove as prove
    from understudy.surgery.build import build as build
    from understudy.surgery.build import rebuild as rebuild
    from understudy.training.objectives import Objective as Objective

__version__ = "0.1.0"

# Public name -> module that holds it.
_LAZY = {
    "Allocate": "config.methods",
    "ArchComp": "config.methods",
    "Architecture": "core.architecture",
    "Augmentation": "config.training",
    "Candidates": "config.training",
    "Compression": "config.job",
    "Cost": "core.evaluation",
    "Data": "data",
    "Decore": "config.methods",
    "Device": "config.training",
    "Evaluation": "core.evaluation",
    "Final": "config.training",
    "Free": "config.methods",
    "Goal": "core.goal",
    "Method": "config.methods",
    "N2N": "config.methods",
    "Objective": "training.objectives",
    "OptunaSearch": "config.methods",
    "Problem": "methods.base",
    "RandomSearch": "config.methods",
    "Result": "jobs.compress",
    "Searcher": "methods.base",
    "Space": "core.architecture",
    "Teaching": "config.training",
    "Training": "config.training",
    "UnderstudyError": "core.errors",
    "UniformWidth": "config.methods",
    "Widths": "config.widths",
    "analyse": "graph.analysis",
    "build": "surgery.build",
    "compress": "jobs.compress",
    "load_student": "models.student",
    "load_teacher": "jobs.teach",
    "paper": "config.presets",
    "predict": "cost.predict",
    "prove": "proof.prove",
    "rebuild": "surgery.build",
    "teach": "jobs.teach",
}
_MODULES = {"errors": "core.errors", "zoo": "models.zoo"}

__all__ = [
    "N2N",
    "Allocate",
    "ArchComp",
    "Architecture",
    "Augmentation",
    "Candidates",
    "Compression",
    "Cost",
    "Data",
    "Decore",
    "Device",
    "Evaluation",
    "Final",
    "Free",
    "Goal",
    "Method",
    "Objective",
    "OptunaSearch",
    "Problem",
    "RandomSearch",
    "Result",
    "Searcher",
    "Space",
    "Teaching",
    "Training",
    "UnderstudyError",
    "UniformWidth",
    "Widths",
    "analyse",
    "build",
    "compress",
    "errors",
    "load_student",
    "load_teacher",
    "paper",
    "predict",
    "prove",
    "rebuild",
    "teach",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = import_module(f"{__name__}.{_MODULES[name]}")
    elif name in _LAZY:
        value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
