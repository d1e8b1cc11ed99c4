"""Models by name, and weights from files that hold nothing but tensors.

`zoo:NAME`, `torchvision:NAME`, `timm:NAME`, or `FILE.py:FACTORY` for a function of the user's own.
"""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from understudy import zoo
from understudy.data import Data
from understudy.errors import ConfigError, ModelError, did_you_mean
from understudy.extras import optional
from understudy.files import write_whole

_FORMS = "zoo:NAME, torchvision:NAME, timm:NAME, FILE.py:FACTORY or a teacher folder"
_CLASSES = ("classes", "num_classes")
_CHANNELS = ("input_channels", "in_channels", "in_chans", "channels")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """How a module is made, so that another process or another day can make it again."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self, seed: int = 0) -> nn.Module:
        """Return the module with weights drawn from `seed`; torch's global generator is left as it was.

        Raises:
            ModelError: there is no such model, or it does not take these arguments.
        """
        factory = _factory(self.name)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            try:
                module = factory(**self.arguments)
            except TypeError as error:
                given = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
                raise ModelError(f"{self.name} must take the arguments it is given, {given}, but: {error}") from error
        if not isinstance(module, nn.Module):
            raise ModelError(f"{self.name} must return a torch.nn.Module, but returned {type(module).__name__}")
        return module

    @classmethod
    def for_data(cls, name: str, data: Data, arguments: Mapping[str, Any]) -> ModelSpec:
        """Return the spec of a model for that data: its classes and channels, where the factory takes them.

        Raises:
            ModelError: there is no such model.
        """
        path, colon, factory = name.rpartition(":")
        if colon and path.endswith(".py"):
            name = f"{Path(path).resolve()}:{factory}"
        known = {"classes": len(data.classes), "num_classes": len(data.classes)}
        known |= dict.fromkeys(_CHANNELS, data.shape[0])
        takes = _parameters(name)
        return cls(name=name, arguments={**{k: v for k, v in known.items() if k in takes}, **arguments})


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained module, and what is known of where it came from."""

    module: nn.Module
    spec: ModelSpec | None = None  # None: made in Python, so only Python can make it again
    mean: tuple[float, ...] | None = None  # normalisation that it was trained with; None: the data's own
    std: tuple[float, ...] | None = None

    def fit(self, data: Data) -> Data:
        """Return the data with the normalisation that this teacher was trained with."""
        if self.mean is None or self.std is None or (self.mean, self.std) == (data.mean, data.std):
            return data
        return data.with_normalisation(self.mean, self.std)


def load_model(
    name: str,
    data: Data,
    *,
    weights: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Teacher:
    """Return a trained model by name, with weights from a file; a factory's own weights do as well.

    Raises:
        ModelError: there is no such model, or it would have random weights, or they do not fit.
        ConfigError: there is a mean without a std, or the other way round.
    """
    if (mean is None) != (std is None):
        raise ConfigError(f"a normalisation must be a mean and a std, but got mean {mean} and std {std}")
    spec = ModelSpec.for_data(name, data, arguments or {})
    module = spec.build()
    if weights is not None:
        load_into(module, read_weights(weights), source=str(weights))
    elif Path(name.rpartition(":")[0]).suffix != ".py":
        raise ModelError(
            f"a teacher must be trained, but {name!r} comes with random weights: give --weights FILE, or train it "
            f"first: understudy teach {name} --data ... --out teachers/NAME"
        )
    return Teacher(module=module, spec=spec, mean=mean, std=std)


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


def _parameters(name: str) -> set[str]:
    """Return the names among classes and channels that the factory takes."""
    kind = name.partition(":")[0]
    if kind == "torchvision":
        return {"num_classes"}
    if kind == "timm":
        return {"num_classes", "in_chans"}
    try:
        return set(inspect.signature(_factory(name)).parameters) & {*_CLASSES, *_CHANNELS}
    except (TypeError, ValueError):  # made of something that has no signature
        return set()


def _factory(name: str) -> Callable[..., Any]:
    kind, colon, what = name.rpartition(":")
    if not colon:
        raise ModelError(f"a model must be {_FORMS}, but got {name!r}")
    if kind == "zoo":
        return _of_zoo(what)
    if kind == "torchvision":
        return _of_torchvision(what)
    if kind == "timm":
        return _of_timm(what)
    if kind.endswith(".py"):
        return _of_file(Path(kind), what)
    raise ModelError(f"a model must be {_FORMS}, but got {name!r}{did_you_mean(kind, ('zoo', 'torchvision', 'timm'))}")


def _of_zoo(name: str) -> Callable[..., Any]:
    def make(*, input_channels: int = 3, classes: int = 10, width: int | None = None) -> nn.Module:
        return zoo.create(name, input_channels=input_channels, classes=classes, width=width)

    return make


def _of_torchvision(name: str) -> Callable[..., Any]:
    models = optional("torchvision.models", extra="vision")
    if name not in models.list_models():
        raise ModelError(f"torchvision has no model {name!r}{did_you_mean(name, models.list_models())}")
    return lambda **arguments: models.get_model(name, weights=None, **arguments)


def _of_timm(name: str) -> Callable[..., Any]:
    timm = optional("timm", extra="vision")
    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")
    return lambda **arguments: timm.create_model(name, pretrained=False, **arguments)


def _of_file(path: Path, factory: str) -> Callable[..., Any]:
    if not path.is_file():
        raise ModelError(f"a model of your own must be in a file, but there is no {path}")
    module = _import_file(path.resolve())
    made = getattr(module, factory, None)
    if not callable(made):
        raise ModelError(f"{path} must have a function {factory!r}{did_you_mean(factory, vars(module))}, but has none")
    return made  # type: ignore[no-any-return]


def _import_file(path: Path) -> Any:
    """Import the file by its own name, so that worker processes find the classes in it, too."""
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: nothing in that folder may stand in for an installed package
    importlib.invalidate_caches()
    found = importlib.util.find_spec(path.stem)
    if found is None or found.origin is None or Path(found.origin).resolve() != path:
        other = "" if found is None else f": {found.origin}"
        raise ModelError(f"a model file must have a name of its own, but there is another {path.stem!r}{other}")
    return importlib.import_module(path.stem)
