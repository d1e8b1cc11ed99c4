"""Padded sequences that recurrent layers get packed, without the padding, in the ways people write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from understudy.core.errors import ExportError
from understudy.export.pt2 import program_of
from understudy.export.source import source_of
from understudy.graph.analysis import Analysis, analyse
from understudy.proof.prove import prove
from understudy.proof.trial import Trials
from understudy.surgery.build import build, rebuild

Forward = Callable[..., Any]
LENGTHS = torch.tensor([3, 7, 2])
SORTED = torch.tensor([7, 5, 2])


def tokens() -> Tensor:
    found = torch.randint(1, 30, (3, 7), generator=torch.Generator().manual_seed(0))
    return found.masked_fill(torch.arange(7) >= LENGTHS[:, None], 0)


class Reader(nn.Module):
    """Embeds tokens, and what is done then is `forward`'s."""

    def __init__(self, forward: Forward, **layers: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 10, padding_idx=0)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.does = forward

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        return self.does(self, self.embed(x), lengths, x)


def last_state(m: Any, x: Tensor, lengths: Tensor, _: Tensor) -> Tensor:
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    _, (h, _) = m.rnn(packed)
    return m.head(torch.cat([h[-2], h[-1]], 1))


def attended(m: Any, x: Tensor, _: Tensor, tokens: Tensor) -> Tensor:
    mask = tokens != 0
    packed = nn.utils.rnn.pack_padded_sequence(x, mask.sum(1), batch_first=True, enforce_sorted=False)
    y, _ = nn.utils.rnn.pad_packed_sequence(m.rnn(packed)[0], batch_first=True, total_length=x.size(1))
    scores = m.score(torch.tanh(m.key(y))).squeeze(-1).masked_fill(~mask, float("-inf"))
    return m.head((scores.softmax(1).unsqueeze(-1) * y).sum(1))


def times_first(m: Any, x: Tensor, _: Tensor, __: Tensor) -> Any:
    y, h = m.rnn(pack_padded_sequence(x.transpose(0, 1), [7, 6, 3]))
    y, lengths = pad_packed_sequence(y, padding_value=-1e9)
    return m.head(y.max(0)[0]), m.head(h[-1]), lengths


def by_hand(m: Any, x: Tensor, lengths: Tensor, _: Tensor) -> Tensor:
    packed, _ = m.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    data = F.relu(m.norm(packed.data)) + packed.data
    again = PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    y, lengths = pad_packed_sequence(m.more(again)[0], batch_first=True)
    last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, y.size(2))
    return m.head(y.gather(1, last).squeeze(1))


def sorted_before(m: Any, x: Tensor, lengths: Tensor, _: Tensor) -> Tensor:
    lengths, order = lengths.sort(0, descending=True)
    back = order.sort(0)[1]
    y, _ = m.rnn(pack_padded_sequence(x[order], lengths.tolist(), batch_first=True))
    return m.head(pad_packed_sequence(y, batch_first=True)[0][back])


def written(m: Any, x: Tensor, lengths: Tensor, _: Tensor) -> Tensor:
    y, _ = m.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    y, _ = pad_packed_sequence(y, batch_first=True)
    return m.head(y.view(y.size(0), y.size(1), 8).mean(1))


def networks() -> dict[str, tuple[Reader, set[str]]]:
    """Return networks, and what can shrink in each."""
    both, first = {"bidirectional": True, "batch_first": True}, {"batch_first": True}
    linear = nn.Linear
    return {
        "last state": (Reader(last_state, rnn=nn.LSTM(10, 8, 2, **both), head=linear(16, 4)), {"embed", "rnn"}),
        "attended": (
            Reader(attended, rnn=nn.LSTM(10, 8, **both), key=linear(16, 6), score=linear(6, 1), head=linear(16, 4)),
            {"embed", "rnn", "key"},
        ),
        "times first": (Reader(times_first, rnn=nn.GRU(10, 8, 2), head=linear(8, 4)), {"embed", "rnn"}),
        "by hand": (
            Reader(
                by_hand,
                rnn=nn.RNN(10, 8, **first),
                more=nn.LSTM(8, 9, **first),
                norm=nn.LayerNorm(8),
                head=linear(9, 4),
            ),
            {"embed", "rnn", "more"},
        ),
        "sorted before": (Reader(sorted_before, rnn=nn.GRU(10, 8, **both), head=linear(16, 4)), {"embed", "rnn"}),
        "written": (Reader(written, rnn=nn.LSTM(10, 8, **first), head=linear(8, 4)), {"embed", "rnn"}),
        "projected": (
            Reader(last_state, rnn=nn.LSTM(10, 8, 2, proj_size=5, **both), head=linear(10, 4)),
            {"embed", "rnn"},
        ),
    }


def analysed(name: str) -> Analysis:
    torch.manual_seed(0)
    return analyse(networks()[name][0].eval(), (tokens(), LENGTHS))


@pytest.mark.parametrize("name", networks())
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_packed_sequences_shrink_with_their_layers(name: str) -> None:
    analysis, proof = prove(analysed(name))
    assert not proof.refused
    assert {group.name for group in analysis.space.groups} == networks()[name][1]
    narrow = analysis.space.full
    for group in analysis.space.groups:
        narrow = narrow.with_width(group.name, group.width - 2 * group.step)
    outcome = Trials(analysis, 1).judge(narrow, thorough=True)
    assert outcome.status == "holds", outcome.reason


def test_macs_are_those_of_the_steps_that_are_no_padding() -> None:
    trials = Trials(analysed("last state"))
    assert trials._counts  # torch counts for the module what is predicted


def test_a_student_is_written_as_source_code_and_built_again() -> None:
    analysis = analysed("written")
    assert "view writes" in {g.name: g.plain for g in analysis.space.groups}["rnn"]
    for name in ("written", "attended"):
        analysis = analysed(name)
        student = build(analysis, analysis.space.full.with_width("rnn", 5))
        again = rebuild(analysis, analysis.space.full.with_width("rnn", 5), student.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(again.eval()(tokens(), LENGTHS), student.eval()(tokens(), LENGTHS))
        source = source_of(student, (tokens(), LENGTHS))
        assert "nn.utils.rnn.pack_padded_sequence(" in source.text
        assert "from torch import Tensor, nn" in source.text


def test_programs_of_packed_sequences_are_refused_with_the_reason() -> None:
    with pytest.raises(ExportError, match=r"packs sequences .* depend on the values of their lengths"):
        program_of(networks()["last state"][0].eval(), (tokens(), LENGTHS))


def test_lengths_that_do_not_fit_are_refused_as_by_torch() -> None:
    with pytest.raises(Exception, match=r"must accept the example.*equal to batch_size"):
        analyse(networks()["times first"][0].eval(), (tokens()[:2], LENGTHS[:2]))


class Going(nn.Module):
    """Goes by the numbers in its input, in a way that Python sees."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = self.read(x)
        if lengths.max().item() > 5:
            y = y * 2
        return self.head(y.view(-1, 7, 8)[:, : lengths.max().item()].relu())


def test_what_goes_by_numbers_in_an_input_is_no_plain_graph_and_no_source() -> None:
    given = torch.randn(3, 7, 6), LENGTHS
    analysis = analyse(Going().eval(), given)
    assert not analysis.space.groups
    assert {found.name: found.reason for found in analysis.space.frozen}["read"] == "view writes their number as 8"
    with pytest.raises(ExportError, match="goes by the numbers in one"):
        source_of(analysis.teacher, given)
