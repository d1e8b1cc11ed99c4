"""Models by name, and weights from files that hold nothing but tensors.

`zoo:NAME`, `torchvision:NAME`, `timm:NAME`, or `FILE.py:FACTORY` for a function of the user's own.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from understudy.core.errors import ConfigError, DataError, ModelError, UnderstudyError, a_kind, did_you_mean
from understudy.core.extras import optional
from understudy.data import Data
from understudy.data.data import first_images
from understudy.graph.copies import copied
from understudy.models import zoo
from understudy.models.code import absolute, import_factory
from understudy.models.weights import load_into, read_weights

_FORMS = "zoo:NAME, torchvision:NAME, timm:NAME, FILE.py:FACTORY or a teacher folder"
_CLASSES = ("classes", "num_classes")
_CHANNELS = ("input_channels", "in_channels", "in_chans", "channels")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """How a module is made, so that another process or another day can make it again."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self, seed: int = 0) -> nn.Module:
        """Return the module with weights drawn from `seed`; torch's global generator and the working folder are kept.

        Raises:
            ModelError: there is no such model, it does not take these arguments, or its code fails.
        """
        with torch.random.fork_rng(), chdir("."):
            factory = _factory(self.name)
            if isinstance(factory, nn.Module):
                raise ModelError(f"{self.name} must be a function that returns the network, but is a network itself")
            torch.manual_seed(seed)
            try:
                module = factory(**self.arguments)
            except TypeError as error:
                given = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
                raise ModelError(
                    f"{self.name} is called with ({given}), but: {error}. Arguments that it needs are given by "
                    "--arguments NAME=VALUE (arguments={...})"
                ) from error
            except (UnderstudyError, MemoryError):
                raise
            except Exception as error:  # the caller's code may raise anything
                last = traceback.extract_tb(error.__traceback__)[-1]
                raise ModelError(
                    f"{self.name} must return a torch.nn.Module, but failed: {type(error).__name__}: {error} "
                    f"({last.filename}, line {last.lineno})"
                ) from error
        if not isinstance(module, nn.Module):
            raise ModelError(f"{self.name} must return a torch.nn.Module, but returned {type(module).__name__}")
        return module

    @classmethod
    def for_data(cls, name: str, data: Data, arguments: Mapping[str, Any]) -> ModelSpec:
        """Return the spec of a model for that data: its classes and channels, where the factory takes them.

        Raises:
            ModelError: there is no such model.
        """
        return cls.fitting(name, data.shape[0], len(data.classes), arguments)

    @classmethod
    def fitting(cls, name: str, channels: int, classes: int | None, arguments: Mapping[str, Any]) -> ModelSpec:
        """Return the spec of a model for images of so many channels, and so many classes if that is known.

        Raises:
            ModelError: there is no such model.
        """
        name = absolute(name)
        known = dict.fromkeys(_CHANNELS, channels)
        known |= {} if classes is None else dict.fromkeys(_CLASSES, classes)
        takes = _parameters(name)
        return cls(name=name, arguments={**{k: v for k, v in known.items() if k in takes}, **arguments})


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained module, and what is known of where it came from."""

    module: nn.Module
    spec: ModelSpec | None = None  # None: made in Python, so only Python can make it again
    mean: tuple[float, ...] | None = None  # normalisation that it was trained with; None: the data's own
    std: tuple[float, ...] | None = None
    taught_on: str | None = None  # digest of the data that `teach` gave it: it has not seen their validation split

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
    with chdir("."):  # a model's file may go elsewhere, but what a caller typed is seen from here
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
        hint = f"; name the function in it that makes the network: {name}:make" if name.endswith(".py") else ""
        if Path(name).is_file() and not hint:
            hint = (
                f", a file: weights are given beside the code that makes their network, model.py:make --weights {name}"
            )
        raise ModelError(f"a model must be {_FORMS}, but got {name!r}{hint}")
    if kind == "zoo":
        return _of_zoo(what)
    if kind == "torchvision":
        return _of_torchvision(what)
    if kind == "timm":
        return _of_timm(what)
    if kind.endswith(".py"):
        return import_factory(Path(kind), what)  # type: ignore[no-any-return]
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

    def make(**arguments: Any) -> nn.Module:
        reading = sorted({"checkpoint_path", "pretrained"} & set(arguments))
        if reading:  # which some versions unpickle
            raise ModelError(f"weights of a timm model are given as a file of their own, not as {', '.join(reading)}")
        return timm.create_model(name, pretrained=False, **arguments)  # type: ignore[no-any-return]

    return make


def check_outputs(module: nn.Module, data: Data) -> None:
    """Check on two validation images that the model gives one finite logit for each class of the data.

    In training mode it may give a tuple that begins with them, which a copy of it is asked for.

    Raises:
        ModelError: it takes something else than images, or gives something else than one tensor of finite numbers.
        DataError: it gives another number of logits.
    """
    was_training, inputs = module.training, first_images(data, data.val, 2)
    try:
        with torch.no_grad():
            logits = module.eval()(inputs.to(next((p.device for p in module.parameters()), "cpu")))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ModelError(
            f"the model must take one batch of images, here of shape {tuple(inputs.shape)}, as only the classification "
            f"of images is supported yet, but it failed: {error}"
        ) from error
    finally:
        module.train(was_training)
    if not isinstance(logits, torch.Tensor):
        raise ModelError(
            "the model must return its logits as one tensor, as only the classification of images is supported yet, "
            f"but returned {_described(logits)}: wrap it in a module that returns the logits alone"
        )
    wanted, got = (2, len(data.classes)), tuple(logits.shape)
    if got != wanted:
        raise DataError(
            f"the model must give one logit for each class: for 2 images of {data.source} with {wanted[1]} classes "
            f"that is {wanted}, but got {got}"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("the model must give finite logits, but there are NaN or infinite ones")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        trained = copied(module).cpu().train()(inputs)
    if not isinstance(logits_of(trained), torch.Tensor) or tuple(logits_of(trained).shape) != wanted:
        raise ModelError(
            "the model must return its logits in training mode as well, alone or first in a tuple, as auxiliary "
            f"classifiers do, but returned {_described(trained)} there: return the logits first"
        )


def logits_of(output: Any) -> Any:
    """Return the logits of what a network gave; in training mode some give a tuple of them and auxiliary outputs.

    Those have no part in the loss.
    """
    return output[0] if isinstance(output, list | tuple) and output else output


def _described(output: object) -> str:
    if isinstance(output, Mapping):
        return f"{a_kind(output)} of {', '.join(map(str, output))}"
    if isinstance(output, torch.Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, list | tuple):
        return f"{a_kind(output)} of {len(output)}"
    return a_kind(output)
