"""Weights from files that hold nothing but tensors."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from understudy.core.errors import ModelError, did_you_mean
from understudy.core.files import write_whole

_log = logging.getLogger("understudy")
_SEAL = "understudy digest"
_INSIDE = ("state_dict", "model_state_dict", "model", "net", "network", "weights")  # where checkpoints hold weights
_COUNTER = ".num_batches_tracked"
_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name


def read_weights(path: Path, *, ours: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a state dict that torch.save wrote, also inside a checkpoint.

    Args:
        path: of the file.
        ours: whether `write_tensors` wrote it, so that it must bear its digest.

    Raises:
        ModelError: the file cannot be read without running code that is in it, or it is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            content = path.read_bytes()
            tensors = read_safetensors(content)
            _check_seal(path, content, tensors, ours)
            return tensors
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles, just before it refuses them
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"a weights file must be readable, but {path} is not: {error.strerror}") from error
    except SafetensorError as error:
        raise ModelError(f"a file named .safetensors must be one, but {path} is not: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise ModelError(
            f"refusing to unpickle weights: they must be safetensors or a state dict of tensors, but {path} is "
            "neither. Where you trust the file, convert it once in Python:\n"
            f"  model = torch.load({str(path)!r}, weights_only=False)\n"
            '  safetensors.torch.save_file(model.state_dict(), "weights.safetensors")'
        ) from error
    if isinstance(found, dict):
        found = next((found[name] for name in _INSIDE if isinstance(found.get(name), dict)), found)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"a weights file must hold a state dict, names and tensors, but {path} holds something else")
    return found


def save_weights(path: Path, module: nn.Module) -> None:
    """Write a module's state dict as safetensors, whole or not at all."""
    write_tensors(path, module.state_dict())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, whole or not at all, with a digest that tells damage."""
    # Tied weights share memory, which safetensors refuses; each name gets its own copy.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path, to_safetensors(own, metadata={_SEAL: tensors_digest(dict(sorted(own.items())))}))


def weights_digest(model: nn.Module) -> str:
    """Return 16 hexadecimal digits of a model's parameters and buffers: names, types, shapes and values."""
    return tensors_digest(model.state_dict())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits of tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load weights into a module, every one of them; prefixes that wrappers left on all names are taken off.

    Raises:
        ModelError: names or shapes differ; the first few are listed.
    """
    own = module.state_dict()
    tensors = _unwrapped(tensors, own, source)
    # Batch norm counted no batches before PyTorch 0.4.1, and torch takes weights without the counters, too.
    tensors = {**{name: zero for name, zero in own.items() if name.endswith(_COUNTER)}, **tensors}
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


def load_kept(module: nn.Module, path: Path) -> None:
    """Load into a module what `save_weights` wrote of one like it.

    Raises:
        ModelError: the file is gone or damaged, or of another module.
    """
    load_into(module, read_weights(path, ours=True), source=str(path))


def _unwrapped(tensors: Mapping[str, Tensor], own: Mapping[str, Any], source: str) -> Mapping[str, Tensor]:
    """Return the tensors without the prefix of a wrapper, if all have it and the model's own names do not."""
    for _ in range(len(_WRAPPERS)):
        for prefix in _WRAPPERS:
            if tensors and all(name.startswith(prefix) for name in tensors) and not set(tensors) <= set(own):
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
                _log.warning("names in %s begin with %r, which was taken off", source, prefix)
    return tensors


def _check_seal(path: Path, content: bytes, tensors: Mapping[str, Tensor], ours: bool) -> None:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    seal = header.get("__metadata__", {}).get(_SEAL)
    if (ours or seal is not None) and seal != tensors_digest(dict(sorted(tensors.items()))):
        raise ModelError(f"{path} must be as it was written, but is damaged: its tensors are not those of its digest")
