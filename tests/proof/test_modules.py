"""Small modules chosen to hurt: whatever the analysis makes of them, no student that is offered is wrong.

Each is analysed, or refused with a TraceError that says why; what is offered after the proof is held against the
module again, with other parameters and other architectures; students train a step, and their weights come back.
"""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
from torch import Tensor

from tests.support.modules import (
    attention,
    counts,
    layers,
    maps,
    moves,
    odd_modules,
    odd_python,
    odd_tensors,
    pretrained,
    standardised,
    styles,
    tables,
    weights,
    written,
)
from tests.support.modules.base import Case
from understudy.core.architecture import Architecture, Space
from understudy.core.errors import SurgeryError, TraceError
from understudy.cost.predict import predict
from understudy.graph.analysis import Analysis, analyse
from understudy.proof.prove import prove
from understudy.proof.trial import Trials
from understudy.surgery.build import build, rebuild
from understudy.surgery.masked import tensors_of

PEOPLE = [*written.CASES, *tables.CASES, *maps.CASES, *styles.CASES, *weights.CASES]
CASES = [
    *counts.cases(every=27),
    *moves.CASES,
    *layers.CASES,
    *odd_tensors.CASES,
    *odd_modules.CASES,
    *odd_python.CASES,
    *pretrained.CASES,
    *attention.CASES,
    *standardised.CASES,
    *PEOPLE,
]
pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
ALL = [case for case in counts.cases(every=5) if case.name not in {known.name for known in CASES}]


def test_there_are_enough_of_them() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 460


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_student_is_wrong(case: Case) -> None:
    hold(case)


@pytest.mark.parametrize("case", PEOPLE, ids=lambda case: case.name)
def test_what_people_write_shrinks_nearly_whole(case: Case) -> None:
    hold(case, again=True)
    analysis, proof = prove(analyse(case.network(), case.input()))
    assert [found for found in proof.refused if found.kind == "group"] == []
    assert analysis.shrinkable > {"written_expert_weights": 0.85, "table_mixed": 0.8}.get(case.name, 0.95)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_no_student_is_wrong_however_a_number_is_read(case: Case) -> None:
    hold(case, again=True)


def hold(case: Case, *, again: bool = False) -> None:
    network, x = case.network(), case.input()
    try:
        analysis, proof = prove(analyse(network, x))
    except TraceError as error:
        if len(str(error)) < 40:
            raise
        return
    assert all(found.reason for found in proof.refused)
    offered = analysis.space.groups or analysis.space.units
    trials = Trials(analysis, seed=1) if again and offered else None
    assert trials is None or not trials.reference
    for seed in range(1, 4 if again else 2):
        architecture = drawn(analysis.space, seed)
        if trials is not None:
            outcome = trials.judge(architecture, thorough=True)
            assert outcome.status != "fails", outcome.reason
        with contextlib.suppress(SurgeryError):  # what is known not to fit together
            predict(analysis, architecture)
            live(analysis, architecture, x)


def drawn(space: Space, seed: int) -> Architecture:
    """Return an architecture with about every third unit gone and random channels."""
    rng = random.Random(seed)
    return space.architecture(
        removed=[u.name for u in space.units if u.kind != "layer" and rng.random() < 0.3],
        channels={
            g.name: rng.sample(range(g.width // g.step), rng.randint(1, g.width // g.step)) for g in space.groups
        },
    )


def live(analysis: Analysis, architecture: Architecture, x: Tensor) -> None:
    """A student of the network itself trains a step, still runs, and comes back from its weights."""
    student = build(analysis, architecture).train()
    torch.manual_seed(0)
    assert predict(analysis, architecture).parameters == sum(p.numel() for p in student.parameters())
    outputs = [t for t in tensors_of(student(x)) if t.requires_grad]
    if outputs:
        torch.optim.SGD(student.parameters(), lr=0.01).zero_grad()
        torch.stack([t.square().mean() for t in outputs]).sum().backward()
        torch.optim.SGD(student.parameters(), lr=0.01).step()
    state = {name: value.clone() for name, value in student.state_dict().items()}
    again = rebuild(analysis, architecture, state).eval()
    with torch.no_grad():
        torch.manual_seed(0)
        ours = [t.clone() for t in tensors_of(student.eval()(x))]
        torch.manual_seed(0)  # of a network that draws when it is used
        pairs = zip(ours, tensors_of(again(x)), strict=True)
        assert ours and all(torch.equal(a, b) for a, b in pairs)
