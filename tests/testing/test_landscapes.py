from __future__ import annotations

import pytest

from understudy.core.architecture import Space
from understudy.testing.landscapes import toy_score, toy_space


@pytest.mark.parametrize("shared", [False, True])
def test_a_shared_landscape_knows_layers_by_what_they_are_not_by_name(shared: bool) -> None:
    space = toy_space()
    renamed = Space.from_json(space.to_json().replace("features", "layers"))
    found = [
        toy_score(
            s.architecture(removed=[f"{name}.3"], widths={f"{name}.4": 64}, kernels={f"{name}.6": 1}),
            landscape=3,
            noise=0.0,
            shared=shared,
        )
        for s, name in ((space, "features"), (renamed, "layers"))
    ]
    assert (found[0] == found[1]) is shared
    assert all(0.1 < accuracy < 0.95 for accuracy in found)


@pytest.mark.parametrize("shared", [False, True])
def test_the_teacher_itself_loses_nothing_and_landscapes_differ(shared: bool) -> None:
    space = toy_space("residual")
    narrow = space.architecture(widths={"stem.conv": 8})
    assert toy_score(space.full, noise=0.0, shared=shared) == pytest.approx(0.95)
    found = [toy_score(narrow, landscape=landscape, noise=0.0, shared=shared) for landscape in (0, 1)]
    assert found[0] != found[1]
