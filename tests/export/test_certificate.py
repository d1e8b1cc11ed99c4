"""How far a format is from the student."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from understudy.core.errors import ExportError
from understudy.export.certificate import check_tolerance, parity

INPUTS = torch.tensor([[1.0, -2.0], [3.0, 4.0]])


class Other(nn.Module):
    """Gives its input with one number in another's place."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[0, 0] = self.number
        return y


def test_the_difference_is_that_of_the_farthest_number() -> None:
    found = parity(Other(1.5), [(INPUTS, [INPUTS])])
    assert (found.absolute, found.relative) == (0.5, 0.125)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_equal_to_one(number: float) -> None:
    found = parity(Other(number), [(INPUTS, [INPUTS])])
    assert not math.isfinite(found.absolute) and "bit for bit" not in str(found)
    with pytest.raises(ExportError, match=r"model\.onnx must give the student's outputs within 0\.0001"):
        check_tolerance("onnx", found, 1e-4)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_in_both_is_equal(number: float) -> None:
    found = parity(Other(number), [(INPUTS, [Other(number)(INPUTS)])])
    assert (found.absolute, found.relative) == (0.0, 0.0)
    other = parity(nn.Identity(), [(Other(number)(INPUTS), [Other(number)(INPUTS) + 1.0])])
    assert (other.absolute, other.relative) == (1.0, 0.2)
