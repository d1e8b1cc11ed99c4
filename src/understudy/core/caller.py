"""What the caller of Python has set up around a call, where that would change results without a word."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


def as_usual(function: Callable[_Given, _Out]) -> Callable[_Given, _Out]:
    """Return the function computing as torch does of itself, whatever the caller set: on the CPU, in float32.

    Processes that are started see nothing of a default device, a default kind of numbers or an autocast here.

    Raises:
        ConfigError: it is called where that cannot be had, see `refuse_surroundings`.
    """

    @wraps(function)
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Out:
        import torch

        refuse_surroundings()
        with ExitStack() as usual:
            if torch.empty(0).device.type != "cpu":  # the context costs something at each operation
                usual.enter_context(torch.device("cpu"))
            if (dtype := torch.get_default_dtype()) != torch.float32:
                usual.callback(torch.set_default_dtype, dtype)
                torch.set_default_dtype(torch.float32)
            usual.enter_context(_outside_autocast())
            return function(*args, **kwargs)

    return call


@contextmanager
def _outside_autocast() -> Iterator[None]:
    """Let no autocast be around what is inside, also none that is switched off.

    Weights that an autocast has rounded are kept until the outermost one ends: inside of a caller's, each step of a
    training would see those of its first one.
    """
    import torch

    depth = torch.autocast_increment_nesting() - 1
    cached = torch.is_autocast_cache_enabled()
    enabled = [kind for kind in ("cpu", "cuda", "mps") if torch.is_autocast_enabled(kind)]
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    try:
        if depth:
            torch.clear_autocast_cache()
            torch.set_autocast_cache_enabled(True)
        for kind in enabled:
            torch.set_autocast_enabled(kind, False)
        yield
    finally:
        for _ in range(depth):
            torch.autocast_increment_nesting()
        torch.set_autocast_cache_enabled(cached)
        for kind in enabled:
            torch.set_autocast_enabled(kind, True)


def outside_inference(function: Callable[_Given, _Out]) -> Callable[_Given, _Out]:
    """Return the function outside of a caller's inference mode: what is made in it can be neither copied nor taught."""

    @wraps(function)
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Out:
        import torch

        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False):
            return function(*args, **kwargs)

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
