from __future__ import annotations

import base64
import io
import json
import re
import shutil
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.browser import browser, chromium
from tests.support.tiny import make, squeeze
from understudy.cli import main
from understudy.config.methods import Decore
from understudy.config.training import Training
from understudy.core.errors import RunError
from understudy.core.files import read_json, write_json
from understudy.core.goal import Goal
from understudy.core.summary import Score
from understudy.data import Data
from understudy.report.facts import Facts, difference, layer_rows
from understudy.report.html import page
from understudy.runs.predictions import Predictions

NAME = "<img src=x onerror=alert(1)> & 'me'"
EVERYWHERE = {"layers", "latency", "times", "curves", "classes", "calibration"}


class Parsed(HTMLParser):
    """The elements of a page, the texts that people read, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.lasttag != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self) -> dict[str, Any]:
        (text,) = (text for attrs, text in self.scripts if attrs.get("id") == "data")
        found: dict[str, Any] = json.loads(text.partition("</script")[0])
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / NAME
    squeeze(make(), folder, goal=Goal(params="2x"))
    return folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_the_page_needs_nothing_from_elsewhere(run: Path) -> None:
    found = Parsed(page(Facts.read(run)))
    for tag, attrs in found.elements:
        assert tag not in ("iframe", "object", "embed")
        for name in ("src", "href", "action", "srcset"):
            assert (attrs.get(name) or "#").startswith(("#", "data:")), (tag, attrs)
    own = [text for attrs, text in found.scripts if attrs.get("id") != "plotly"]
    assert len(own) == 2 and not re.search(r"https?://|//cdn|import\(|fetch\(", "".join(own))
    policy = [attrs["content"] for tag, attrs in found.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0] is not None and policy[0].startswith("default-src 'none'")


def test_every_chart_has_data_and_words(run: Path) -> None:
    found = Parsed(page(Facts.read(run)))
    ids = {attrs["id"] for _, attrs in found.elements if "id" in attrs}
    charts = found.data["charts"]
    assert set(charts) >= {"pareto", "rewards", "widths", *EVERYWHERE}
    for name, chart in charts.items():
        assert f"chart-{name}" in ids
        assert all(len(trace.get("z") or trace["x"]) for trace in chart["data"])
    for _, attrs in found.elements:
        for name in ("aria-labelledby", "aria-describedby", "aria-controls"):
            assert {*(attrs.get(name) or "").split()} <= ids
        assert attrs.get("role") != "img" or attrs.get("aria-labelledby")
    assert len(charts["pareto"]["data"][0]["x"]) == len(Facts.read(run).trained)


def test_the_top_says_what_was_asked_and_obtained(run: Path) -> None:
    facts = Facts.read(run)
    assert facts.summary is not None
    text = Parsed(page(facts)).text
    cost, own = facts.summary.teacher.cost, facts.summary.student.cost
    assert f"{cost.parameters / own.parameters:.3g}x fewer parameters" in text
    assert f"{facts.summary.student.test}, of 449 examples; ± one standard error" in text
    assert re.search(r"parameters 2x ≤ 1,909 [\d,]+ ✓ kept", text)


def test_layers_are_timed_and_the_final_training_is_drawn(run: Path) -> None:
    facts = Facts.read(run)
    assert facts.summary is not None and facts.timed_where == "1 thread"
    layers = {"first.0", "second.0", "third.0", "classifier"}
    assert layers <= {one.name for one in facts.times} and all(one.teacher.median > 0 for one in facts.times)
    names = {final.architecture.digest for final in facts.finals}
    assert set(facts.curves) == names and all([e.epoch for e in curve] == [1, 2] for curve in facts.curves.values())
    found = Parsed(page(facts))
    times, curves = found.data["charts"]["times"]["data"], found.data["charts"]["curves"]["data"]
    assert [trace["name"] for trace in times] == ["teacher", "student"] and layers <= set(times[0]["y"])
    assert [trace["name"] for trace in curves[:2]] == ["score, chosen", "loss, chosen"] and len(curves) == 2 * len(
        names
    )
    assert curves[0]["y"] == [epoch.score for epoch in facts.curves[facts.summary.name]]
    assert "not as much faster" in found.text


def test_names_are_escaped(run: Path) -> None:
    facts = Facts.read(run)
    assert facts.predictions is not None
    classes = ("</script><script>alert(2)</script>", *facts.predictions.classes[1:])
    text = page(replace(facts, predictions=replace(facts.predictions, classes=classes)))
    found = Parsed(text)
    assert NAME in found.text and all(
        (attrs["src"] or "").startswith("data:image/png;base64,") for tag, attrs in found.elements if tag == "img"
    )
    assert len(found.scripts) == 3 and "<script>alert" not in text
    assert any("&lt;/script&gt;" in name for name in found.data["charts"]["classes"]["data"][0]["y"])


def test_layers_stand_beside_what_became_of_them(run: Path) -> None:
    facts = Facts.read(run)
    assert facts.summary is not None and facts.best is not None
    rows = layer_rows(facts.best.architecture, facts.parameters)
    assert sum(row.parameters for row in rows) == facts.summary.teacher.cost.parameters
    assert sum(row.student_parameters or 0 for row in rows) == facts.summary.student.cost.parameters
    space = facts.best.architecture.space
    group = next(group for group in space.groups if group.width > group.least)
    narrow = layer_rows(space.full.with_width(group.name, group.nearest(group.width / 2)), facts.parameters)
    assert any(row.state != "kept" and row.student_width < row.width for row in narrow)


def test_images_that_one_of_both_gets_wrong_are_shown(run: Path) -> None:
    facts = Facts.read(run)
    found = facts.predictions
    assert found is not None and len(found.lost) + len(found.gained) == len(found.shown) > 0
    images = Data.digits().test
    assert images is not None
    for place, picture in zip(found.shown.tolist(), found.pictures, strict=True):
        assert (found.teacher[place] == found.labels[place]) != (found.student[place] == found.labels[place])
        assert np.array_equal(picture, images.batch(torch.tensor([place]))[0][0].permute(1, 2, 0).numpy())
    parsed = Parsed(page(facts))
    shown = [attrs for tag, attrs in parsed.elements if tag == "img"]
    assert len(shown) == len(found.shown) and all((attrs["alt"] or "").startswith("An image of") for attrs in shown)
    first = Image.open(io.BytesIO(base64.b64decode((shown[0]["src"] or "").partition(",")[2])))
    assert np.array_equal(np.asarray(first), found.pictures[0][..., 0])
    earlier = replace(found, shown=found.shown[:0], pictures=found.pictures[:0])  # of a run that kept none
    assert not any(tag == "img" for tag, _ in Parsed(page(replace(facts, predictions=earlier))).elements)


def test_an_unfinished_run_says_so(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("summary.json", "predictions.npz"):
        (copied / name).unlink()
    shutil.rmtree(copied / "students")
    assert main(["report", str(copied)]) == 0
    assert "report.html: 4." in capsys.readouterr().out.replace("\n", "")
    found = Parsed((copied / "report.html").read_text(encoding="utf-8"))
    assert "This run is not finished" in found.text and f"understudy resume {copied}" in found.text
    assert "Best so far: " in found.text and "params 2x" in found.text
    assert set(found.data["charts"]) >= {"pareto", "rewards", "widths"} and "latency" not in found.data["charts"]


def test_a_budget_on_latency_is_shown_also_before_all_latencies_are_measured(tmp_path: Path) -> None:
    squeeze(make(), tmp_path, goal=Goal(latency_ms="1000"))
    facts = Facts.read(tmp_path)
    assert all(e.cost is not None and e.cost.latency_ms for e in facts.finals)
    drawn = Parsed(page(facts)).data
    assert drawn["charts"]["pareto"] and "NaN" not in json.dumps(drawn)  # which no browser takes for JSON
    known = read_json(tmp_path / "latency.json", RunError)
    first = facts.evaluations[0].architecture.digest
    known["students"].pop(first)
    write_json(tmp_path / "latency.json", known)
    (tmp_path / "summary.json").unlink()
    going = Facts.read(tmp_path)
    assert first not in {e.architecture.digest for e in going.ordered} and len(going.evaluations) > len(going.trained)
    assert Parsed(page(going)).data["students"][0]["r"] is None


def test_a_run_without_a_student_says_so(copied: Path, tmp_path: Path) -> None:
    for name in ("summary.json", "predictions.npz", "study.db", "space.json", "teacher.json", "run.log"):
        (copied / name).unlink()
    shutil.rmtree(copied / "students")
    assert main(["report", str(copied), "--out", str(tmp_path / "new" / "page.html")]) == 0
    found = Parsed((tmp_path / "new" / "page.html").read_text(encoding="utf-8"))
    assert "No student has been evaluated yet" in found.text
    assert found.data["charts"] == {}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.toml", "config.toml"),
        ("space.json", "space.json must be"),
        ("summary.json", "summary.json must be"),
        ("predictions.npz", "predictions.npz must be as it was written, but is damaged"),
        ("students/*.json", r"students/\w+.json must be as it was written, but is damaged"),
        ("students/*.safetensors", r"students/\w+.safetensors must be as it was written, but is damaged"),
        ("study.db", "the store .*study.db cannot be used"),
    ],
)
def test_a_damaged_file_is_one_error(copied: Path, capsys: pytest.CaptureFixture[str], file: str, text: str) -> None:
    for path in copied.glob(file):
        path.write_text("{ no")
    assert main(["report", str(copied)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and re.search(text, error) and error.count("\n") <= 2
    assert not (copied / "report.html").exists()


def test_a_foreign_folder_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.txt").write_text("")
    for command in ("report", "dashboard"):
        for folder in (tmp_path, tmp_path / "none"):
            assert main([command, str(folder)]) == 2
            assert f"a run is a folder with a config.toml, but there is none in {folder}" in capsys.readouterr().err


def test_the_dashboard_needs_a_study_and_its_extra(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna_dashboard", None)
    assert main(["dashboard", str(copied)]) == 2
    assert "pip install 'understudy[dashboard]'" in capsys.readouterr().err
    assert main(["dashboard", str(copied), "--port", "0"]) == 2
    assert "port must be in 1..65535, but got 0" in capsys.readouterr().err
    (copied / "study.db").unlink()
    assert main(["dashboard", str(copied)]) == 2
    assert "no student has been evaluated" in capsys.readouterr().err


def test_agents_are_shown(tmp_path: Path) -> None:
    method = Decore(training=Training(epochs=2, batch_size=64, lr=0.01, loss="ce"))
    squeeze(make(), tmp_path / "decore", method=method, goal=Goal(params="2x"))
    facts = Facts.read(tmp_path / "decore")
    assert [epoch.epoch for epoch in facts.epochs] == [1, 2]
    assert all(0 <= chance <= 1 for chances in facts.agents.values() for chance in chances)
    found = Parsed(page(facts))
    assert {"agents", "loop", *EVERYWHERE} <= set(found.data["charts"])


def test_ten_thousand_evaluations_take_seconds(run: Path) -> None:
    facts = Facts.read(run)
    numbers = np.random.default_rng(0)
    some = [e for e in facts.evaluations if e.status == "ok"]
    many = [replace(some[n % len(some)], score=float(right)) for n, right in enumerate(numbers.random(10_000))]
    start = time.process_time()
    text = page(replace(facts, evaluations=tuple(many)))
    assert time.process_time() - start < 10
    found = Parsed(text)
    assert len(found.data["students"]) == len(found.data["charts"]["pareto"]["data"][0]["x"]) == 10_000
    assert len(found.data["charts"]["widths"]["data"][0]["x"]) <= 60
    assert len(text) < 12e6


def test_a_difference_is_known_better_from_pairs() -> None:
    labels = np.zeros(100, dtype=int)
    teacher, student = labels.copy(), labels.copy()
    teacher[:20], student[:22] = 1, 1
    sure = np.full(100, 0.5)
    found = Predictions(
        classes=("a", "b"), labels=labels, teacher=teacher, student=student, teacher_confidence=sure,
        student_confidence=sure,
    )  # fmt: skip
    was, now = Score(value=0.8, examples=100), Score(value=0.78, examples=100)
    assert difference(was, now, None) == (pytest.approx(-0.02), pytest.approx(0.0576, abs=1e-3))
    assert difference(was, now, found) == (pytest.approx(-0.02), pytest.approx(0.014, abs=1e-4))


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="there is no chromium on this machine")
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_a_browser_shows_it(run: Path, tmp_path: Path, width: int, dark: bool) -> None:
    (tmp_path / "page.html").write_text(page(Facts.read(run)), encoding="utf-8")
    with browser(tmp_path / "profile") as tab:
        tab.open(tmp_path / "page.html", width=width, dark=dark)
        tab.wait_for("[...document.querySelectorAll('.chart')].every(c => c.querySelector('.main-svg'))")
        assert tab.value("document.documentElement.scrollWidth") <= width
        assert tab.value("document.querySelectorAll('.chart').length") >= 7
        # A click on a point opens its details.
        point = (
            "(p => { p.scrollIntoView({block: 'center'}); const b = p.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2] })(document.querySelector('#chart-pareto .point'))"
        )
        assert tab.value("document.getElementById('details-title').textContent") == "Details"
        tab.click(*tab.value(point))
        tab.wait_for("/^Student \\d+: /.test(document.getElementById('details-title').textContent)")
        assert "validation accuracy" in tab.value("document.getElementById('details-body').textContent")
        # So does a button of the table, for the keyboard; another cost moves the points.
        tab.value("document.getElementById('details-title').textContent = ''")
        tab.value("document.querySelector('[data-student]').click()")
        assert tab.value("document.activeElement.id") == "details"
        tab.value("(s => { s.value = 1; s.dispatchEvent(new Event('change')) })(document.getElementById('figure'))")
        assert tab.value("document.querySelector('#chart-pareto .xtitle').textContent") == "MACs"
        assert tab.errors == []
        assert [url for url in tab.requests if not url.startswith(("data:", "file:"))] == []
        assert len([url for url in tab.requests if url.startswith("file:")]) == 1
