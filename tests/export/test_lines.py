from __future__ import annotations

import ast

import pytest

from understudy.export.lines import broken, looped, merged

SHARED = ["x = self.conv(x)", "x = F.dropout(x, training=False)", "return x"]


def test_flags_that_follow_the_mode() -> None:
    training = [line.replace("False", "True") for line in SHARED]
    assert merged(SHARED, training) == [SHARED[0], "x = F.dropout(x, training=self.training)", SHARED[2]]
    assert merged(training, SHARED)[1] == "x = F.dropout(x, training=not self.training)"
    assert merged(SHARED, SHARED) == SHARED


def test_lines_of_one_mode() -> None:
    more = [SHARED[0], "self.steps.add_(1)", *SHARED[1:]]
    assert merged(SHARED, more)[1:3] == ["if self.training:", "    self.steps.add_(1)"]
    assert merged(more, SHARED)[1:3] == ["if not self.training:", "    self.steps.add_(1)"]
    assert merged(["return x"], ["return x, y"]) == [
        "if self.training:",
        "    return x, y",
        "else:",
        "    return x",
    ]


def test_repeats_over_a_whole_list_become_a_loop() -> None:
    lines = [line for i in range(3) for line in (f"x = self.blocks[{i}](x)", f"x = x + self.norms[{i}](x)")]
    alone = [f"x = self.blocks[{i}](x)" for i in range(3)]
    assert looped([*alone, "return x"], {"self.blocks": 3}) == [
        "for block in self.blocks:",
        "    x = block(x)",
        "return x",
    ]
    assert looped(alone, {"self.blocks": 4}) == alone  # not all of them
    assert looped(lines, {"self.blocks": 3}) == lines  # two lists
    twice = [line for i in range(2) for line in (f"y = self.blocks[{i}](x)", "x = x + y")]
    assert looped(twice, {"self.blocks": 2}) == ["for block in self.blocks:", "    y = block(x)", "    x = x + y"]


def test_a_loop_does_not_hide_a_name() -> None:
    lines = [f"x = self.layers[{i}](x, layer)" for i in range(2)]
    assert looped(lines, {"self.layers": 2})[0] == "for member in self.layers:"


LONG = "self.branch_of_a_very_long_name(input_of_a_long_name, another_input_of_a_long_name)"


@pytest.mark.parametrize(
    "line",
    [
        f"x = torch.cat([{LONG}, {LONG}], dim=1)",
        f"x = ({LONG} + {LONG}) * 2",
        f"x[{LONG}, 0] = {LONG}",
        f"return {LONG}, {LONG}",
        f'x = call("(", {LONG}, {LONG})',
        f"x = {LONG}[0, 1] + nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), {LONG})",
    ],
)
def test_broken_lines_mean_the_same(line: str) -> None:
    lines = broken(line, 0)
    assert len(lines) > 1
    text = f"def f():\n    {line}\n"
    again = "def f():\n" + "\n".join("    " + part for part in lines) + "\n"
    assert ast.dump(ast.parse(again)) == ast.dump(ast.parse(text))


def test_short_lines_stay() -> None:
    assert broken("x = f(a, b)", 8) == ["        x = f(a, b)"]
