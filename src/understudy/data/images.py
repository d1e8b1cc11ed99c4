"""Image files: listing a folder of classes, decoding in threads, and the cache of what was decoded."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.progress import track
from torch import Tensor

from understudy.core.console import Console
from understudy.core.errors import DataError

Pixels = NDArray[np.uint8]

EXTENSIONS = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)
_GREY_MODES = frozenset(("1", "L", "LA", "I", "I;16", "I;16B", "I;16L"))
_SAMPLED = 100  # images that tell whether a folder is grey
_CHUNK = 128  # images of one piece of work
_NAMED = 5  # mistakes that a message spells out
_CACHE_VERSION = 1


def fail(rule: str, faults: Sequence[str]) -> None:
    """Raise a DataError with the rule and the first of its faults, if there are any."""
    if faults:
        more = f"; and {len(faults) - _NAMED:,} more" if len(faults) > _NAMED else ""
        raise DataError(f"{rule}: {'; '.join(faults[:_NAMED])}{more}")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Return where decoded images are kept unless a folder is named: `understudy` in the user's cache."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "understudy"
    except RuntimeError:  # a user without a home, as in containers
        return Path(tempfile.gettempdir()) / f"understudy-{os.getuid()}"


@dataclass(frozen=True)
class Listing:
    """The image files of one split, by class and name; `stamps` are their sizes and times of change."""

    folder: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]  # below the folder
    labels: tuple[int, ...]
    stamps: tuple[tuple[int, int, int], ...]  # bytes; nanoseconds of the content's last change and of any other

    def path(self, index: int) -> Path:
        """Return the path of one image."""
        return self.folder / self.names[index]


def list_folder(folder: Path, faults: list[str]) -> Listing:
    """Return the images in the class folders of `folder`; what is wrong with them is added to `faults`."""
    entries = [e for e in os.scandir(folder) if not e.name.startswith(".")]
    faults += [f"{e.path} is a link that leads nowhere" for e in entries if e.is_symlink() and not os.path.exists(e)]
    classes = tuple(sorted(e.name for e in entries if _is_folder(e)))
    if not classes:
        faults.append(f"{folder} has no class folders")
    names, labels, stamps = [], [], []
    for label, name in enumerate(classes):
        files = sorted((e for e in os.scandir(folder / name) if _is_image(e)), key=lambda e: e.name)
        if not files:
            faults.append(f"class {name!r} has no images in {folder / name}")
        faults += [
            f"{inner} holds images as well: they must lie in {folder / name} itself" for inner in _inner(folder / name)
        ]
        for file in files:
            try:
                status = file.stat()
            except OSError as error:
                faults.append(f"{file.path} cannot be read: {error.strerror}")
                continue
            if not status.st_size:
                faults.append(f"{file.path} is empty (0 bytes)")
            names.append(f"{name}/{file.name}")
            labels.append(label)
            stamps.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return Listing(folder, classes, tuple(names), tuple(labels), tuple(stamps))


def _inner(folder: Path) -> list[str]:
    """Return the folders inside a class's folder that hold images, which nobody would miss."""
    inner = (e for e in os.scandir(folder) if _is_folder(e) and not e.name.startswith((".", "_", "@")))
    return sorted(e.path for e in inner if list(filter(_is_image, os.scandir(e.path))))


