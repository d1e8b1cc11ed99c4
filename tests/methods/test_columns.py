from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.support.models import zoo_analysis
from understudy.config.methods import RandomSearch
from understudy.config.widths import Widths
from understudy.core.architecture import Group
from understudy.methods.baselines.random import RandomSearcher
from understudy.methods.surrogate.columns import CHANGING, Columns
from understudy.testing.landscapes import ToyKind, toy_cost, toy_problem, toy_space


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_choices_and_back(kind: ToyKind) -> None:
    space = toy_space(kind)
    columns = Columns(space, Widths())
    random = RandomSearcher(toy_problem(space, seed=1), RandomSearch())
    for _ in range(50):
        architecture = random.drawn()
        assert columns.architecture(columns.choices(architecture)) == architecture
    assert columns.architecture(columns.choices(space.full)) == space.full


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_canonical_choices_are_equal_exactly_for_equal_students(kind: ToyKind) -> None:
    space = toy_space(kind)
    columns = Columns(space, Widths())
    drawn_BD = columns.near(columns.sample(150, generator()), 5.0, generator(1))
    raw_BD = torch.where(columns.matter(drawn_BD), drawn_BD, 0)  # what does not matter says something else
    assert not torch.equal(raw_BD, drawn_BD)
    for choices_D, raw_D in zip(drawn_BD, raw_BD, strict=True):
        assert columns.architecture(choices_D) == columns.architecture(raw_D)
        assert torch.equal(columns.choices(columns.architecture(raw_D)), choices_D)
    assert torch.equal(columns.canonical(raw_BD), drawn_BD)


def test_a_column_for_each_layer_that_counts_and_all_parameters_in_them() -> None:
    space = toy_space("residual")
    columns = Columns(space, Widths())
    types = {row.type for row in columns.rows}
    assert types == {"block", "conv", "pool", "linear"}
    assert columns.share_L.sum().item() == pytest.approx(1.0)
    assert sum(row.parameters for row in columns.rows) == toy_cost(space.full).parameters
    for (kind, name), column in zip(columns.names, columns.at, strict=True):
        layers = space.group(name).layers if kind == "width" else (name,)
        assert columns.rows[column].name in layers


def test_the_matrix_says_what_changes_and_where() -> None:
    space = toy_space()
    columns = Columns(space, Widths())
    smaller = space.full.without("features.1").with_width("features.3", 16).with_kernel("features.4", 1)
    full_IL, less_IL = columns.matrix(torch.stack([columns.choices(a) for a in (space.full, smaller)]))
    assert full_IL.shape == (columns.entries, len(columns.rows))
    names = [row.name for row in columns.rows]
    changed = {names[i]: (full_IL[:, i] != less_IL[:, i]).nonzero()[:, 0].tolist() for i in range(len(names))}
    kept, width, kernel, log_width, arriving, _ = range(columns.entries - len(CHANGING), columns.entries)
    assert {name: entries for name, entries in changed.items() if entries} == {
        "features.1": [kept, width, kernel, log_width],
        "features.3": [width, log_width],
        "features.4": [kernel, arriving],
    }


def test_what_arrives_is_what_the_last_layer_left_emits() -> None:
    space = toy_space()
    columns = Columns(space, Widths())
    names = [row.name for row in columns.rows]
    narrow = space.full.with_width("features.1", 16)
    without = narrow.without("features.3", "features.pool2")
    for architecture, reader, share, larger in (
        (narrow, "features.3", 16 / 64, 0.0),
        (without, "features.4", 16 / 128, 1.0),  # 16 channels where 128 were, of images twice as large
    ):
        *_, arriving, size = columns.matrix(columns.choices(architecture)[None])[0, :, names.index(reader)].tolist()
        assert arriving == pytest.approx(1.0 + math.log(share) / 2.0)
        assert size == larger


@pytest.mark.parametrize("name", ["vgg11", "resnet20"])
def test_choices_of_real_networks_come_back(name: str) -> None:
    """There a group's layers are those that read it as well, which stay where the one that emits it goes."""
    columns = Columns(zoo_analysis(name).space, Widths(min_width=1, round_to=1))
    for choices_D in columns.sample(100, generator()):
        assert torch.equal(columns.choices(columns.architecture(choices_D)), choices_D)


def test_samples_are_legal_and_of_all_sizes() -> None:
    space = toy_space()
    columns = Columns(space, Widths(round_to=16, min_width=32))
    shares = []
    for choices_D in columns.sample(200, generator()):
        architecture = columns.architecture(choices_D)
        assert all(width % 16 == 0 and width >= 32 for _, width in architecture.widths)
        shares.append(toy_cost(architecture).parameters / toy_cost(space.full).parameters)
    assert min(shares) < 0.02 and max(shares) > 0.5
    assert columns.legal_DK.gather(1, columns.sample(50, generator(1)).T).all()


def test_near_ones_differ_in_about_as_many_decisions() -> None:
    columns = Columns(replace(toy_space(), units=()), Widths())
    start_BD = columns.last_D.expand(400, -1)
    differ_B = (columns.near(start_BD, 4.0, generator()) != start_BD).sum(1).double()
    redrawn = 1.0 - (1.0 / columns.legal_DK.sum(1)).mean().item()  # a decision can be drawn as it was
    assert differ_B.mean().item() == pytest.approx(4.0 * redrawn, rel=0.15)


def test_groups_that_no_layer_is_named_after_are_decided_too() -> None:
    space = toy_space()
    layers = tuple(replace(layer, group=None) if layer.group == "features.3" else layer for layer in space.layers)
    space = replace(space, layers=layers)
    columns = Columns(space, Widths())
    narrow = space.architecture(widths={"features.3": space.group("features.3").nearest(64.0)})
    assert columns.architecture(columns.choices(narrow)).width("features.3") in (64, 72)
    assert columns.rows[columns.at[columns.names.index(("width", "features.3"))]].name == "features.3"


def test_a_space_without_decisions() -> None:
    space = replace(toy_space(), units=(), groups=tuple[Group, ...]())
    space = replace(space, layers=tuple(replace(layer, group=None, kernels=()) for layer in space.layers))
    columns = Columns(space, Widths())
    assert columns.sample(3, generator()).shape == (3, 0)
    assert columns.architecture(columns.choices(space.full)) == space.full
