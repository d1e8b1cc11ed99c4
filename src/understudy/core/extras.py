"""Packages that only some uses need. No torch."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

from understudy.core.errors import ExtraError


def optional(module: str, *, extra: str) -> Any:
    """Import a module that comes with an extra of this package.

    Raises:
        ExtraError: it is not installed, or it is but cannot be imported, as when its compiled part is of another torch.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        package = module.partition(".")[0]
        install = f"pip install 'understudy[{extra}]'"
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package:
            raise ExtraError(f"{package} must be installed, but is not: {install}") from error
        versions = {name: _version(name) for name in (package, "torchvision", "torch")}
        installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        raise ExtraError(
            f"{package} must be importable, but is not ({error}): its build must fit torch's, and installed are "
            f"{installed}"
        ) from error


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
