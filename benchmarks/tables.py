"""Write the tables and plots of docs/results.md from the files of benchmarks/results, and from nothing else.

    python -m benchmarks.tables

Writes what stands between the marks of docs/results.md and README.md, and for each track docs/results/TRACK.md (all
figures) and docs/results/TRACK.svg. A test holds them in step with the files.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence import picture
from benchmarks.evidence.contenders import BEFORE, CONTENDERS, ROLLOUTS, TRANSFERRED
from benchmarks.evidence.results import BUDGETS, ROOT, TEACHER, Budget, read_results
from benchmarks.transfer import needed, targets
from understudy.core.errors import RunError
from understudy.core.figures import amount

BEGIN, END = "<!-- by python -m benchmarks.tables: begin -->", "<!-- by python -m benchmarks.tables: end -->"
README, README_TRACK, SEEDS = "README.md", "cifar10-16px-resnet18w16", 3  # whoever has so many seeds is in its table
FIGURES = {"params": "parameters", "macs": "MACs"}
SAID = {
    "included": "the same image passes for all, search included",
    "excluded": "the same final training for all, search not counted",
}
COLUMNS = (
    *("seeds", "test, %", "validation, %", "parameters", "MACs", "latency"),
    *("passes: search, final", "hours: search, final"),
)
Group = dict[str, dict[str, list[dict[str, Any]]]]  # point -> contender -> a result for each seed


def pages(results: Path, existing: str) -> dict[str, str]:
    """Return what must stand in the folder of the docs, by the name of the file.

    Args:
        results: folder with one folder for each track.
        existing: the text of results.md, of which what is outside of the marks stays.

    Raises:
        RunError: the marks are missing, or a file of results is damaged.
    """
    written, parts = {}, list[str]()
    for folder in sorted(path.parent for path in results.glob(f"*/{TEACHER}")):
        teacher, found = read_results(folder)
        groups = {budget: grouped(found, budget) for budget in BUDGETS}
        plot = drawn(groups, teacher["test"])
        parts += [*overview(folder.name, teacher, found, groups, plot is not None), ""]
        written[f"results/{folder.name}.md"] = "\n".join([*details(folder.name, teacher, groups), ""])
        if plot is not None:
            written[f"results/{folder.name}.svg"] = plot
    return {"results.md": between_marks(existing, parts, "results.md"), **written}


def between_marks(existing: str, lines: Sequence[str], name: str) -> str:
    """Return a text with these lines between its marks.

    Raises:
        RunError: the marks are missing.
    """
    if existing.count(BEGIN) != 1 or existing.count(END) != 1:
        raise RunError(f"{name} must hold the marks {BEGIN!r} and {END!r} once each, but does not")
    before, _, rest = existing.partition(BEGIN)
    return "\n".join([before + BEGIN, "", *lines, END + rest.partition(END)[2]])


def readme(results: Path, existing: str) -> str:
    """Return what must stand in README.md: the contenders with enough seeds at all budgets on parameters, best first.

    Args:
        results: folder with one folder for each track.
        existing: its text, of which what is outside of the marks stays.

    Raises:
        RunError: the marks are missing, or a file of results is damaged.
    """
    teacher, found = read_results(results / README_TRACK)
    group = grouped(found, "included")
    points = [point for point in group if point.startswith("params")]
    tests = {
        name: [[result["test"] for result in trained(group[point].get(name, []))] for point in points]
        for name in CONTENDERS
        if name not in BEFORE
    }
    enough = {name: at for name, at in tests.items() if all(len(values) >= SEEDS for values in at)}
    ordered = sorted(enough, key=lambda name: -sum(map(statistics.fmean, enough[name])))
    whole = f" {100 * teacher['test']:.2f} |"
    lines = [
        f"| test accuracy, % | {' | '.join(f'{factor(point):g}x fewer parameters' for point in points)} |",
        "| --- |" + " --- |" * len(points),
        f"| the teacher |{whole * len(points)}",
        *(f"| {CONTENDERS[name].label} | {' | '.join(map(summed, enough[name]))} |" for name in ordered),
        "",
    ]
    return between_marks(existing, lines, README)


def grouped(found: list[dict[str, Any]], budget: Budget) -> Group:
    """Return the results of a budget by operating point, then by contender, in the order of the tables."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for result in found:
        if budget in result["budgets"]:
            groups[result["point"]][result["contender"]].append(result)
    rank = list(CONTENDERS)
    return {
        point: {name: groups[point][name] for name in rank if name in groups[point]}
        for point in sorted(groups, key=lambda point: (not point.startswith("params"), factor(point)))
    }


