from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from understudy.core.architecture import Architecture, Frozen, Group, Layer, Refused, Space, Unit, weighted_layers
from understudy.core.errors import ArchitectureError
from understudy.testing.landscapes import toy_space

SPACE = Space(
    layers=(
        Layer(name="a", type="conv", kernel=5, padding=2, outputs=16, kernels=(1, 3, 5)),
        Layer(name="b", type="conv", kernel=3, padding=1, outputs=16),
        Layer(name="c", type="conv", kernel=3, padding=1, outputs=24),
    ),
    groups=(
        Group(name="a", width=16, layers=("a", "b")),
        Group(name="b", width=16, layers=("b", "c")),
        Group(name="c", width=24, step=4, layers=("c",)),
    ),
    units=(
        Unit(name="block", kind="block", layers=("b", "c")),
        Unit(name="b", kind="conv", layers=("b",)),
        Unit(name="c", kind="conv", layers=("c",)),
    ),
    frozen=(Frozen(name="head", width=10, reason="it is an output"),),
)


def test_keeps_the_teacher_where_nothing_is_decided() -> None:
    assert SPACE.full.width("a") == 16
    assert SPACE.full.kernel("a") == 5
    assert SPACE.full.removed == frozenset()


def test_changes_make_new_values() -> None:
    smaller = SPACE.full.with_width("a", 8).with_kernel("a", 3).without("b")
    assert (smaller.width("a"), smaller.kernel("a"), smaller.removed) == (8, 3, frozenset({"b"}))
    assert SPACE.full.width("a") == 16
    assert smaller.with_width("a", 16).width("a") == 16


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ({"widths": {"a": 0}}, "width of group 'a' must be in 1..16, but got 0"),
        ({"widths": {"a": 17}}, "width of group 'a' must be in 1..16, but got 17"),
        ({"widths": {"aa": 8}}, r"no group 'aa' \(did you mean 'a'\?\)"),
        ({"kernels": {"zz": 3}}, "no layer 'zz'"),
        ({"widths": {"c": 6}}, "must be in 4..24, a multiple of 4, but got 6"),
        ({"kernels": {"a": 2}}, r"kernel of layer 'a' must be one of \(1, 3, 5\), but got 2"),
        ({"kernels": {"b": 1}}, r"kernel of layer 'b' must be one of \(3,\), but got 1"),
        ({"removed": ["blok"]}, r"no unit 'blok' \(did you mean 'block'\?\)"),
        ({"channels": {"c": [6]}}, "channels of group 'c' must be at least one of 0..5"),
        ({"channels": {"c": []}}, "channels of group 'c' must be at least one of 0..5"),
    ],
)
def test_rejects_what_the_space_does_not_allow(decisions: dict[str, object], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        SPACE.architecture(**decisions)


def test_a_space_is_named_by_what_it_allows_not_by_where_the_code_stands() -> None:
    frozen = Frozen(name="a", width=8, reason="no rule", source="model.py:9: x + y")
    here = replace(SPACE, frozen=(frozen,), refused=(Refused(kind="unit", name="b", reason="differs by 0.1"),))
    there = replace(
        here,
        frozen=(replace(frozen, source="net.py:12: x + y"),),
        refused=(Refused(kind="unit", name="b", reason="differs by 0.2"),),
    )
    assert here.digest == there.digest != SPACE.digest
    assert replace(here, frozen=(replace(frozen, width=9),)).digest != here.digest


def test_one_digest_for_one_student() -> None:
    plain = SPACE.architecture(removed=["block"])
    noisy = SPACE.architecture(removed=["block", "b"], widths={"b": 4, "c": 24, "a": 16}, kernels={"a": 5})
    assert noisy == plain
    assert noisy.digest == plain.digest
    assert SPACE.full.digest != plain.digest


def test_two_units_with_the_same_layers_both_count() -> None:
    twin = Space(layers=SPACE.layers, groups=(), units=(*SPACE.units[1:], Unit(name="d", kind="conv", layers=("b",))))
    assert twin.architecture(removed=["b", "d"]).removed == {"b", "d"}


def test_channels_decide_the_width() -> None:
    chosen = SPACE.architecture(channels={"c": [3, 1, 1]})
    assert chosen.width("c") == 8
    assert dict(chosen.channels) == {"c": (1, 3)}
    assert chosen.with_width("c", 12).channels == ()


def test_json_both_ways_and_only_for_its_space() -> None:
    chosen = SPACE.architecture(removed=["b"], widths={"a": 8}, kernels={"a": 3}, channels={"c": [0, 2]})
    assert Architecture.from_json(SPACE, chosen.to_json()) == chosen
    space = Space.from_json(SPACE.to_json())
    assert space == SPACE
    other = Space(layers=SPACE.layers, groups=SPACE.groups, units=())
    with pytest.raises(ArchitectureError, match=f"made for Space {SPACE.digest}, but this teacher's is {other.digest}"):
        Architecture.from_json(other, chosen.to_json())


ALTERED = SPACE.to_json().replace('"width": 16', '"width": "16"', 1)


@pytest.mark.parametrize("text", ["hello", "[1]", "{}", '{"space": "0"}', SPACE.to_json()[:99], ALTERED, None, 3, [[]]])
def test_what_is_no_architecture_and_no_space_is_refused(text: Any) -> None:
    with pytest.raises(ArchitectureError, match="must be what to_json wrote, but got"):
        Architecture.from_json(SPACE, text)
    with pytest.raises(ArchitectureError, match="a Space must be what to_json wrote, but got"):
        Space.from_json(text)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SPACE.architecture(removed="b"), r"removed must be a list, but got 'b': write \['b'\]"),
        (lambda: SPACE.architecture(removed=3), "removed must be a list, but got an int"),  # type: ignore[arg-type]
        (lambda: SPACE.architecture(removed=[3]), "removed must be names, but got an int"),  # type: ignore[list-item]
        (lambda: SPACE.architecture(widths=[8]), "widths must be a dict, by name, but got a list"),  # type: ignore[arg-type]
        (lambda: SPACE.architecture(widths={3: 8}), "the keys of widths must be names"),  # type: ignore[dict-item]
        (lambda: SPACE.architecture(widths={"a": 8.0}), "widths of 'a' must be a whole number, but got 8.0"),  # type: ignore[dict-item]
        (lambda: SPACE.architecture(channels={"c": None}), "channels of group 'c' must be a list"),  # type: ignore[dict-item]
        (lambda: SPACE.architecture(channels={"c": [1.5]}), "must be a whole number, but got 1.5"),  # type: ignore[list-item]
        (lambda: SPACE.full.with_width("a", None), "must be a whole number, but got None"),  # type: ignore[arg-type]
        (lambda: SPACE.full.with_width([], 8), r"no group \[\]"),  # type: ignore[arg-type]
        (lambda: SPACE.full.width({}), "no group {}"),  # type: ignore[arg-type]
        (lambda: SPACE.full.with_kernel("a", True), "must be a whole number, but got True"),
        (lambda: SPACE.full.without(None), "removed must be names, but got None"),  # type: ignore[arg-type]
        (lambda: SPACE.without([SPACE]), "must be a Refused, as those of a Proof, but got a Space"),  # type: ignore[list-item]
        (lambda: SPACE.check_own("a"), "an architecture must be one of the Space, .* but got 'a'"),  # type: ignore[arg-type]
        (lambda: Architecture(space=None), "must be of a Space, .* but got None"),  # type: ignore[arg-type]
        (lambda: Architecture(space=SPACE, widths={"a": 8}), r"must be made by Space.architecture\("),  # type: ignore[arg-type]
    ],
)
def test_what_is_of_another_kind_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        call()


