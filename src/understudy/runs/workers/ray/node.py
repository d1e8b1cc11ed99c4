"""A node's side: a task that evaluates one architecture, and the actor that writes what tasks send home. No torch."""

from __future__ import annotations

import faulthandler
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from understudy.core.architecture import Architecture, Space
from understudy.core.errors import RunError
from understudy.core.files import write_whole
from understudy.runs.folder import versions
from understudy.runs.workers.packing import Packed, portable, unpacked

_LEFT = 7 * 24 * 3600.0  # seconds after which a folder is no longer needed
_SYNC_EVERY = 1.0  # seconds between two looks for files that an evaluation has written


class Courier:
    """An actor beside the driver: writes what evaluations send into the run's folders, and knows where each runs."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = {name: Path(folder) for name, folder in places.items()}
        self._nodes: dict[int, str] = {}

    def begins(self, number: int, node: str) -> None:
        """Hear on which node a task begins."""
        self._nodes[number] = node

    def node_of(self, number: int) -> str | None:
        """Return the node of a task, None if it never began."""
        return self._nodes.get(number)

    def write(self, place: str, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        write_whole(self._places[place] / name, content)

    def remove(self, place: str, name: str) -> None:
        """Remove a file that an evaluation needs no more."""
        (self._places[place] / name).unlink(missing_ok=True)


_kept: dict[str, tuple[Any, Space, Sequence[str]]] = {}  # of this process, by key: evaluator, Space, its places


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """What one task gets. Ray resolves no references inside it, so each node reads them once."""

    key: str  # of all that the tasks of a pool share
    content: Any  # reference to the pickle of (evaluator, Space)
    buffers: Sequence[Any]  # references to the memory that it refers to
    files: Sequence[tuple[str, str, Any]]  # place, name and reference of each file that all may read
    own: Sequence[tuple[str, str, bytes]]  # place, name and content of what earlier attempts left
    courier: Any
    digest: str
    architecture: str  # JSON
    number: int  # of the attempt
    versions: Mapping[str, str]  # of the driver


def evaluated(order: Order) -> str | Exception:
    """Evaluate one architecture; return its evaluation as JSON, or what was raised."""
    _check_versions(order.versions)
    node = ray.get_runtime_context().get_node_id()
    ray.get(order.courier.begins.remote(order.number, node))  # before anything can crash
    root = _scratch(order.key)
    for place, name, reference in order.files:
        if not (root / place / name).is_file():
            write_whole(root / place / name, ray.get(reference))
    evaluate, space, places = _evaluator(order, root)
    sent_back = _brought(root, order) if "students" in places else nullcontext()
    with _crashes_told(root, order.number), sent_back:
        try:
            found = evaluate(Architecture.from_json(space, order.architecture))
            return str(found.to_json())
        except Exception as error:
            return portable(error, "On a node of the cluster")


def _evaluator(order: Order, root: Path) -> tuple[Any, Space, Sequence[str]]:
    """Return the evaluator with its folders on this node, read once in each process."""
    if order.key not in _kept:
        _kept.clear()  # one pool at a time is enough for a process's memory
        _sweep(root.parent)
        evaluate, space = unpacked(Packed(ray.get(order.content), ray.get(list(order.buffers))))
        places = tuple(getattr(evaluate, "places", ()))
        moved = evaluate.moved({name: root / name for name in places}) if places else evaluate
        _kept[order.key] = moved, space, places
    return _kept[order.key]


def _sweep(scratch: Path) -> None:
    """Remove what pools that ended long ago left on this node."""
    for folder in scratch.iterdir() if scratch.is_dir() else ():
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _LEFT:
                shutil.rmtree(folder, ignore_errors=True)


def _check_versions(wanted: Mapping[str, str]) -> None:
    here = versions()
    unlike = [
        f"{name} {here.get(name, 'none')} (the driver has {v})" for name, v in wanted.items() if here.get(name) != v
    ]
    if unlike:
        node = ray.util.get_node_ip_address()
        raise RunError(
            f"all nodes must have the driver's versions, but {node} has {', '.join(unlike)}; install the same"
        )


def _scratch(key: str) -> Path:
    """Return this node's folder of a run's files."""
    return Path(tempfile.gettempdir()) / f"understudy-{os.getuid()}" / key


@contextmanager
def _crashes_told(root: Path, number: int) -> Iterator[None]:
    """Leave a trace if native code ends this process inside."""
    place = root / "crashes" / f"{number}.txt"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
    place.unlink(missing_ok=True)


def crash_report(key: str, number: int) -> str:
    """Return the first line of what a crash left, "" if there was none."""
    try:
        lines = (_scratch(key) / "crashes" / f"{number}.txt").read_text().splitlines()
    except OSError:
        return ""
    return lines[0] if lines else ""


@contextmanager
def _brought(root: Path, order: Order) -> Iterator[None]:
    """Lay out what earlier attempts left; send back what the evaluation writes, while it does and at the end."""
    folder, digest, own, courier = root / "students", order.digest, order.own, order.courier
    known: dict[str, tuple[int, int]] = {}
    for place, name, content in own:
        write_whole(root / place / name, content)
    stop = threading.Event()

    def stamp(path: Path) -> tuple[int, int]:
        found = path.stat()
        return found.st_mtime_ns, found.st_ino

    def send(*, wait: bool = False) -> None:
        there = {p.name: p for p in folder.glob(f"{digest}.*") if ".partial" not in p.name} if folder.exists() else {}
        sent = []
        for name, path in there.items():
            with suppress(FileNotFoundError):
                now = stamp(path)
                if known.get(name) != now:
                    sent.append(courier.write.remote("students", name, path.read_bytes()))
                    known[name] = now
        sent += [courier.remove.remote("students", name) for name in known.keys() - there.keys()]
        for name in list(known.keys() - there.keys()):
            del known[name]
        if wait:
            ray.get(sent)

    def watch() -> None:
        while not stop.wait(_SYNC_EVERY):
            send()

    known.update({name: stamp(folder / name) for _, name, _ in own})
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        send(wait=True)
