from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from understudy.config.methods import N2N
from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Space
from understudy.methods.base import Problem
from understudy.methods.firsts import first_students
from understudy.methods.n2n.choices import Near, Removal, Shrinkage
from understudy.methods.n2n.policies import Policy, RemovalPolicy, ShrinkagePolicy
from understudy.methods.n2n.rules import TUNED
from understudy.methods.n2n.state import TYPES, encode, rows_of, teacher_rows
from understudy.methods.proposals import Scoring, offered_units
from understudy.testing.landscapes import ToyKind, toy_cost, toy_problem, toy_space

PLACELESS = replace(TUNED, harmonics=0)

# --- The state ---


def test_blocks_have_a_row_before_their_first_layer() -> None:
    space = toy_space("residual")
    rows, decided = teacher_rows(space, "units")
    blocks = [unit for unit in space.units if unit.kind == "block"]
    assert len(rows) == len(space.layers) + len(blocks)
    assert [row.name for row in rows if row.type != "block"] == [layer.name for layer in space.layers]
    at = {name: row for row, name in decided}
    for block in blocks:
        assert rows[at[block.name]].name == block.name
        assert rows[at[block.name] + 1].name == block.layers[0]
    assert at["stage0.0.conv1"] == at["stage0.0"] + 1


def test_single_layers_are_decided_at_their_own_rows() -> None:
    rows, decided = teacher_rows(toy_space("residual"), "layers")
    assert "block" not in {row.type for row in rows}
    assert all(rows[row].name + "!" == name for row, name in decided)


def test_rows_describe_what_is_left() -> None:
    space = toy_space("residual")
    architecture = space.architecture(
        removed=["stage0.1", "stage0.0.conv1"], widths={"stem.conv": 16}, kernels={"stage0.0.conv2": 1}
    )
    rows = {row.name: row for row in rows_of(architecture)}
    assert len(rows) == len(space.layers) - 6 - 3
    second = rows["stage0.0.conv2"]
    assert (second.outputs, second.kernel, second.padding, second.skip_start) == (16, 1, 0, 0)
    assert rows["stage0.2.conv2"].skip_start == 3
    assert rows["stage0.2.conv1"].outputs == 64


def test_scaled_rows_lie_in_range_and_do_not_depend_on_other_rows() -> None:
    rows, _ = teacher_rows(toy_space("residual"), "units")
    state_LI = encode(rows, PLACELESS)
    assert state_LI.shape == (len(rows), len(TYPES) + 6)
    assert state_LI.min() >= 0.0 and state_LI.max() <= 1.0
    assert torch.equal(encode(rows[:5], PLACELESS), state_LI[:5])


def test_places_differ_within_a_network_and_agree_between_depths() -> None:
    rows, _ = teacher_rows(toy_space(), "units")
    short_LI, long_LI = encode(rows[:9], TUNED)[:, -12:], encode(rows[:27], TUNED)[:, -12:]
    assert len({tuple(row) for row in long_LI.tolist()}) == 27
    torch.testing.assert_close(short_LI, long_LI[1::3])  # the middle third of each row's stretch of depth


# --- The policies ---


def small(kind: ToyKind, kernels: bool = True) -> Space:
    """A Space with few decisions."""
    space = toy_space(kind)
    layers = tuple(x if kernels else replace(x, kernels=()) for x in space.layers[:15])
    names = {layer.name for layer in layers}
    units = (u for u in offered_units(space, "units") if names.issuperset(u.layers))
    return replace(space, layers=layers, units=tuple(units), groups=tuple(g for g in space.groups if g.name in names))


def policies() -> list[tuple[Policy, int, int]]:
    """Each policy with random weights, its D and its number of choices."""
    made: list[tuple[Policy, int, int]] = []
    removal = Removal(small("residual"), N2N())
    made.append((removal.policy, removal.decisions, 2))
    widths = Widths(factors=(0.25, 0.5, 1.0))  # so that no two factors mean the same
    shrinkage = Shrinkage(small("chain", kernels=False).full, N2N(revisit=0.0), widths)
    made.append((shrinkage.policy, shrinkage.decisions, 3))
    for policy, _, _ in made:
        generator = torch.Generator().manual_seed(1)
        for parameter in policy.parameters():
            torch.nn.init.uniform_(parameter, -0.7, 0.7, generator=generator)
    return made


