"""What failed because of the machine, told apart from what failed because of the network."""

from __future__ import annotations

import errno

import torch

from understudy.core.errors import CrashError, DataError, MachineError
from understudy.core.memory import out_of_memory

# Settings and disks are mended by hand, so there is no use in trying again.
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)
_DEVICE_GAVE_UP = ("CUDA error", "device-side assert")


def fault_of_network(error: Exception) -> str:
    """Return why a network could not be built or computed, in one line, if it is the network that is at fault.

    Raises:
        MachineError: memory ran out, a file could not be read, or a device gave up.
        DataError: an image cannot be read.
        OSError: a disk is full or closed, a file is missing.
    """
    if isinstance(error, (MachineError, DataError)):
        raise error
    if isinstance(error, torch.AcceleratorError) or _holds(error, _DEVICE_GAVE_UP):
        raise CrashError(reason(error)) from error
    if out_of_memory(error):
        raise MachineError(reason(error)) from error
    if isinstance(error, OSError):
        raise error if error.errno in _LASTING else MachineError(reason(error)) from error
    return reason(error)


def reason(error: BaseException) -> str:
    """Return what went wrong, in one line."""
    text = " ".join(str(error).split())
    return f"out of memory: {text}" if out_of_memory(error) else f"{type(error).__name__}: {text}"


def _holds(error: BaseException, texts: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
