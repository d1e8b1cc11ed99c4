"""An evaluator as bytes for other machines: the user's own classes by value, large tensors beside the rest.

No torch of its own.
"""

from __future__ import annotations

import io
import pickle
import site
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from understudy.core.errors import RunError

_LARGE = 1_000_000  # bytes of a tensor that is not copied into every process


@dataclass(frozen=True, eq=False)
class Packed:
    """A pickle, and the memory that it refers to."""

    pickled: bytes
    buffers: Sequence[Any]  # arrays of bytes (n,)


def packed(value: Any) -> Packed:
    """Return a value as bytes that another machine can read, without the modules that hold the user's own classes.

    Raises:
        RunError: it cannot be pickled.
    """
    buffers: list[Any] = []
    content = io.BytesIO()
    try:
        with _by_value(_own_modules()):
            _pickler(content, buffers).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RunError(f"on a cluster the teacher must be picklable, but it is not: {error}") from error
    return Packed(content.getvalue(), buffers)


def unpacked(content: Packed) -> Any:
    """Return the value; its large tensors lie in the buffers, which nobody may write to."""
    return pickle.loads(content.pickled, buffers=content.buffers)


def portable(error: Exception, where: str) -> Exception:
    """Return an error with its traceback as a note, in a form that survives the way to the driver."""
    error.add_note(f"{where}:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a foreign class does when it is pickled
        substitute = RuntimeError(f"{type(error).__name__}: {error}")
        substitute.add_note(error.__notes__[-1])
        return substitute
    return error


def _pickler(content: io.BytesIO, buffers: list[Any]) -> Any:
    import cloudpickle  # comes with the extra

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            """Let a large tensor that nothing trains be an array, whose memory can stay apart."""
            torch = sys.modules.get("torch")
            if torch is not None and type(obj) is torch.Tensor and _is_large(obj):
                return _tensor, (obj.numpy(),)
            return super().reducer_override(obj)

    return Pickler(content, protocol=5, buffer_callback=lambda buffer: buffers.append(_bytes_of(buffer)))


def _is_large(tensor: Any) -> bool:
    plain = tensor.device.type == "cpu" and not tensor.requires_grad and tensor.is_contiguous()
    return plain and tensor.nbytes >= _LARGE and str(tensor.dtype) != "torch.bfloat16"


def _tensor(array: Any) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot be written to
        return torch.from_numpy(array)


def _bytes_of(buffer: pickle.PickleBuffer) -> Any:
    return np.frombuffer(buffer.raw(), dtype=np.uint8)


def _own_modules() -> list[ModuleType]:
    """Return the modules of this process that come neither with Python nor with a package: other machines lack them."""
    paths = sysconfig.get_paths()
    roots = [paths["stdlib"], paths["purelib"], paths["platlib"], *site.getsitepackages(), site.getusersitepackages()]
    known = [Path(root).resolve() for root in roots] + [Path(__file__).resolve().parents[2]]

    def is_own(module: Any) -> bool:
        file: str | None = getattr(module, "__file__", None)
        return file is not None and not any(Path(file).resolve().is_relative_to(root) for root in known)

    modules = [module for name, module in list(sys.modules.items()) if name != "__main__"]
    return [module for module in modules if isinstance(module, ModuleType) and is_own(module)]


@contextmanager
def _by_value(modules: Sequence[ModuleType]) -> Iterator[None]:
    import cloudpickle

    registered = []
    try:
        for module in modules:
            if module.__name__ in sys.modules and module.__name__ not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(module)
                registered.append(module)
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)
