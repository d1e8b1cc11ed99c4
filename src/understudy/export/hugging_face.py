"""Student -> a folder that `from_pretrained` of transformers reads, without code of ours or of the teacher's file.

A configuration has one number for all layers of a kind, or one for each layer where the model reads `per_layer_config`
(transformers from 5.0 on). Which number of it stands for which size is found out by doubling each number and looking
at what grows, without weights. What cannot be said so is refused, with the sizes that do not fit.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from understudy.core.errors import ExportError
from understudy.core.extras import optional
from understudy.core.files import write_whole

Shapes = Mapping[str, tuple[int, ...]]
_LAYER = re.compile(r"^(.*?\.)(\d+)\.")


def is_pretrained(network: nn.Module) -> bool:
    """Return whether a network is a model of transformers, with a configuration."""
    return type(network).__module__.startswith("transformers.") and hasattr(network, "config")


def write_pretrained(student: nn.Module, folder: Path) -> nn.Module:
    """Write config.json and model.safetensors, and return the model that `from_pretrained` makes of them.

    Args:
        student: of a class of transformers; it is not touched.
        folder: where to.

    Raises:
        ExportError: it is no such model, or a configuration cannot say its sizes.
        ExtraError: transformers is missing.
    """
    optional("transformers", extra="hf")
    if not is_pretrained(student):
        raise ExportError(
            "hf is for models of Hugging Face's transformers in their own class, but this student is none"
        )
    state = {name: tensor.detach().cpu() for name, tensor in student.state_dict().items()}
    kind, own = type(student), _config(student)
    config, state = _without_removed(kind, type(own).from_dict(own.to_dict()), state)
    model: Any = kind(_sized(kind, config, {name: tuple(tensor.shape) for name, tensor in state.items()}))
    model.load_state_dict(state)
    with tempfile.TemporaryDirectory() as made, _quiet():
        model.save_pretrained(made)
        for name in ("config.json", "model.safetensors"):
            write_whole(folder / name, (Path(made) / name).read_bytes())
    return read_pretrained(folder)


def read_pretrained(folder: Path) -> nn.Module:
    """Return the model of a folder that `write_pretrained` wrote, in evaluation mode.

    Raises:
        ExportError: it cannot be read.
        ExtraError: transformers is missing.
    """
    transformers = optional("transformers", extra="hf")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = getattr(transformers, config.architectures[0])
        with _quiet():
            model: nn.Module = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, AttributeError, TypeError, IndexError) as error:
        raise ExportError(f"{folder} must be one that from_pretrained reads, but it says: {error}") from error
    return model.eval()


def config_text(student: nn.Module) -> str:
    """Return the configuration of a model as JSON: the teacher's, whose sizes need not be the student's."""
    text: str = _config(student).to_json_string(use_diff=False)
    return text


def _config(model: nn.Module) -> Any:
    return model.config


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, transformers shows no bar: a model of a second has no need of one."""
    logging = optional("transformers.utils.logging", extra="hf")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _without_removed(kind: Any, config: Any, state: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """Return configuration and state without the layers that were removed; those after them move up."""
    left = _layers(state)
    for stem, numbers in _layers(_shapes(kind, config)).items():
        kept = sorted(left.get(stem, set()))
        if len(kept) == len(numbers):
            continue
        counts = [name for name, grown in _doubled(kind, config) if len(_layers(grown)[stem]) == 2 * len(numbers)]
        if len(counts) != 1 or not kept:
            raise ExportError(f"hf must count the layers {stem}* by one number of the configuration, but cannot")
        setattr(config, counts[0], len(kept))
        places = {f"{stem}{number}.": f"{stem}{place}." for place, number in enumerate(kept)}
        state = {_moved(name, places): tensor for name, tensor in state.items()}
    return config, state


def _sized(kind: Any, config: Any, wanted: Shapes) -> Any:
    """Return a configuration of which a model of those shapes is made."""
    base = _shapes(kind, config)
    if odd := sorted(set(base) ^ set(wanted)):
        raise ExportError(f"hf must have all parts of each layer that is left, but {odd[0]} was removed by itself")
    asked: dict[str, dict[str, int]] = {}  # number -> what it would have to be, by tensor
    says = _says(kind, config, base)
    for name, shape in wanted.items():
        for dim, size in enumerate(shape):
            fields = says.get((name, dim), {})
            if size != base[name][dim] and not fields:
                raise ExportError(f"hf must say every size in the configuration, but nothing says the {size} of {name}")
            for field, growth in fields.items() if len(fields) == 1 else ():
                value = getattr(config, field)
                asked.setdefault(field, {})[name] = value + round((size - base[name][dim]) * value / growth)
    single = {field: set(values.values()).pop() for field, values in asked.items() if len(set(values.values())) == 1}
    several = {field: values for field, values in asked.items() if field not in single}
    values = {**config.to_dict(), **_heads(config, single), **single}
    if several:
        values["per_layer_config"] = _per_layer(several)
    try:
        made = type(config).from_dict(values)
        same = _shapes(kind, made) == wanted
    except Exception:  # of a configuration that the model does not take, of many kinds
        same = False
    if not same:
        raise ExportError(_unsaid(type(config).__name__, several))
    return made


def _heads(config: Any, new: Mapping[str, int]) -> dict[str, int]:
    """Return how many heads a new width has where they are as wide as before and nothing else says so."""
    known = getattr(config, "num_attention_heads", None)
    if known is None or "hidden_size" not in new or getattr(config, "head_dim", None) is not None:
        return {}
    return {"num_attention_heads": max(1, known * new["hidden_size"] // config.hidden_size)}


def _per_layer(several: Mapping[str, Mapping[str, int]]) -> dict[int, dict[str, int]]:
    found: dict[int, dict[str, int]] = {}
    for field, values in several.items():
        for name, value in values.items():
            layer = _LAYER.match(name)
            if layer is None or found.setdefault(int(layer[2]), {}).setdefault(field, value) != value:
                raise ExportError(_unsaid("the configuration", several))
    return found


def _unsaid(config: str, several: Mapping[str, Mapping[str, int]]) -> str:
    field, values = next(iter(several.items()), ("", {}))
    sizes = ", ".join(map(str, sorted(set(values.values()))))
    why = f"{field} is {sizes} in different places" if field else "its sizes do not follow from numbers of it"
    return f"hf must say every size in the configuration, but {config} cannot: {why}"


def _says(kind: Any, config: Any, base: Shapes) -> dict[tuple[str, int], dict[str, int]]:
    """Return which numbers decide a dimension of a tensor, and by how much it grows when they double."""
    found: dict[tuple[str, int], dict[str, int]] = {}
    for field, grown in _doubled(kind, config):
        if set(grown) != set(base):
            continue
        for name, shape in base.items():
            for dim, (before, after) in enumerate(zip(shape, grown[name], strict=True)):
                if after > before:
                    found.setdefault((name, dim), {})[field] = after - before
    for fields in found.values():  # heads are removed whole: what one is wide stays
        for width in ("head_dim", "d_kv"):
            if len(fields) > 1:
                fields.pop(width, None)
    return found


def _doubled(kind: Any, config: Any) -> Iterator[tuple[str, Shapes]]:
    """Yield each number of a configuration with the shapes of a model that has twice as much of it."""
    for name, value in config.to_dict().items():
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            try:
                yield name, _shapes(kind, type(config).from_dict({**config.to_dict(), name: 2 * value}))
            except Exception:  # there is no such model
                continue


def _shapes(kind: Any, config: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in kind(config).state_dict().items()}


def _layers(names: Iterable[str]) -> dict[str, set[int]]:
    """Return the numbers of what stands in lists of modules, by the path of the list."""
    found: dict[str, set[int]] = {}
    for name in names:
        if (layer := _LAYER.match(name)) is not None:
            found.setdefault(layer[1], set()).add(int(layer[2]))
    return found


def _moved(name: str, places: Mapping[str, str]) -> str:
    layer = _LAYER.match(name)
    return places.get(layer[0], layer[0]) + name[layer.end() :] if layer is not None else name
