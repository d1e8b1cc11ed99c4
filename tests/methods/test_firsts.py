from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Unit
from understudy.methods.base import Problem
from understudy.methods.firsts import first_students
from understudy.methods.proposals import Scoring, offered_units
from understudy.testing.landscapes import ToyKind, toy_problem, toy_space

ANY = Widths(round_to=1, min_width=1)


def used_of(problem: Problem) -> Callable[[Architecture], float]:
    usage = Scoring(problem.reward).usage
    return lambda architecture: usage(problem.predict(architecture))


def macs_of(problem: Problem) -> Callable[[Architecture], float]:
    def macs(architecture: Architecture) -> float:
        cost = problem.predict(architecture)
        assert cost is not None
        return cost.macs

    return macs


def students_of(kind: ToyKind, params: str, start: Architecture | None = None) -> tuple[Problem, list[Architecture]]:
    problem = toy_problem(kind, params, widths=ANY)
    return problem, firsts(problem, start or problem.space.full)


def firsts(problem: Problem, start: Architecture) -> list[Architecture]:
    units = [unit.name for unit in offered_units(problem.space, "units")]
    return first_students(start, units, problem.widths, used=used_of(problem), macs=macs_of(problem))


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_they_are_of_several_depths_and_use_the_budget_up(kind: ToyKind) -> None:
    problem, students = students_of(kind, "20x")
    gone = [len(student.removed) for student in students]
    assert gone[0] == 0
    assert gone == sorted(set(gone))
    assert len(gone) == 5
    assert all(0.85 < used_of(problem)(student) <= 1.0 for student in students)


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_all_widths_of_one_are_alike(kind: ToyKind) -> None:
    problem, students = students_of(kind, "20x")
    for student in students:
        left = student.canonical().widths
        shares = [(width + slack) / problem.space.group(name).width for name, width in left for slack in (-0.51, 0.51)]
        assert max(shares[::2]) <= min(shares[1::2])  # one factor lies within half a channel of every width


def test_blocks_go_whole_evenly_over_the_network_and_pooling_stays() -> None:
    _, residual = students_of("residual", "20x")
    _, chain = students_of("chain", "20x")
    assert {residual[0].space.unit(name).kind for student in residual for name in student.removed} == {"block"}
    assert {chain[0].space.unit(name).kind for student in chain for name in student.removed} == {"conv"}
    blocks = [unit.name for unit in residual[0].space.units if unit.kind == "block"]
    places = [blocks.index(name) for name in sorted(residual[3].removed, key=blocks.index)]
    assert {after - before for before, after in pairwise(places)} == {2}  # every second one


def test_they_are_no_wider_and_no_deeper_than_the_start() -> None:
    problem = toy_problem("residual", "4x", widths=ANY)
    block = next(unit.name for unit in problem.space.units if unit.kind == "block")
    start = problem.space.architecture(removed=[block], widths={g.name: g.width // 2 for g in problem.space.groups})
    _, students = students_of("residual", "4x", start)
    assert students
    assert all(block in student.removed for student in students)
    assert all(width <= start.width(name) for student in students for name, width in student.widths)


def test_depths_that_no_width_brings_within_the_budget_are_left_out() -> None:
    problem = toy_problem("residual", "20x", widths=Widths(round_to=32, min_width=128))
    students = firsts(problem, problem.space.full)
    assert len(students) < 5
    assert all(used_of(problem)(student) <= 1.0 for student in students)


def test_where_macs_are_free_tapered_students_of_the_same_depths_follow() -> None:
    problem, places = toy_problem("residual", "20x", widths=ANY), range(len(toy_space("residual").groups))
    units = [unit.name for unit in offered_units(problem.space, "units")]

    def macs(architecture: Architecture) -> float:
        groups = architecture.space.groups
        return sum(architecture.width(groups[place].name) / 2.0**place for place in places)

    found = first_students(problem.space.full, units, ANY, used=used_of(problem), macs=macs)
    uniform, tapered = found[:5], found[5:]
    assert uniform == firsts(problem, problem.space.full)
    assert [student.removed for student in tapered] == [student.removed for student in uniform]
    assert all(0.85 < used_of(problem)(student) <= 1.0 for student in tapered)
    assert all(macs(student) > 1.2 * macs(other) for student, other in zip(tapered, uniform, strict=True))


def test_units_that_may_not_go_stay() -> None:
    problem = toy_problem("chain", "20x", widths=ANY)
    found = first_students(problem.space.full, [], ANY, used=used_of(problem), macs=macs_of(problem))
    assert [student.removed for student in found] == [set()]


def test_a_stage_of_alike_blocks_is_not_one_block() -> None:
    problem = toy_problem("residual", "20x", widths=ANY)
    space = problem.space
    blocks = [unit for unit in space.units if unit.kind == "block"]
    first = [unit for unit in blocks if unit.name.startswith(blocks[0].name.split(".")[0])]
    assert len(first) > 1
    stage = Unit(name="stage", kind="block", layers=tuple(layer for unit in first for layer in unit.layers))
    staged = replace(space, units=(stage, *space.units))
    units = [unit.name for unit in offered_units(staged, "units")]
    half: dict[str, Callable[[Architecture], float]] = {"used": lambda a: 0.5, "macs": lambda a: 1e6}
    found = first_students(staged.full, units, ANY, **half)
    expected = first_students(space.full, units[1:], ANY, **half)
    assert [student.removed for student in found] == [student.removed for student in expected]
    assert len(found) == 5
