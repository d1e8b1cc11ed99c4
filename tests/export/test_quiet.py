"""Exporters are quiet, and what they refuse is one error."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn

from understudy.core.errors import ExportError
from understudy.export.pt2 import program_of
from understudy.export.quiet import quiet_exporters


class ByChance(nn.Module):
    """Goes by a random number in both modes, which no exporter takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if (torch.rand(1) < 0.5)[0].item() else x


def test_a_refused_network_is_one_error_without_its_graph(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match=r"torch\.export takes, but it says: Could not guard"):
        program_of(ByChance().eval(), torch.zeros(2, 4))
    assert capfd.readouterr() == ("", "")


def test_what_is_said_before_and_after_is_heard(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("an.exporter")
    with warnings.catch_warnings(record=True) as warned:
        with quiet_exporters():
            log.warning("inside")
            print("inside", file=sys.stderr)
            warnings.warn("inside", stacklevel=1)
        log.warning("outside")
    assert caplog.messages == ["outside"] and not warned and capsys.readouterr() == ("", "")
