"""Understudy takes a trained PyTorch network and learns a much smaller one that plays the same part.

Everything public is here. Names that need torch are loaded when they are first used, so that plans,
settings and results can be read without it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from understudy.architecture import Architecture as Architecture
from understudy.architecture import Space as Space
from understudy.config import N2N as N2N
from understudy.config import ArchComp as ArchComp
from understudy.config import Augmentation as Augmentation
from understudy.config import Candidates as Candidates
from understudy.config import Compression as Compression
from understudy.config import Decore as Decore
from understudy.config import Device as Device
from understudy.config import Final as Final
from understudy.config import OptunaSearch as OptunaSearch
from understudy.config import RandomSearch as RandomSearch
from understudy.config import Teaching as Teaching
from understudy.config import Training as Training
from understudy.config import UniformWidth as UniformWidth
from understudy.errors import UnderstudyError as UnderstudyError
from understudy.evaluation import Cost as Cost
from understudy.evaluation import Evaluation as Evaluation
from understudy.goal import Goal as Goal

if TYPE_CHECKING:
    from understudy import zoo as zoo
    from understudy.analysis import analyse as analyse
    from understudy.compress import Result as Result
    from understudy.compress import compress as compress
    from understudy.cost import predict as predict
    from understudy.data import Data as Data
    from understudy.student import load_student as load_student
    from understudy.surgery import build as build
    from understudy.surgery import rebuild as rebuild
    from understudy.teach import load_teacher as load_teacher
    from understudy.teach import teach as teach

__version__ = "0.1.0"

# Public name -> module that holds it (None: it is the module).
_LAZY = {
    "Data": "data",
    "Result": "compress",
    "analyse": "analysis",
    "build": "surgery",
    "compress": "compress",
    "load_student": "student",
    "load_teacher": "teach",
    "predict": "cost",
    "rebuild": "surgery",
    "teach": "teach",
    "zoo": None,
}

__all__ = [
    "N2N",
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
    "Goal",
    "OptunaSearch",
    "RandomSearch",
    "Result",
    "Space",
    "Teaching",
    "Training",
    "UnderstudyError",
    "UniformWidth",
    "analyse",
    "build",
    "compress",
    "load_student",
    "load_teacher",
    "predict",
    "rebuild",
    "teach",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_LAZY[name] or name}")
    value = module if _LAZY[name] is None else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Python puts a module that was imported on its package, in the place of the function of that name.
        if _LAZY.get(name) == name and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