def test_whole_numbers_of_numpy_are_as_good() -> None:
    chosen = SPACE.architecture(widths={"a": np.int64(8)}, channels={"c": np.array([2, 0])})  # type: ignore[dict-item]
    assert chosen == SPACE.architecture(widths={"a": 8}, channels={"c": [0, 2]})
    assert Architecture.from_json(SPACE, chosen.to_json()) == chosen


def test_pickles() -> None:
    chosen = SPACE.architecture(widths={"a": 8})
    assert pickle.loads(pickle.dumps(chosen)) == chosen  # our own bytes, made a line above


def test_legal_widths() -> None:
    group = Group(name="g", width=30, step=2)
    assert group.legal_widths(round_to=8) == (8, 16, 24, 30)
    assert group.legal_widths(round_to=8, minimum=10) == (16, 24, 30)
    assert group.legal_widths()[:3] == (2, 4, 6)
    assert group.nearest(12.0, round_to=8) == 16
    assert group.nearest(1.0, round_to=8) == 8
    assert Group(name="small", width=4).legal_widths(round_to=8) == (4,)


@pytest.mark.parametrize(("width", "step", "least"), [(30, 2, 1), (7, 1, 3), (48, 3, 10), (4, 4, 1)])
@pytest.mark.parametrize(("round_to", "minimum"), [(1, 1), (4, 6), (8, 8)])
def test_the_nearest_legal_width_is_that_of_a_scan(
    width: int, step: int, least: int, round_to: int, minimum: int
) -> None:
    group = Group(name="g", width=width, step=step, least=least)
    floor = max(minimum, least)
    legal = [w for w in range(step, width, step) if w % round_to == 0 and w >= floor] + [width]
    assert group.legal_widths(round_to=round_to, minimum=minimum) == tuple(legal)
    for asked in (half / 2 for half in range(-4, 2 * width + 9)):
        near = min(legal, key=lambda w: (abs(w - asked), -w))
        assert group.nearest(asked, round_to=round_to, minimum=minimum) == near


def test_layers_that_were_removed_do_not_count() -> None:
    space = toy_space("residual")
    assert weighted_layers(space.full) - weighted_layers(space.full.without("stage1.1")) == 2


def test_a_group_has_a_least_width() -> None:
    group = Group(name="varied", width=12, step=2, least=4)
    assert group.legal_widths()[:2] == (4, 6) and group.nearest(1) == 4
    space = Space(layers=(), groups=(group,), units=())
    assert Space.from_json(space.to_json()) == space
    assert space.digest != Space(layers=(), groups=(Group(name="varied", width=12, step=2),), units=()).digest
    with pytest.raises(ArchitectureError, match=r"must be in 4\.\.12, a multiple of 2, but got 2"):
        space.architecture(widths={"varied": 2})
    with pytest.raises(ArchitectureError, match=r"must be at least 2 of 0\.\.5, but got \[3\]"):
        space.architecture(channels={"varied": [3]})