@pytest.mark.parametrize("number", range(2))
def test_probabilities_of_all_choices_sum_to_one_and_give_the_entropy(number: int) -> None:
    policy, decisions, choices = policies()[number]
    all_BD = torch.tensor(list(itertools.product(range(choices), repeat=decisions)))
    logs_BD, entropy_BD = policy.judge(all_BD)
    p_B = logs_BD.sum(1).exp()
    assert p_B.sum().item() == pytest.approx(1.0)
    assert (p_B @ entropy_BD.sum(1)).item() == pytest.approx(-(p_B @ logs_BD.sum(1)).item())


@pytest.mark.parametrize("number", range(2))
def test_draws_follow_the_probabilities(number: int) -> None:
    policy, decisions, choices = policies()[number]
    uniform_BD = torch.rand(40, decisions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn_BD = policy.sample(uniform_BD)
    assert len({tuple(row) for row in drawn_BD.tolist()}) > 5
    for decision in range(decisions):
        p_CB = []
        for choice in range(choices):  # given the same choices before
            other_BD = drawn_BD.clone()
            other_BD[:, decision] = choice
            p_CB.append(policy.judge(other_BD)[0][:, decision].exp())
        # 1 is drawn below the probability to keep; a factor, where the sum up to it is passed.
        order = [1, 0] if choices == 2 else list(range(choices))
        below_CB = torch.stack([p_CB[choice] for choice in order]).cumsum(0)
        expected_B = (uniform_BD[:, decision] >= below_CB[:-1]).sum(0)
        assert torch.equal(torch.tensor(order)[expected_B], drawn_BD[:, decision])


def test_the_removal_policy_reads_ahead() -> None:
    rows_LI = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    changed_LI = rows_LI.clone()
    changed_LI[5] += 1.0
    logs = []
    for state_LI in (rows_LI, changed_LI):
        policy = RemovalPolicy(state_LI, [0, 3])
        for parameter in policy.parameters():
            torch.nn.init.uniform_(parameter, -0.7, 0.7, generator=torch.Generator().manual_seed(1))
        logs.append(policy.judge(torch.ones(1, 2, dtype=torch.int64))[0])
    assert not torch.equal(*logs)


def test_factors_of_the_same_value_share_their_probability() -> None:
    shares_DF = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.1, 0.2, 0.9, 1.0]], dtype=torch.float64)
    policy = ShrinkagePolicy(torch.zeros(2, 3, dtype=torch.float64), shares_DF, (0.1, 0.2, 0.9, 1.0))
    policy.draw_weights(torch.Generator().manual_seed(0))
    logs_BD, entropy_BD = policy.judge(torch.tensor([[0, 0], [3, 3]]))
    torch.testing.assert_close(logs_BD[0].exp(), torch.tensor([0.5, 0.25], dtype=torch.float64))
    torch.testing.assert_close(entropy_BD[0].exp(), torch.tensor([2.0, 4.0], dtype=torch.float64))


# --- What choices mean ---


def test_what_is_inside_a_removed_block_does_not_count() -> None:
    removal = Removal(toy_space("residual"), N2N())
    names = [name for _, name in teacher_rows(toy_space("residual"), "units")[1]]
    choices_BD = torch.ones(2, removal.decisions, dtype=torch.int64)
    choices_BD[0, names.index("stage1.1")] = 0
    counts_BD = removal.counts(choices_BD)
    assert [names[d] for d in (counts_BD[0] == 0).nonzero()[:, 0].tolist()] == ["stage1.1.conv1"]
    assert counts_BD[1].all()


def test_mended_removals_take_away_the_largest_units_and_no_more() -> None:
    space = toy_space()
    removal, most = Removal(space, N2N()), toy_cost(space.full).parameters / 5
    keep_D = torch.ones(removal.decisions, dtype=torch.int64)
    architecture = removal.architecture(removal.repaired(keep_D, lambda a: toy_cost(a).parameters / most))
    assert toy_cost(architecture).parameters <= most
    size = {unit.name: sum(space.layer(x).parameters for x in unit.layers) for unit in offered_units(space, "units")}
    left = [size[name] for name in size if name not in architecture.removed]
    assert min(size[name] for name in architecture.removed) >= max(left)
    smallest = min(architecture.removed, key=size.__getitem__)
    assert toy_cost(space.architecture(removed=architecture.removed - {smallest})).parameters > most


