"""Memory that runs out while students are checked is no property of the network."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from understudy.core.errors import MachineError
from understudy.graph.analysis import analyse
from understudy.proof.prove import prove

LIMITED = """
import resource, torch
from torch import nn
from understudy.core.errors import MachineError
from understudy.graph.analysis import analyse
from understudy.proof.prove import prove

teacher = nn.Sequential(nn.Linear(1000, 2000), nn.ReLU(), nn.Linear(2000, 1000))
analysis = analyse(teacher, torch.randn(2, 1000))
held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + 20 * 2**20,) * 2)  # the copy in double precision has 32 MB
try:
    prove(analysis)
except MachineError as error:
    print(error)
"""


class Hungry(nn.Module):
    """Needs more memory than there is in double precision, from its n-th call on."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = [calls]

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is torch.float64:
            self.left[0] -= 1
            if self.left[0] < 0:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
        return x


@pytest.mark.parametrize("calls", [0, 1, 2, 4, 8, 12])
def test_it_is_the_machines_error(calls: int) -> None:
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3), Hungry(calls), nn.Conv2d(8, 8, 3))
    analysis = analyse(teacher, torch.randn(2, 3, 8, 8), (Hungry,))
    with pytest.raises(MachineError, match=r"^memory ran out while students of the network were checked in double"):
        prove(analysis)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux's")
def test_a_limit_of_memory_is_told() -> None:
    found = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True).stdout
    assert found.startswith("memory ran out while students of the network were checked in double precision; free some")
    assert "allocate memory" in found
