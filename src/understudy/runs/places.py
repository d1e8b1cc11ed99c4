"""Where the data of a run are, in words that stay true when its folder is moved. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from understudy.core.errors import DataError


def relative(spec: str, folder: Path) -> str:
    """Return the name of data as a run's folder holds it: a path from there, so that both can be moved."""
    if not Path(spec).exists() or spec == "digits":
        return spec
    try:
        return os.path.relpath(Path(spec).resolve(), folder.resolve())
    except ValueError:  # on another drive
        return Path(spec).name


def place_of(spec: str, folder: Path) -> str:
    """Return where the data are that a run's folder names.

    Raises:
        DataError: they are not there.
    """
    if spec == "digits" or spec.startswith("torchvision:"):
        return spec
    places = (Path(os.path.normpath(folder / spec)), Path(spec))
    found = next((path for path in places if path.exists()), None)
    if found is None:
        raise DataError(f"the data of {folder} were at {spec}, seen from there, but are not: give --data (data=...)")
    return str(found)
