"""From a cell and a contender to one file of results, and reading them back."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.evidence.cell import Cell, Found, cells, clocked, seconds_in, settings_of
from benchmarks.evidence.contenders import CONTENDERS, Contender
from benchmarks.evidence.tracks import Point, Track
from understudy.core.architecture import Architecture
from understudy.core.errors import GoalError, RunError, SurgeryError
from understudy.core.figures import share
from understudy.core.files import read_json, write_whole
from understudy.core.timing import Comparison
from understudy.cost.measure import compare
from understudy.data.data import first_images
from understudy.export.onnx import OnnxModel, to_onnx
from understudy.graph.copies import copied
from understudy.jobs.task import Task
from understudy.models.weights import weights_digest
from understudy.runs.folder import Run, versions
from understudy.training.evaluator import Evaluator
from understudy.training.loop import accuracy, choose_compute

Budget = Literal["excluded", "included"]
BUDGETS: tuple[Budget, ...] = ("excluded", "included")
TEACHER, TEACHER_WEIGHTS = "teacher.json", "teacher.safetensors"
_NOTHING_FOUND = (GoalError, SurgeryError)  # a contender's own failures, which are results
ROOT = Path(__file__).parent.parent.parent


def place_of(folder: Path, point: Point, contender: str, seed: int, budget: Budget) -> Path:
    """Return the file of one result in the folder of a track."""
    return folder / str(point) / f"{contender}-{seed}-{budget}.json"


def is_done(folder: Path, point: Point, contender: str, seed: int, budget: Budget) -> bool:
    """Return whether there is a result in the folder of a track; one training may serve both budgets."""
    first = place_of(folder, point, contender, seed, "excluded")
    own = place_of(folder, point, contender, seed, budget)
    return own.is_file() or (first.is_file() and budget in read_json(first, RunError)["budgets"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """A track that is open: its task, and where its results go."""

    track: Track
    task: Task
    folder: Path  # of the track's results
    work: Path
    policy_from: Path | None = None

    @classmethod
    def of(
        cls,
        track: Track,
        results: Path,
        work: Path,
        *,
        data: str | None = None,
        weights: Path | None = None,
        policy_from: Path | None = None,
    ) -> Bench:
        """Open data and teacher, which is trained first if it must be, and publish the teacher's figures.

        Weights that lie beside its figures are the teacher's: trained again on another machine they are others.

        Raises:
            DataError: the data are missing.
            ModelError: the teacher's weights are missing.
            RunError: the results that are there are of another recipe, or of another teacher.
        """
        folder = results / track.name
        known = read_json(folder / TEACHER, RunError) if (folder / TEACHER).is_file() else None
        way_out = "move them away, or give another folder by --results"
        if known is not None and known["recipe"] != track.recipe:
            raise RunError(
                f"all results of a track must be of one recipe, but those in {folder} are of {known['recipe']}, not of "
                f"{track.recipe}: {way_out}"
            )
        images, kept = track.open_data(data, work / "images"), folder / TEACHER_WEIGHTS
        teacher = track.teacher.open(images, work / "teacher", weights or (kept if kept.is_file() else None))
        if known is not None and known["weights"] != (own := weights_digest(teacher.module)):
            raise RunError(
                f"all results of a track must be of one teacher, but those in {folder} are of one with the digest "
                f"{known['weights']}, not of {own}: give its weights by --weights, {way_out}"
            )
        proofs, settings = work / "task", settings_of(track)
        task = Task.of(teacher, images, settings, run=proofs, progress=True)
        with Run.open(proofs, settings, task.identity) as run:
            run.remember("proof", task.proof.to_dict())
        bench = cls(track=track, task=task, folder=folder, work=work, policy_from=policy_from)
        if not (folder / TEACHER).is_file():
            bench.publish_teacher()
        return bench

    def publish_teacher(self) -> None:
        """Write the teacher's figures, its test accuracy among them."""
        compute = choose_compute(self.task.teacher.module, self.task.example, self.track.device)
        network = compute.place(copied(self.task.teacher.module))
        figures = {
            "recipe": self.track.recipe,
            "data": self.track.data,
            "note": self.track.teacher.note,
            "weights": weights_digest(self.task.teacher.module),
            "parameters": self.task.cost.parameters,
            "macs": self.task.cost.macs,
            **self._accuracies(network, compute),
            "search_passes": self.track.search_passes(len(self.task.data.train)),
            "final_passes": self.track.final.epochs * len(self.task.data.train),
            "images": {name: len(split) for name, split in self._splits.items()},
            **self._about(compute.name),
        }
        write_whole(self.folder / TEACHER, json.dumps(figures, indent=1) + "\n")

    @property
    def _splits(self) -> dict[str, Any]:
        return {"train": self.task.data.train, "val": self.task.data.val, "test": self.task.data.test}

    def _accuracies(self, network: nn.Module, compute: Any) -> dict[str, float]:
        return {
            name: accuracy(network, split.to(compute.device), normalise=self.task.data.normalise, compute=compute)
            for name, split in self._splits.items()
            if name != "train"
        }

    def _evaluator(self, task: Task) -> Evaluator:
        compute = choose_compute(task.teacher.module, task.example, self.track.device)
        return task.evaluator(compute, self.work / "logits")

    def cells(self, contenders: list[str], budgets: Sequence[Budget]) -> Iterator[Cell]:
        """Yield the cells where a result is missing."""
        for cell in cells(self.track, self.task, self._evaluator, self.work, self.policy_from):
            if any(not self.done(cell.point, name, cell.seed, b) for name in contenders for b in budgets):
                yield cell

    def done(self, point: Point, contender: str, seed: int, budget: Budget) -> bool:
        """Return whether there is a result."""
        return is_done(self.folder, point, contender, seed, budget)

    def compete(self, cell: Cell, name: str, budget: Budget) -> None:
        """Let a contender find a student, train it, measure it once, and write the result."""
        contender, began = CONTENDERS[name], time.perf_counter()
        result: dict[str, Any] = {
            "track": self.track.name,
            "recipe": self.track.recipe,
            "contender": name,
            "point": str(cell.point),
            "seed": cell.seed,
        }
        said = f"{cell.point}, seed {cell.seed}, {contender.label}, search {budget}"
        try:
            found = contender.find(cell)
            if contender.given:
                found = replace(found, passes=0, seconds={"wall": 0.0, "cpu": 0.0})
            epochs = {b: cell.epochs(found.passes, included=b == "included") for b in BUDGETS}
            result["budgets"] = [b for b in BUDGETS if epochs[b] == epochs[budget]]
            result |= self._student(cell, contender, found, epochs[budget], cell.folder / f"{name}-{budget}")
            said += f": test {share(result['test'])}"
        except _NOTHING_FOUND as error:
            result |= {"budgets": list(BUDGETS), "error": str(error)}
            said += f": {str(error).partition(chr(10))[0]}"
        result |= self._about(cell.evaluator.compute.name)
        place = place_of(self.folder, cell.point, name, cell.seed, result["budgets"][0])
        write_whole(place, json.dumps(result, indent=1) + "\n")
        print(f"{said} ({time.perf_counter() - began:.0f} s)", flush=True)

    def _student(self, cell: Cell, contender: Contender, found: Found, epochs: int, under_way: Path) -> dict[str, Any]:
        """Return the figures of a student after its final training; the test split is read here."""
        final = cell.final(contender.weights, contender.loss, epochs)
        clock, checkpoint = under_way.with_suffix(".seconds.json"), under_way.with_suffix(".checkpoint.pt")
        with clocked(clock):
            student, val, cost = cell.trained(found, final, checkpoint)
        latency = self._latency(student, found)
        compute = cell.evaluator.compute
        figures = {
            "architecture": found.shape.digest if isinstance(found.shape, Architecture) else None,
            "parameters": cost.parameters,
            "macs": cost.macs,
            "keeps_budget": not cell.reward.budgets.broken_by(cost),
            "val": val,
            "test": self._accuracies(compute.place(student), compute)["test"],
            "passes": {"search": found.passes, "final": epochs * len(cell.task.data.train)},
            "seconds": {"search": found.seconds, "final": seconds_in(clock)},
            "latency": asdict(latency),
            "rewards": list(found.rewards),
        }
        checkpoint.unlink(missing_ok=True)
        return figures

    def _latency(self, student: nn.Module, found: Found) -> Comparison:
        """Time teacher and student in turns in ONNX Runtime, one image, one thread; networks of one shape once."""
        shapes = [[name, list(tensor.shape)] for name, tensor in student.state_dict().items()]
        known = self.work / "latency" / f"{hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]}.json"
        if not known.is_file():
            timed = compare(self._timed_teacher, self._onnx(student, known.with_suffix(".onnx")), self.task.example)
            write_whole(known, json.dumps(asdict(timed)))
        return Comparison.from_json(json.loads(known.read_text(encoding="utf-8")))

    @cached_property
    def _timed_teacher(self) -> OnnxModel:
        return self._onnx(self.task.teacher.module, self.work / "latency" / "teacher.onnx")

    def _onnx(self, network: nn.Module, path: Path) -> OnnxModel:
        plain = copied(network).cpu().float().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        to_onnx(plain, first_images(self.task.data, self.task.data.val, 2), path)
        return OnnxModel(path)

    def _about(self, compute: str) -> dict[str, Any]:
        return {"commit": _commit(), "environment": {**environment(), "compute": compute}}


def environment() -> dict[str, Any]:
    """Return where a result comes from."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "python": platform.python_version(),
        **versions(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": device,
        "system": platform.system(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """Return the commit of this repository, with "-dirty" where its code is not that of the commit."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks/*.py")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def read_results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the teacher's figures and all results in the folder of a track.

    Raises:
        RunError: a file is damaged, or of another recipe than the teacher's.
    """
    teacher = read_json(folder / TEACHER, RunError)
    found = [read_json(path, RunError) for path in sorted(folder.glob("*/*.json"))]
    for result in found:
        if result["recipe"] != teacher["recipe"]:
            raise RunError(
                f"all results of a track must be of one recipe, but in {folder} {result['contender']} at "
                f"{result['point']}, seed {result['seed']}, is of {result['recipe']}, not of {teacher['recipe']}"
            )
    return teacher, found
