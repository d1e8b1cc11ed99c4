"""Weights from files that hold nothing but tensors."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from understudy.core.errors import ModelError, did_you_mean
from understudy.core.files import write_whole


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a state dict that torch.save wrote.

    Raises:
        ModelError: the file cannot be read without running code that is in it.
    """
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles, just before it refuses them
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"a weights file must be readable, but {path} is not: {error.strerror}") from error
    except SafetensorError as error:
        raise ModelError(f"a file named .safetensors must be one, but {path} is not: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelError(
            f"weights are read only where no code can hide: safetensors, or a state dict of tensors, but {path} is "
            "neither. Where you trust the file, convert it once in Python:\n"
            f"  model = torch.load({str(path)!r}, weights_only=False)\n"
            '  safetensors.torch.save_file(model.state_dict(), "weights.safetensors")'
        ) from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"a weights file must hold a state dict, names and tensors, but {path} holds something else")
    return found


def save_weights(path: Path, module: nn.Module) -> None:
    """Write a module's state dict as safetensors, whole or not at all."""
    # Tied weights share memory, which safetensors refuses; each name gets its own copy.
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in module.state_dict().items()}
    write_whole(path, to_safetensors(tensors))


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load weights into a module, every one of them.

    Raises:
        ModelError: names or shapes differ; the first few are listed.
    """
    own = module.state_dict()
    trouble = [f"{name} is missing{did_you_mean(name, tensors)}" for name in own if name not in tensors]
    trouble += [f"{name} is not in the model" for name in tensors if name not in own]
    trouble += [
        f"{name} is {tuple(tensors[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if trouble:
        more = f"\n  and {len(trouble) - 5} more" if len(trouble) > 5 else ""
        raise ModelError(f"weights must fit the model, but in {source}:\n  " + "\n  ".join(trouble[:5]) + more)
    module.load_state_dict(dict(tensors))
