from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.models import images
from understudy.core.errors import SurgeryError
from understudy.cost.predict import predict
from understudy.graph.analysis import analyse
from understudy.graph.channels import Labelled
from understudy.graph.refit import Refit
from understudy.proof.prove import prove
from understudy.proof.trial import Trials
from understudy.surgery.build import build

LAYERS = 12


class Dense(nn.Module):
    """Joins to its input, layer after layer, what a convolution makes of it: without one, the input twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8 + 4 * LAYERS, 2, 1)
        self.layers = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x)


def test_copies_of_copies_are_refused_before_they_fill_the_memory() -> None:
    analysis = analyse(Dense(), images(1, size=4))
    units = [f"layers.{i}" for i in range(LAYERS)]
    refused, grows = 0, list[bool]()
    for count in range(LAYERS + 1):
        refit = Refit(analysis.groups, frozenset(units[LAYERS - count :]))
        widest = (8 + 4 * (LAYERS - count)) * 2**count  # each doubles what came before it, instead of adding four
        if widest > 400 * analysis.groups.slots:
            refused += 1
            with pytest.raises(SurgeryError, match="channels can be joined, but got"):
                refit.run()
        else:
            values = refit.run().values.values()
            grows.append(refit.grows)
            assert max(value.labels.size for value in values if isinstance(value, Labelled)) == widest
    assert 0 < refused < LAYERS
    assert not grows[0] and grows[-1] and grows == sorted(grows)  # the last layers take more weights with them


def test_what_no_removal_reaches_is_the_teachers() -> None:
    analysis = analyse(Dense(), images(1, size=4))
    plan = analysis.refit(analysis.space.full).plan
    assert all(plan.values[node] is value for node, value in analysis.groups.plan.values.items())
    with pytest.raises(SurgeryError, match=r"torch\.cat"):
        Refit(analysis.groups, frozenset(f"layers.{i}" for i in range(LAYERS))).run()


class Joined(nn.Module):
    """A grouped convolution of as many inputs as `wider` makes."""

    def __init__(self, outputs: int, groups: int) -> None:
        super().__init__()
        self.stem, self.wider, self.beside = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1)
        self.grouped, self.head = nn.Conv2d(20, outputs, 1, groups=groups), nn.Conv2d(outputs, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wider(self.stem(x))
        return self.head(self.grouped(torch.cat([self.beside(x), x], 1)))


def test_a_removal_that_leaves_no_whole_groups_is_not_offered() -> None:
    analysis = analyse(Joined(10, 5), images(2, size=4))
    assert not [unit.name for unit in analysis.space.units if "wider" in unit.layers]


def test_a_removal_that_leaves_groups_of_fewer_channels_is_right() -> None:
    analysis, proof = prove(analyse(Joined(12, 2), images(2, size=4)))
    assert not proof.refused
    student = build(analysis, analysis.space.architecture(removed=["layer:wider"]))
    assert student.grouped.weight.shape == (12, 6, 1, 1)


def test_a_removal_that_changes_the_number_of_groups_is_not_offered() -> None:
    class Regrouped(nn.Module):
        """Groups of 4 channels, of 6 that are tied to those of what comes in, where `narrow` makes 4 of each 6."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.narrow = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 1, groups=4)
            self.first, self.second = nn.Conv2d(12, 12, 1, groups=2), nn.Conv2d(8, 12, 1, groups=2)
            self.head = nn.Conv2d(12, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.narrow(self.first(self.stem(x)))))

    analysis, proof = prove(analyse(Regrouped(), images(2, size=4)))
    assert not proof.refused
    assert not [unit.name for unit in analysis.space.units if "narrow" in unit.layers]


def test_a_part_of_a_group_that_must_stay_keeps_the_whole_group() -> None:
    class Unbound(nn.Module):
        """Channels of three kinds, which are taken apart; without `kinds` those of the stem, in three groups."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.grouped = nn.Conv1d(3, 12, 1), nn.Conv1d(12, 12, 1, groups=3)
            self.kinds, self.mixed, self.head = nn.Linear(12, 24), nn.Linear(8, 12), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.grouped(self.stem(x)).mean(-1)
            a, b, c = self.kinds(x).reshape(len(x), 3, 4, -1).unbind(1)
            return self.head(x + self.mixed((a @ b.transpose(1, 2) @ c).flatten(1)))

    analysis, proof = prove(analyse(Unbound(), torch.randn(2, 3, 5)))
    assert not proof.refused
    without = analysis.space.architecture(removed=["layer:kinds"])
    assert predict(analysis, without).parameters == sum(p.numel() for p in build(analysis, without).parameters())
    with pytest.raises(SurgeryError, match="meet"):
        predict(analysis, without.with_width("stem", 8))


@pytest.mark.parametrize("kind", ["layer", "written", "whole"])
def test_a_removal_that_brings_a_layer_norm_another_number_is_not_offered(kind: str) -> None:
    class Normed(nn.Module):
        """A layer norm over channels that stay, as they are sums, or over a map whose size a pooling layer gives."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fewer, self.pool = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1), nn.MaxPool2d(2)
            self.norm, self.head = nn.LayerNorm([6, 2, 2] if kind == "whole" else 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).unflatten(1, (2, 4)).sum(1)
            x = self.pool(torch.cat([self.fewer(x), x], 1))
            if kind == "whole":
                return self.head(self.norm(x).mean((2, 3)))
            x = x.mean((2, 3))
            return self.head(self.norm(x) if kind == "layer" else F.layer_norm(x, (6,), self.norm.weight))

    analysis, proof = prove(analyse(Normed(), images(2, size=4)))
    assert not proof.refused
    assert ("pool" in {unit.name for unit in analysis.space.units}) == (kind != "whole")
    assert not [unit.name for unit in analysis.space.units if "fewer" in unit.layers and unit.kind != "joined"]


