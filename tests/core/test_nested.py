from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from understudy.core.nested import called, chunks, first, leaves, mapped, zipped

Pair = namedtuple("Pair", "left right")


@dataclass
class Out:
    hidden: list[int]
    cache: object = None


def test_leaves_are_named_by_their_path() -> None:
    value = {"a": 1, "b": (2, [3, None]), "c": Out([4, 5]), "d": Pair(6, {"e": 7})}
    names = ["a", "b.0", "b.1.0", "c.hidden.0", "c.hidden.1", "d.left", "d.right.e"]
    assert list(leaves(value)) == list(zip(names, range(1, 8), strict=True))
    assert list(leaves("text")) == [("", "text")] and first((None, {"x": 9})) == 9 and first(None) is None


def test_mapping_keeps_the_structure() -> None:
    value = OrderedDict(a=1, b=(2, [3, None]))
    assert mapped(value, lambda leaf: 10 * leaf) == {"a": 10, "b": (20, [30, None])}


def test_zipping_joins_what_is_alike_and_refuses_the_rest() -> None:
    assert zipped([{"a": (1, None)}, {"a": (2, None)}], sum) == {"a": (3, None)}
    for wrong in ({"b": (2, None)}, {"a": (2,)}, {"a": (2, 3)}, {"a": (None, None)}, {"a": 2}, 5):
        with pytest.raises(ValueError, match="must"):
            zipped([{"a": (1, None)}, wrong], sum)


def test_inputs_are_passed_alone_by_place_or_by_name() -> None:
    def function(x: object, y: object = "default") -> tuple[object, object]:
        return x, y

    assert called(function, [1]) == ([1], "default")
    assert called(function, (1, 2)) == called(function, {"y": 2, "x": 1}) == (1, 2)


def test_chunks_take_the_same_rows_of_every_tensor() -> None:
    pieces = list(chunks({"a": torch.arange(5), "b": (torch.arange(5) * 2,)}, 2))
    assert [piece["a"].tolist() for piece in pieces] == [[0, 1], [2, 3], [4]]
    assert [piece["b"][0].tolist() for piece in pieces] == [[0, 2], [4, 6], [8]]
