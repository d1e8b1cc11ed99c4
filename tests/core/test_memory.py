"""Memory that runs out is told apart from what a network is to blame for."""

from __future__ import annotations

import re

import pytest
import torch

from understudy.core.errors import MachineError
from understudy.core.memory import enough_memory, out_of_memory

ALLOCATOR = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (RuntimeError(ALLOCATOR), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB."), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError(ALLOCATOR), False),
    ],
)
def test_what_says_that_memory_ran_out(error: Exception, is_memory: bool) -> None:
    assert out_of_memory(error) is is_memory
    raised = MachineError if is_memory else type(error)
    with pytest.raises(raised), enough_memory("here", "free some"):
        raise error


def test_the_error_says_what_ran_out_and_the_way_out() -> None:
    wanted = f"memory ran out while it was tested; free some ({ALLOCATOR})"
    with pytest.raises(MachineError, match=f"^{re.escape(wanted)}$"), enough_memory("while it was tested", "free some"):
        raise RuntimeError(ALLOCATOR)
    with pytest.raises(MachineError, match=r"^memory ran out here; free some$"), enough_memory("here", "free some"):
        raise MemoryError


def test_torch_can_indeed_run_out_of_it() -> None:
    with pytest.raises(MachineError, match=r"^memory ran out here"), enough_memory("here", "free some"):
        torch.empty(2**60)
