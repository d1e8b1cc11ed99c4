"""What the caller of Python has set up around a call, where that would change results without a word."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from understudy.core.errors import ConfigError
from understudy.core.files import refuse_removed_folder

_Given = ParamSpec("_Given")
_Out = TypeVar("_Out")
_PATIENCE = 30.0  # seconds in which a call that only looks at a network ends
_inside = threading.RLock()


def alone(function: Callable[_Given, _Out]) -> Callable[_Given, _Out]:
    """Return the function for one thread at a time: torch's random numbers, and what traces modules, are those of all.

    A thread waits for another one's call that ends soon, and may call from inside of its own.

    Raises:
        ConfigError: another thread stays inside.
    """

    @wraps(function)
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Out:
        if not _inside.acquire(timeout=_PATIENCE):
            raise ConfigError(
                "understudy must be called by one thread of a process at a time, as they share torch's random numbers, "
                f"but {function.__name__}() was called while another thread was inside of such a call: give each a "
                "process of its own (multiprocessing)"
            )
        try:
            return function(*args, **kwargs)
        finally:
            _inside.release()

    return call


def refuse_surroundings() -> None:
    """Refuse to work where every operation, module or optimizer is seen by what the caller set up in torch.

    It would see those of students too, and change what they compute or what can be traced. Processes that are started
    see nothing of it.

    Raises:
        ConfigError: there is such a mode (`with FlopCounterMode():`) or such a hook (`register_module_forward_hook`),
            or the current folder was removed.
    """
    from torch.nn.modules import module as modules
    from torch.optim import optimizer as optimizers
    from torch.overrides import _get_current_function_mode_stack as function_modes
    from torch.utils._device import DeviceContext
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes

    refuse_removed_folder()
    seen = [mode for mode in (*dispatch_modes(), *function_modes()) if not isinstance(mode, DeviceContext)]
    if seen:
        raise ConfigError(
            "understudy must be called outside of what sees every operation of torch, but was called inside of "
            f"`with {type(seen[0]).__name__.lstrip('_')}`: end that before"
        )
    for kind, place in (("module", modules), ("optimizer", optimizers)):
        for name, hooks in vars(place).items():
            if name.startswith("_global_") and isinstance(hooks, dict) and hooks:
                raise ConfigError(
                    f"understudy must be called without hooks on every {kind}, which students would have as well, but "
                    f"there is one among torch.{place.__name__.removeprefix('torch.')}.{name}: call remove() of what "
                    "registering it returned"
                )