def test_a_removal_after_which_channels_are_taken_for_examples_is_not_offered() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.wider, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.wider(self.stem(x)).view(-1, 16, 4, 4)).mean((2, 3))

    analysis, proof = prove(analyse(Viewed(), images(2, size=4)))
    assert not proof.refused
    assert not [unit.name for unit in analysis.space.units if "wider" in unit.layers]


def test_a_removal_that_leaves_nothing_between_cuts_is_not_offered() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.wider, self.read = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(8, 8, 1)
            self.head = nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.wider(self.stem(x))
            return self.head(torch.cat([self.read(x[:, :-8]), x[:, -8:]], 1).view(len(x), 16, 4, 4))

    analysis, proof = prove(analyse(Cut(), images(2, size=4)))
    assert not proof.refused
    assert not [unit.name for unit in analysis.space.units if "wider" in unit.layers]


def test_a_removal_after_which_examples_would_be_fewer_is_not_offered() -> None:
    class Turned(nn.Module):
        """A part of a PointNet: what is made of the whole cloud, and then added to what is the same for all clouds."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.wider, self.head = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 16, 1), nn.Linear(16, 9)

        def forward(self, x: Tensor) -> Tensor:
            y = self.wider(torch.relu(self.stem(x))).max(2, keepdim=True)[0].view(-1, 16)
            return torch.bmm((self.head(y) + torch.eye(3).view(1, 9).repeat(len(x), 1)).view(-1, 3, 3), x)

    analysis, proof = prove(analyse(Turned(), torch.randn(2, 3, 5)))
    assert not proof.refused
    assert not [unit.name for unit in analysis.space.units if "wider" in unit.layers]


class Halves(nn.Module):
    """Halves of what a layer makes, which meet: without it they are halves of what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same, self.read = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = torch.relu(self.same(x)).chunk(2, 1)
        return self.head(torch.cat([x, a + self.read(b)], 1))


def test_halves_of_a_group_are_counted_at_full_width_only() -> None:
    analysis, proof = prove(analyse(Halves(), images(2, size=4)))
    assert not proof.refused
    space = analysis.space
    without = space.architecture(removed=["layer:same"])
    assert predict(analysis, without).parameters == sum(p.numel() for p in build(analysis, without).parameters())
    with pytest.raises(SurgeryError, match="meet"):
        predict(analysis, without.with_width("stem", 8))


class Shifted(nn.Module):
    """Some channels, added to what a layer makes of others of the same tensor: without it to those themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shift, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.cat([x[:, :2], x[:, 2:6] + self.shift(x[:, :4]), x[:, 6:]], 1))


def test_channels_that_meet_others_of_their_own_tensor_all_stay() -> None:
    """As many may be left of 0 to 3 as of 2 to 5, but not those which would be added to one another."""
    analysis, proof = prove(analyse(Shifted(), images(2, size=4)))
    assert not proof.refused
    trials, without = Trials(analysis, seed=0), analysis.space.architecture(removed=["layer:shift"])
    assert trials.judge(without, thorough=True).status == "holds"
    inside = [group for group in analysis.space.groups if group.width == 2]
    narrow = without.with_widths({group.name: 1 for group in inside})
    assert len(inside) > 2
    for ask in (predict, build):
        with pytest.raises(SurgeryError, match="channels meet"):
            ask(analysis, narrow)


class Residual(nn.Module):
    """A block whose last layer may go alone, so that the trunk meets what the layer before it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(x + self.last(torch.relu(self.first(x))))


def test_a_trunk_meets_other_channels_at_full_width_only() -> None:
    """What reads it inherits its weights, so each channel must meet the one that it meets in the teacher."""
    analysis, proof = prove(analyse(Residual(), images(2, size=4)))
    assert not proof.refused
    without = analysis.space.architecture(removed=["layer:last"])
    assert Trials(analysis, seed=0).judge(without, thorough=True).status == "holds"
    with pytest.raises(SurgeryError, match="5 and 8 channels meet"):
        build(analysis, without.with_widths({"stem": 5, "first": 5}))


def test_a_removal_that_changes_a_number_that_python_computes_with_is_not_offered() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pool = nn.Conv2d(3, 8, 1), nn.MaxPool2d(2)
            self.mid, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.mid(self.pool(self.stem(x)))
            return self.head(sum(x[:, :, i].mean(-1) for i in range(x.shape[2])))

    assert not [unit for unit in analyse(Rows(), images(2, size=4)).space.units if "pool" in unit.layers]


def test_a_block_goes_that_reads_the_shape_of_its_input() -> None:
    """What stands in for each of its nodes is its input, whether they gave tensors or plain values."""

    class Measured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

        def forward(self, x: Tensor) -> Tensor:
            batch, places, _ = x.shape
            return x + self.down(torch.relu(self.up(x)).view(batch, places, 12))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = nn.Linear(5, 8), Measured(), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.stem(x)).mean(1))

    assert "block" in {unit.name for unit in analyse(Network(), torch.randn(2, 4, 5)).space.units}
