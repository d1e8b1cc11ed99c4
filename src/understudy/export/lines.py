"""Lines of source code: those of training merged with those of evaluation, repeats as loops, long ones broken."""

from __future__ import annotations

import difflib
import io
import itertools
import re
import tokenize

_WIDTH = 100
_INDENT = "    "
_FLAG = re.compile(r"\b(True|False)\b")
_MODES = {("False", "True"): "self.training", ("True", "False"): "not self.training"}


def merged(evaluation: list[str], training: list[str]) -> list[str]:
    """Return lines that do what the first do in evaluation and what the second do in training mode."""
    lines: list[str] = []
    a_lines, b_lines = ([_FLAG.sub("?", line) for line in each] for each in (evaluation, training))
    matcher = difflib.SequenceMatcher(None, a_lines, b_lines, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        old, new = evaluation[a:b], training[c:d]
        if tag == "equal":
            lines += [_by_mode(x, y) for x, y in zip(old, new, strict=True)]
        elif not old:
            lines += ["if self.training:", *(_INDENT + line for line in new)]
        elif not new:
            lines += ["if not self.training:", *(_INDENT + line for line in old)]
        else:
            lines += ["if self.training:", *(_INDENT + line for line in new)]
            lines += ["else:", *(_INDENT + line for line in old)]
    return lines


def _by_mode(evaluation: str, training: str) -> str:
    """Return a line of which `self.training` makes both; flags are all that differs."""
    pairs = zip(_FLAG.split(evaluation), _FLAG.split(training), strict=True)
    return "".join(x if x == y else _MODES[x, y] for x, y in pairs)


def looped(lines: list[str], sizes: dict[str, int]) -> list[str]:
    """Return lines with `for` in the place of repeats that run through a whole list; `sizes` has the lists' lengths."""
    out: list[str] = []
    at = 0
    while at < len(lines):
        found = _loop(lines, at, sizes)
        if found is None:
            out.append(lines[at])
            at += 1
        else:
            out += found[0]
            at += found[1]
    return out


def _loop(lines: list[str], at: int, sizes: dict[str, int]) -> tuple[list[str], int] | None:
    first = re.search(r"(self(?:\.\w+)+)\[0\]", lines[at])
    if first is None or sizes.get(first[1], 0) < 2:
        return None
    name, count = first[1], sizes[first[1]]
    for period in (1, 2, 3, 4):
        body = lines[at : at + period]
        if at + period * count > len(lines) or any(line.startswith((" ", "if ", "else", "return")) for line in body):
            break
        runs = [lines[at + period * i : at + period * (i + 1)] for i in range(count)]
        if all(run == [line.replace(f"{name}[0]", f"{name}[{i}]") for line in body] for i, run in enumerate(runs)):
            member = _singular(name.rpartition(".")[2], [line.replace(f"{name}[0]", "") for line in body])
            inner = [_INDENT + line.replace(f"{name}[0]", member) for line in body]
            return [f"for {member} in {name}:", *inner], period * count
    return None


def _singular(name: str, body: list[str]) -> str:
    """Return what a member of a list is called where the lines do not use the name."""
    used = {token for line in body for token in re.findall(r"\w+", line)}
    names = [name.removesuffix("s"), "layer", "member"] if name.endswith("s") else ["layer", "member"]
    return next((short for short in names if short not in used and short.isidentifier()), "each")


def broken(line: str, indent: int) -> list[str]:
    """Return a line of code, indented, as several where it is too long: one for each part between brackets."""
    space = " " * indent
    if len(space) + len(line) <= _WIDTH:
        return [space + line]
    split = _outermost(line)
    if split is None:
        return [space + line]
    head, parts, tail = split
    lines = [space + head]
    for part in parts:
        lines += broken(f"{part},", indent + 4)
    return [*lines, space + tail]


def _outermost(line: str) -> tuple[str, list[str], str] | None:
    """Return what is before, between and after the widest brackets that may end in a comma."""
    pairs, cuts = _brackets(line)
    for start, end in sorted(pairs, key=lambda pair: pair[0] - pair[1]):
        inner = [place for place in cuts.get(start, []) if start < place < end]
        if not _takes_comma(line, start, bool(inner)):
            continue
        places = [start, *inner, end]
        parts = [line[a + 1 : b].strip() for a, b in itertools.pairwise(places)]
        parts = [part for part in parts if part]
        if parts:
            return line[: start + 1], parts, line[end:]
    return None


def _takes_comma(line: str, start: int, several: bool) -> bool:
    """Return whether a comma before the closing bracket changes nothing: in calls, lists, dicts and tuples."""
    before = line[start - 1] if start else " "
    follows = before.isalnum() or before in "_)]"
    return follows or several if line[start] == "(" else line[start] == "{" or not follows


def _brackets(line: str) -> tuple[list[tuple[int, int]], dict[int, list[int]]]:
    """Return the places of brackets that belong together, and of the commas right inside, by the opening one."""
    pairs: list[tuple[int, int]] = []
    commas: dict[int, list[int]] = {}
    opened: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(line).readline):
        place = token.start[1]
        if token.type != tokenize.OP:
            continue
        if token.string in "([{":
            opened.append(place)
        elif token.string in ")]}":
            pairs.append((opened.pop(), place))
        elif token.string == "," and opened:
            commas.setdefault(opened[-1], []).append(place)
    return pairs, commas
