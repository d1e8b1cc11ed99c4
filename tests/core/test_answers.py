from __future__ import annotations

from understudy.core.answers import Answers
from understudy.core.architecture import Architecture
from understudy.testing.landscapes import toy_space


def test_what_is_known_is_not_asked_again_and_the_oldest_goes() -> None:
    space, asked = toy_space(), list[int]()
    group = space.groups[0].name

    def ask(architecture: Architecture) -> int:
        asked.append(architecture.width(group))
        return asked[-1]

    answers = Answers(ask, most=2)
    order = [8, 16, 8, 16, 24, 16, 8]
    assert [answers(space.full.with_width(group, width)) for width in order] == order
    assert asked == [8, 16, 24, 8]