def factor(point: str) -> float:
    """Return 10 for "params-10x"."""
    return float(point.partition("-")[2].removesuffix("x"))


def summed(values: list[float], scale: float = 100.0, form: str = ".2f") -> str:
    """Return the mean, with the standard deviation where there are several."""
    mean = f"{scale * statistics.fmean(values):{form}}"
    return f"{mean} ± {scale * statistics.stdev(values):{form}}" if len(values) > 1 else mean


def trained(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those that came to a student."""
    return [result for result in results if "error" not in result]


def overview(
    track: str, teacher: Mapping[str, Any], found: list[dict[str, Any]], groups: Mapping[str, Group], plotted: bool
) -> Iterator[str]:
    """Yield the lines of a track in results.md: the test accuracies at each operating point."""
    images = teacher["images"]
    about = sorted({(r["environment"]["processor"], r["environment"]["gpu"], r["environment"]["torch"]) for r in found})
    machines = "; ".join(
        f"{processor}, {'no GPU' if gpu == 'none' else gpu}, torch {torch}" for processor, gpu, torch in about
    )
    commits = ", ".join(sorted({result["commit"][:7] + result["commit"][40:] for result in found}))
    yield from (
        f"### {track}",
        "",
        f"Teacher: {teacher['parameters']:,} parameters, {amount(teacher['macs'])} MACs, "
        f"{100 * teacher['val']:.2f}% on validation, **{100 * teacher['test']:.2f}%** on test; {teacher['note']}. "
        f"{images['train']:,} training, {images['val']:,} validation and {images['test']:,} test images. A whole "
        f"search takes {amount(teacher['search_passes'])} image passes, the shortest final training "
        f"{amount(teacher['final_passes'])}. Commit {commits}, `python -m benchmarks.run {track}`; {machines}.",
        "",
    )
    for figure, name in FIGURES.items():
        for budget in reversed(BUDGETS):
            points = [point for point in groups[budget] if point.startswith(figure)]
            if points:
                yield from (f"By {name}, {SAID[budget]}: test accuracy in %, mean ± deviation (seeds)", "")
                yield "| | " + " | ".join(f"{factor(point):g}x fewer {name}" for point in points) + " |"
                yield "| --- |" + " --- |" * len(points)
                cells = {name: [groups[budget][p].get(name, []) for p in points] for name in CONTENDERS}
                yield from (row(name, results) for name, results in cells.items() if any(results))
                missing = [name for name, results in cells.items() if not any(results) and name not in BEFORE]
                if missing:
                    yield from ("", f"Not run: {'; '.join(CONTENDERS[name].label for name in missing)}.")
                yield ""
    yield from transfer(groups["excluded"])
    if plotted:
        yield from (f"![Test accuracy by operating point](results/{track}.svg)", "")
    yield f"All figures: [results/{track}.md](results/{track}.md)."


def transfer(group: Group) -> Iterator[str]:
    """Yield a table of the students that N2N needs from another track's policy to reach what it does from scratch."""
    rows = []
    for point, contenders in group.items():
        by_seed = [
            {r["seed"]: updates(r["rewards"]) for r in trained(contenders.get(name, [])) if r.get("rewards")}
            for name in ("n2n", TRANSFERRED)
        ]
        for seed in sorted(by_seed[0].keys() & by_seed[1].keys()):
            scratch, moved = by_seed[0][seed], by_seed[1][seed]
            mean, best = targets(scratch)
            whole = sum(map(len, scratch))
            counts = [needed(rewards, mean, best, whole=whole) for rewards in (scratch, moved)]
            cells = [point, str(seed), *(f"{a} / {b}" for a, b in zip(*counts, strict=True))]
            rows.append(f"| {' | '.join(cells)} |")
    if rows:
        said = "the mean of the last three updates from scratch (by an update), and the best (by the best so far)"
        yield from (f"Students that N2N trains to reach {said}: from scratch / from another track's policy", "")
        yield from ("| | seed | mean | best |", "| --- | --- | --- | --- |", *rows, "")


def updates(rewards: list[float]) -> list[list[float]]:
    """Return the rewards of each update of N2N."""
    return [rewards[at : at + ROLLOUTS] for at in range(0, len(rewards), ROLLOUTS)]


def row(contender: str, cells: list[list[dict[str, Any]]]) -> str:
    """Return one line of an overview."""
    texts = []
    for results in cells:
        ok = trained(results)
        text = f"{summed([result['test'] for result in ok])} ({len(ok)})" if ok else ""
        if failed := len(results) - len(ok):
            text = f"{text}, {failed} without a student".removeprefix(", ")
        texts.append(text or "not run")
    return f"| {CONTENDERS[contender].label} | {' | '.join(texts)} |"


def details(track: str, teacher: Mapping[str, Any], groups: Mapping[str, Group]) -> Iterator[str]:
    """Yield the lines of a track's own page: every figure of every contender."""
    yield from (f"# {track}, all figures", "")
    yield (
        "Mean ± standard deviation over the seeds. Latency: ONNX Runtime, float32, one image, one thread, times faster "
        "than the teacher, in brackets the lowest and highest quartile of any seed. Image passes: training images that "
        "a network saw, forward and backward; forward passes alone (teacher logits, validation) do not count. Hours: "
        "of the processor, as the process counts them, without what a kill cut off."
    )
    for budget in reversed(BUDGETS):
        for point, contenders in groups[budget].items():
            figure = point.partition("-")[0]
            yield from ("", f"## {factor(point):g}x fewer {FIGURES[figure]}, {SAID[budget]}", "")
            yield f"| | {' | '.join(COLUMNS)} |"
            yield "|" + " --- |" * (1 + len(COLUMNS))
            yield from (detail(contender, results, teacher) for contender, results in contenders.items())


def detail(contender: str, results: list[dict[str, Any]], teacher: Mapping[str, Any]) -> str:
    """Return one line of a track's own page."""
    label, ok = CONTENDERS[contender].label, trained(results)
    if not ok:
        return f"| {label} | {', '.join(str(r['seed']) for r in results)} | no student: {_reason(results)} |" + " |" * (
            len(COLUMNS) - 2
        )
    cells = [label, ", ".join(str(result["seed"]) for result in ok)]
    cells += [summed([result[split] for result in ok]) for split in ("test", "val")]
    for name in ("parameters", "macs"):
        mean = statistics.fmean(result[name] for result in ok)
        cells.append(f"{amount(round(mean))} ({teacher[name] / mean:.1f}x fewer)")
    ratios = [result["latency"]["ratio"] for result in ok]
    faster = statistics.fmean(ratio["median"] for ratio in ratios)
    spread = f"{min(ratio['low'] for ratio in ratios):.2f}-{max(ratio['high'] for ratio in ratios):.2f}"
    cells.append(f"{faster:.2f}x ({spread})")
    passes = [statistics.fmean(result["passes"][part] for result in ok) for part in ("search", "final")]
    hours = [statistics.fmean(result["seconds"][part]["cpu"] for result in ok) / 3600 for part in ("search", "final")]
    cells.append(", ".join(amount(round(value)) for value in passes))
    cells.append(", ".join(f"{value:.3f}" for value in hours))
    return f"| {' | '.join(cells)} |"


def _reason(results: list[dict[str, Any]]) -> str:
    return str(results[0]["error"]).partition("\n")[0].replace("|", "/")


def drawn(groups: Mapping[str, Group], teacher: float) -> str | None:
    """Return the plot of a track with a teacher of that test accuracy; None where no search was included."""
    group, panels = groups["included"], []
    for figure, name in FIGURES.items():
        points = [point for point in group if point.startswith(figure)]
        tests = {
            about.label: {f"{factor(p):g}x": [r["test"] for r in trained(group[p].get(key, []))] for p in points}
            for key, about in CONTENDERS.items()
        }
        if known := {label: at for label, at in tests.items() if any(at.values())}:
            title = f"Test accuracy, {SAID['included']}, by {name}; bars: one standard deviation"
            at = tuple(f"{factor(point):g}x" for point in points)
            panels.append(picture.Panel(title=title, points=at, tests=known, teacher=teacher))
    return picture.svg(panels) if panels else None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    options = parser.parse_args(arguments)
    first, existing = options.docs.parent / README, (options.docs / "results.md").read_text(encoding="utf-8")
    written = {options.docs / name: text for name, text in pages(options.results, existing).items()}
    written[first] = readme(options.results, first.read_text(encoding="utf-8"))
    for place, text in written.items():
        place.parent.mkdir(exist_ok=True)
        place.write_text(text, encoding="utf-8")
        print(place)


if __name__ == "__main__":
    main()