def test_a_mended_removal_puts_back_what_costs_more_when_it_is_gone() -> None:
    space, removal = toy_space(), Removal(toy_space(), N2N())
    pools = {unit.name for unit in space.units if unit.kind == "pool"}
    none_D = torch.zeros(removal.decisions, dtype=torch.int64)
    mended_D = removal.repaired(none_D, lambda a: 1.0 + len(pools & a.removed) - (len(a.removed) < 5))
    assert not pools & removal.architecture(mended_D).removed


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_mended_widths_give_way_in_turn_until_the_budget_is_kept(share: float) -> None:
    space = toy_space("residual")
    shrinkage, most = Shrinkage(space.full, N2N(), Widths()), share * toy_cost(space.full).parameters

    def used(architecture: Architecture) -> float:
        return toy_cost(architecture).parameters / most

    full_D = torch.full((shrinkage.decisions,), 9)
    mended_D = shrinkage.repaired(full_D, used)
    assert 0.7 < used(shrinkage.architecture(mended_D)) <= 1.0
    kinds = [kind for kind, _ in shrinkage.names]
    widths = [choice for choice, kind in zip(mended_D.tolist(), kinds, strict=True) if kind == "width"]
    others = [choice for choice, kind in zip(mended_D.tolist(), kinds, strict=True) if kind != "width"]
    assert max(widths) - min(widths) <= 1
    assert set(others) == {9}  # widths reach these budgets alone
    assert torch.equal(shrinkage.repaired(mended_D, used), mended_D)


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_filled_widths_use_the_budget_up_and_leave_units_and_kernels(kind: ToyKind) -> None:
    space = toy_space(kind)
    shrinkage, most = Shrinkage(space.full, N2N(), Widths()), toy_cost(space.full).parameters / 20
    shrinkage.policy.start(torch.Generator().manual_seed(0), None)
    shrinkage.policy.set_bias(-12.0)
    uniform_BD = torch.rand(8, shrinkage.decisions, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def used(architecture: Architecture) -> float:
        return toy_cost(architecture).parameters / most

    for choices_D in shrinkage.policy.sample(uniform_BD):
        before = shrinkage.architecture(choices_D)
        after = shrinkage.filled(choices_D, used)
        assert (after.removed, after.kernels) == (before.removed, before.kernels)
        assert used(before) < used(after) <= 1.0
        assert used(after) > 0.75
        assert all(after.width(group.name) >= before.width(group.name) for group in space.groups)
        assert shrinkage.filled(choices_D, lambda a: 0.0) == before  # without a budget there is nothing to fill


def test_the_width_of_channels_that_no_layer_emits_alone_is_decided_too() -> None:
    space = toy_space("residual")
    group = next(layer.group for layer in space.layers if layer.group)
    joined = replace(space, layers=tuple(replace(x, group=None) if x.group == group else x for x in space.layers))
    found = {
        of: {name for kind, name in Shrinkage(of.full, N2N(), Widths()).names if kind == "width"}
        for of in (space, joined)
    }
    assert found[joined] == found[space] == {group.name for group in space.groups}


@pytest.mark.parametrize("choice", [0, 4, 9])
def test_filled_widths_that_are_alike_are_the_widest_uniform_ones(choice: int) -> None:
    problem = toy_problem("residual", "20x", widths=Widths(round_to=1, min_width=1))
    shrinkage = Shrinkage(problem.space.full, N2N(), problem.widths)
    choices_D = torch.tensor([choice if kind == "width" else 9 for kind, _ in shrinkage.names])
    used = used_of(problem)
    found = shrinkage.filled(choices_D, used)
    expected = first_students(problem.space.full, [], problem.widths, used=used, macs=used)[0]
    gap = [abs(found.width(group.name) - expected.width(group.name)) for group in problem.space.groups]
    assert used(found) <= 1.0
    assert max(gap) <= 1  # where the bisection ends


def test_near_a_student_what_is_kept_stays_as_it_is_but_for_one_factor_that_uses_the_budget_up() -> None:
    problem = toy_problem("residual", "20x", widths=Widths(round_to=1, min_width=1))
    shrinkage, used = Shrinkage(problem.space.full, N2N(), problem.widths), used_of(problem)
    student = first_students(problem.space.full, [], problem.widths, used=used, macs=used)[0]
    odd = student.with_widths({group.name: student.width(group.name) // 2 for group in problem.space.groups[::2]})
    choices_D = torch.tensor([0 if kind == "width" else 9 for kind, _ in shrinkage.names])
    kept_D = torch.ones(shrinkage.decisions, dtype=torch.bool)
    again = shrinkage.filled(choices_D, used, Near(student, kept_D))
    gap = [abs(again.width(group.name) - student.width(group.name)) for group in problem.space.groups]
    assert max(gap) <= 1  # where the bisection ends
    wider = shrinkage.filled(choices_D, used, Near(odd, kept_D))
    ratios = [wider.width(group.name) / odd.width(group.name) for group in problem.space.groups]
    assert min(ratios) > 1.0 and max(ratios) < 1.2 * min(ratios)
    changed = next(place for place, (kind, _) in enumerate(shrinkage.names) if kind == "width")
    kept_D[changed] = False
    other = shrinkage.filled(choices_D, used, Near(student, kept_D))
    narrow = [g.name for g in problem.space.groups if other.width(g.name) < student.width(g.name)]
    assert narrow == [shrinkage.names[changed][1]]  # its own choice is the least factor
    assert 0.85 < used(other) <= 1.0


def used_of(problem: Problem) -> Callable[[Architecture], float]:
    usage = Scoring(problem.reward).usage
    return lambda architecture: usage(problem.predict(architecture))


def test_calibration_to_a_budget_makes_stage_two_narrower_and_removes_no_more_units() -> None:
    shrinkage = Shrinkage(toy_space().full, N2N(revisit=0.1), Widths())
    shrinkage.policy.start(torch.Generator().manual_seed(0), None)
    uniform_BD = torch.rand(200, shrinkage.decisions, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    removed, parameters = [], []
    for bias in (0.0, -6.0):
        shrinkage.policy.set_bias(bias)
        drawn = [shrinkage.architecture(choices_D) for choices_D in shrinkage.policy.sample(uniform_BD)]
        removed.append([a.removed for a in drawn])
        parameters.append(statistics.fmean(toy_cost(a).parameters for a in drawn))
    assert removed[0] == removed[1]
    assert 0.05 < statistics.fmean(map(len, removed[0])) / len(offered_units(toy_space(), "units")) < 0.15
    assert parameters[1] < parameters[0] / 4


def test_draws_remove_units_at_chances_of_their_own() -> None:
    shrinkage = Shrinkage(toy_space("residual").full, N2N(revisit=0.2), Widths())
    shrinkage.policy.start(torch.Generator().manual_seed(0), None)
    generator = torch.Generator().manual_seed(1)
    uniform_BD = torch.rand(1000, shrinkage.decisions, generator=generator, dtype=torch.float64)
    spread_BD = shrinkage.spread(uniform_BD, generator)
    units = [kind == "unit" for kind, _ in shrinkage.names]
    scale_BD = spread_BD / uniform_BD
    assert torch.all(scale_BD[:, ~torch.tensor(units)] == 1.0)
    scale_BU = scale_BD[:, units]
    assert torch.allclose(scale_BU, scale_BU[:, :1].expand_as(scale_BU))
    assert 1 / 3 <= scale_BU.min() < 0.34 and 2.9 < scale_BU.max() <= 3.0
    assert abs(scale_BU.log().mean()) < 0.05  # as often more as less
    # The first seven factors stand for removed.
    at_one, at_own = (
        (shrinkage.policy.sample(numbers_BD)[:, units] < 7).double().mean(1) for numbers_BD in (uniform_BD, spread_BD)
    )
    assert abs(at_one.mean() - 0.2) < 0.01
    assert at_own.std() > 1.5 * at_one.std()


def test_choices_that_change_nothing_do_not_count() -> None:
    space = toy_space("residual")
    shrinkage = Shrinkage(space.full, N2N(), Widths())
    choices_BD = torch.full((2, shrinkage.decisions), 9)
    choices_BD[0, shrinkage.names.index(("unit", "stage1.1"))] = 0
    counts_BD = shrinkage.counts(choices_BD)
    assert {name for name, counts in zip(shrinkage.names, counts_BD[0], strict=True) if not counts} == {
        *(("unit", "stage1.1.conv1"), ("width", "stage1.1.conv1")),
        *(("kernel", "stage1.1.conv1"), ("kernel", "stage1.1.conv2")),
    }
    assert counts_BD[1].all()
    assert shrinkage.architecture(choices_BD[1]) == space.full


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_a_choice_counts_exactly_if_another_gives_another_student(kind: ToyKind) -> None:
    shrinkage = Shrinkage(toy_space(kind).full, N2N(), Widths())
    for unit in range(shrinkage.decisions):
        if shrinkage.names[unit][0] != "unit":
            continue
        choices_D = torch.full((shrinkage.decisions,), 9)
        choices_D[unit] = 0
        here, counts_BD = shrinkage.architecture(choices_D), shrinkage.counts(choices_D[None])
        for decision in range(shrinkage.decisions):
            other_D = choices_D.clone()
            other_D[decision] = 9 - int(choices_D[decision])
            changes = shrinkage.architecture(other_D) != here
            assert bool(counts_BD[0, decision]) is changes, (shrinkage.names[unit], shrinkage.names[decision])