def _is_image(entry: os.DirEntry[str]) -> bool:
    extension = os.path.splitext(entry.name)[1].lower()
    return extension in EXTENSIONS and not entry.name.startswith(".") and not _is_folder(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


class Misfit(ValueError):
    """An image that is not like the others; the message completes a sentence that begins with its name."""


@dataclass(frozen=True)
class Form:
    """What images are brought to: colour or grey, and a height and width in pixels.

    With `resized`, the shorter side is brought to size and the middle is cut out; without, another
    size is a mistake. Where grey was only guessed from a sample, a colour image is a mistake as well.
    """

    grey: bool
    height: int
    width: int
    resized: bool
    guessed: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (1 if self.grey else 3), self.height, self.width

    @classmethod
    def of(cls, image: Image.Image, *, grey: bool | None, size: int | None) -> Form:
        """Return the form that makes the least of an image: its own where nothing is asked for."""
        if size is not None and (not isinstance(size, int | np.integer) or size < 1):
            raise DataError(f"size must be at least 1 pixel, but got {size}: a whole number, of height and width alike")
        return cls(
            grey=image.mode in _GREY_MODES if grey is None else grey,
            height=size or image.height,
            width=size or image.width,
            resized=size is not None,
            guessed=grey is None,
        )

    def apply(self, image: Image.Image) -> Pixels:
        """Return the image as (channels, height, width).

        Raises:
            Misfit: its size or its colours are not those of the others.
        """
        image = _eight_bits(image)
        if not self.resized and image.size != (self.width, self.height):
            raise Misfit(
                f"has {image.width}x{image.height} pixels where the first has {self.width}x{self.height}: "
                f"give size= to bring all to one"
            )
        if self.grey and self.guessed and image.mode not in _GREY_MODES:
            raise Misfit("is in colour where the first are grey: give grey=True or grey=False")
        wanted = "L" if self.grey else "RGB"
        image = image if image.mode == wanted else image.convert(wanted)
        if image.size != (self.width, self.height):
            image = ImageOps.fit(image, (self.width, self.height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        return pixels[None] if self.grey else pixels.transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise Misfit("has floating-point pixels: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which convert() would clip to 255
        return Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    return image


def read_file(path: str | Path, form: Form) -> Pixels:
    """Return an image file's pixels in that form, (channels, height, width).

    Raises:
        DataError: it cannot be read, or is not of that form; the message begins with its path.
    """
    try:
        with Image.open(path) as image:
            if form.resized:  # JPEG files are decoded at 1/2, 1/4 or 1/8 where that is still large enough
                image.draft(None, (form.width, form.height))
            return form.apply(image)
    except Misfit as misfit:
        raise DataError(f"{path} {misfit}") from misfit
    except Exception as error:  # decoders of broken files raise whatever they come across
        raise DataError(f"{path} is not an image that can be read ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class FileReader:
    """Reads the images of a listing when they are asked for."""

    listing: Listing
    form: Form

    def __call__(self, index: int, /) -> Tensor:
        """Return one image, (channels, height, width) uint8."""
        return torch.from_numpy(np.array(read_file(self.listing.path(index), self.form)))


def find_form(listing: Listing, *, grey: bool | None, size: int | None) -> Form:
    """Return the form for a folder: size and colour of its first image, in colour if any sampled one is.

    Raises:
        DataError: no sampled image can be read.
    """
    form: Form | None = None
    faults = []
    for index in range(0, len(listing.names), max(1, len(listing.names) // _SAMPLED)):
        try:
            with Image.open(listing.path(index)) as image:
                this = Form.of(image, grey=grey, size=size)
        except (OSError, Image.DecompressionBombError) as error:  # told with all the others when they are decoded
            faults.append(f"{listing.path(index)} is not an image that can be read ({type(error).__name__}: {error})")
            continue
        form = form or this
        form = form if this.grey else replace(form, grey=False)
    if form is None:
        fail("images must be readable", faults)
        raise AssertionError("a listing without images was refused before")
    return form


def decode(listing: Listing, form: Form, *, workers: int, progress: bool) -> Pixels:
    """Return all images of a listing, (n, channels, height, width), decoded by that many threads.

    Raises:
        DataError: images that cannot be read or that are not of the form, the first of them named.
    """
    count = len(listing.names)
    pixels = np.empty((count, *form.shape), dtype=np.uint8)

    def work(start: int) -> list[str]:
        faults = []
        for index in range(start, min(start + _CHUNK, count)):
            try:
                pixels[index] = read_file(f"{listing.folder}{os.sep}{listing.names[index]}", form)
            except DataError as error:
                faults.append(str(error))
        return faults

    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(work, range(0, count, _CHUNK))
        title = f"Decoding {listing.folder.name}"
        faults = [fault for some in shown(done, -(-count // _CHUNK), title, progress) for fault in some]
    fail("images must be readable and of one form", faults)
    return pixels


def shown(items: Iterable[Any], total: int, title: str, progress: bool) -> Iterable[Any]:
    """Pass items on, with a bar on the terminal if wanted."""
    console = Console(stderr=True)
    return track(
        items, title, total=total, console=console, transient=True, disable=not (progress and console.is_terminal)
    )


def cached(listing: Listing, form: Form, folder: Path, make: Callable[[], Pixels]) -> Pixels:
    """Return what `make` decodes, from the cache if the files and the form are those of last time."""
    # Archives and tools set times of change that are the same everywhere, and raw images have the same sizes.
    place = str(listing.folder.resolve())
    contents = repr((_CACHE_VERSION, place, listing.names, listing.stamps, form))
    path = folder / f"{hashlib.sha256(contents.encode()).hexdigest()[:32]}.npy"
    shape = (len(listing.names), *form.shape)
    try:
        pixels = np.load(path, allow_pickle=False)
        if pixels.shape == shape and pixels.dtype == np.uint8:
            return np.asarray(pixels)
    except (OSError, ValueError, EOFError):
        pass  # not there, or cut short: decode
    pixels = make()
    try:
        write_atomically(path, pixels)
    except OSError as error:
        warnings.warn(f"decoded images could not be cached in {folder}: {error}", stacklevel=2)
    return pixels


def write_atomically(path: Path, pixels: Pixels) -> None:
    """Write an array to a .npy file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, pixels)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
