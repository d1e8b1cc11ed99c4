"""Plain tensors that modules keep as attributes shrink as buffers do, and the teacher stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from understudy.export.source import source_of
from understudy.graph.analysis import Analysis, analyse
from understudy.proof.prove import prove
from understudy.surgery.build import build, rebuild


class Tokens(nn.Module):
    """Tokens that a table of positions is added to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.make()

    def make(self) -> None:
        self.table = torch.randn(9, 16)

    def placed(self, x: Tensor) -> Tensor:
        return x + self.table[: x.shape[1]].to(x.device, dtype=x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.mix(self.placed(self.embed(x)).relu())).mean(1))  # type: ignore[no-any-return]


class Replaced(Tokens):
    def placed(self, x: Tensor) -> Tensor:
        if self.table.shape[0] != x.shape[1]:
            self.make()
        return x + self.table


class Declared(Tokens):
    table: Tensor = torch.zeros(())  # which torch would find before any buffer


class Asked(Tokens):
    def placed(self, x: Tensor) -> Tensor:
        return x + self.table if self.table.sum() > -1e9 else x


def proved(teacher: nn.Module, x: Tensor) -> Analysis:
    analysis, proof = prove(analyse(teacher, x))
    assert proof.refused == ()
    return analysis


def test_a_table_is_sliced_with_the_channels_that_it_meets() -> None:
    teacher, x = Tokens(), torch.randn(2, 9, 12)
    table, names = teacher.table, set(teacher.state_dict())
    analysis = proved(teacher, x)
    assert vars(teacher)["table"] is table and not dict(teacher.named_buffers())
    assert {group.name for group in analysis.space.groups} == {"embed", "mix"}
    architecture = analysis.space.architecture(channels={"embed": [1, 4, 5]})
    student = build(analysis, architecture)
    assert type(student) is Tokens and set(student.state_dict()) == names
    assert torch.equal(student.table, table[:, [1, 4, 5]])
    assert copy.deepcopy(student).double()(x.double()).dtype == torch.float64
    again = rebuild(analyse(Tokens(), x), architecture, student.state_dict())
    written = source_of(student, x).build()
    for other in (again, written):
        assert torch.equal(other(x), student(x))


@pytest.mark.parametrize("kind", [Replaced, Declared, Asked])
def test_a_table_that_is_replaced_declared_or_asked_for_its_values_stays_as_it_is(kind: type[Tokens]) -> None:
    teacher = kind()
    analysis = proved(teacher, torch.randn(2, 9, 12))
    assert analysis.teacher is teacher and {group.name for group in analysis.space.groups} == {"mix"}


def test_a_table_that_modules_share_is_cut_for_each() -> None:
    class Shared(nn.Module):
        def __init__(self, registered: bool) -> None:
            super().__init__()
            self.tokens = nn.ModuleList([Tokens(), Tokens()])
            table = self.tokens[0].table
            for tokens in self.tokens:
                tokens.table = table
                if registered:
                    del tokens.table
                    tokens.register_buffer("table", table)

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.tokens
            return second.head(second.placed(first.placed(first.embed(x)).relu()))

    for registered in (True, False):
        analysis = proved(Shared(registered), torch.randn(2, 9, 12))
        student = build(analysis, analysis.space.full.with_width("tokens.0.embed", 4))
        assert [tokens.table.shape for tokens in student.tokens] == [(9, 4)] * 2
