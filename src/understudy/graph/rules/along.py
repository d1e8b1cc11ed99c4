"""Operations along one dimension that keep the others apart: extremes, sorting, running sums, transforms, parts."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from understudy.graph.channels import Labelled, Paired, ParameterUse
from understudy.graph.fake import Signature, map_structure
from understudy.graph.nodes import describe
from understudy.graph.registry import CALL_RULES
from understudy.graph.rules.parts import chunk, places
from understudy.graph.rules.pointwise import elementwise, meet
from understudy.graph.rules.spatial import reduce
from understudy.graph.rules.tables import for_calls, for_modules
from understudy.graph.rules.weights import is_only_multiplied
from understudy.graph.walk import Walk

# Operation -> where the dimension stands among the arguments, and its default.
_PLACES: dict[str, tuple[int, int | None]] = {
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "prod", "argmax", "argmin"), (1, None)),
    **dict.fromkeys(("sort", "argsort", "mode"), (1, -1)),
    **dict.fromkeys(("median", "nanmedian"), (1, None)),
    **dict.fromkeys(("topk", "kthvalue", "diff"), (2, -1)),
}
_SAMPLED = (torch.trapezoid, torch.trapz, torch.cumulative_trapezoid)
_TRANSFORMS = (torch.fft.fft, torch.fft.ifft, torch.fft.rfft, torch.fft.irfft, torch.fft.hfft, torch.fft.ihfft)

_TRANSFORMS_OF_SEVERAL = (
    *(torch.fft.fft2, torch.fft.ifft2, torch.fft.rfft2, torch.fft.irfft2, torch.fft.hfft2, torch.fft.ihfft2),
    *(torch.fft.fftn, torch.fft.ifftn, torch.fft.rfftn, torch.fft.irfftn),
)


@for_calls(*(f for name in _PLACES for f in (getattr(torch, name), name) if isinstance(f, str) or callable(f)))
def along(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Over space each channel is by itself; what mixes channels freezes them."""
    place, usual = _PLACES[describe(node)]
    dim = kwargs.get("dim", args[place - 1] if len(args) >= place else usual)
    return _by_itself(walk, node, x, dim, args, kwargs)


@for_calls(torch.msort, "msort")
def sorted_rows(walk: Walk, node: fx.Node, input: Any) -> Any:
    """As `along`, of the first dimension."""
    return _by_itself(walk, node, input, 0, (), {})


@for_calls(*_SAMPLED)
def integral(walk: Walk, node: fx.Node, y: Any, x: Any = None, *, dx: Any = 1, dim: int = -1) -> Any:
    """As `along`, at places that have no channels."""
    if isinstance(x, Labelled) and not x.is_fixed:
        return walk.give_up(node, (y, x), {}, f"no rule for {describe(node)} with these arguments")
    spaced: dict[str, Any] = {"dx": dx} if x is None else {"x": x}
    return _by_itself(walk, node, y, dim, (), spaced | {"dim": dim})


@for_calls(torch.quantile, "quantile", torch.nanquantile, "nanquantile", parameters=True)
def quantile(walk: Walk, node: fx.Node, input: Any, q: Any, dim: Any = None, keepdim: bool = False, **more: Any) -> Any:
    """As `along`; several of them are along a dimension before the others."""
    x, q = walk.as_tensor(input, node), places(walk, node, q)
    over = not isinstance(dim, int) or dim % len(x.shape) in x.varying or _is_one(x)
    if (over and not x.is_fixed) or not (isinstance(q, float) or q.is_fixed):
        return walk.give_up(node, (x, q, dim, keepdim), more, f"{describe(node)} runs over these channels")
    shape = walk.outcome(node, (x, q, dim, keepdim), more).shape
    if x.is_fixed:
        return Labelled.fixed(shape)
    labels = x.labels if keepdim else x.labels.squeeze(dim)
    return Labelled(shape, labels if len(labels.shape) == len(shape) else labels[None])


@for_calls(torch.aminmax, "aminmax")
def both_extremes(walk: Walk, node: fx.Node, input: Any, *, dim: Any = None, keepdim: bool = False) -> Any:
    """As `along`: over channels they would be two statistics at once."""
    return _by_itself(walk, node, input, dim, (), {"dim": dim, "keepdim": keepdim})


@for_calls(torch.diagonal, "diagonal", torch.linalg.diagonal)
def diagonal(walk: Walk, node: fx.Node, x: Labelled, *args: Any, **kwargs: Any) -> Any:
    """Of two dimensions without channels; it becomes the last one."""
    usual = (-2, -1) if node.target is torch.linalg.diagonal else (0, 1)
    given = dict(zip(("offset", "dim1", "dim2"), args, strict=False)) | kwargs
    rank = len(x.shape)
    over = {given.get(name, d) % rank for name, d in zip(("dim1", "dim2"), usual, strict=True)}
    if over & set(x.varying) or _is_one(x):
        return walk.give_up(node, (x, *args), kwargs, "diagonal runs over these channels")
    labels = x.labels.squeeze(tuple(over))[..., None]
    return Labelled(walk.outcome(node, (x, *args), kwargs).shape, labels)


@for_calls(*_TRANSFORMS)
def transform(walk: Walk, node: fx.Node, input: Any, n: Any = None, dim: int = -1, **kwargs: Any) -> Any:
    """As `along`."""
    return _by_itself(walk, node, input, dim, (n, dim), kwargs)


@for_calls(*_TRANSFORMS_OF_SEVERAL)
def transform_of_several(
    walk: Walk, node: fx.Node, input: Any, s: Any = None, dim: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """As `along`, over the last two dimensions where that is its name, or over those that are named."""
    dims = dim if dim is not None else (-2, -1) if describe(node).endswith("2") else ()
    given = (input, s, *(() if dim is None else (dim,)), *args)
    over = {d % len(input.shape) for d in dims} if isinstance(input, Labelled) else set()
    if not over or over & set(input.varying) or _is_one(input):
        return walk.give_up(node, given, kwargs, f"{describe(node)} runs over these channels")
    return Labelled(walk.outcome(node, given, kwargs).shape, input.labels)


@for_calls(torch.view_as_complex, parameters=True)
def view_as_complex(walk: Walk, node: fx.Node, x: Any) -> Any:
    """The last dimension holds real and imaginary parts, which are no channels."""
    meets = all(user.target in CALL_RULES and CALL_RULES[user.target] is elementwise for user in node.users)
    if type(x) is ParameterUse and not x.beside and (meets or is_only_multiplied(node)):
        return Paired(x.name, x.shape[:-1])
    x = walk.as_tensor(x, node)
    if len(x.shape) - 1 in x.varying:
        return walk.give_up(node, (x,), {}, "view_as_complex takes these channels for parts of numbers")
    return Labelled(x.shape[:-1], x.labels[..., 0])


@for_calls(torch.view_as_real)
def view_as_real(walk: Walk, node: fx.Node, x: Labelled) -> Labelled:
    """A last dimension of real and imaginary parts."""
    return Labelled((*x.shape, 2), x.labels[..., None])


@for_calls(torch.fft.fftshift, torch.fft.ifftshift)
def shifted(walk: Walk, node: fx.Node, input: Labelled, dim: Any = None) -> Any:
    """Halves of a spectrum change places; those of channels would be others in a narrower student."""
    dims = range(len(input.shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    if {d % len(input.shape) for d in dims} & set(input.varying):
        return walk.give_up(node, (input, dim), {}, f"{describe(node)} moves these channels")
    return input


@for_calls(torch.tril, "tril", torch.triu, "triu")
def triangle(walk: Walk, node: fx.Node, x: Labelled, *args: Any, **kwargs: Any) -> Any:
    """Zeros on one side of a diagonal of the last two dimensions, such as places that attention must not see."""
    rank = len(x.shape)
    if {rank - 1, rank - 2} & set(x.varying):
        return walk.give_up(node, (x, *args), kwargs, f"{describe(node)} runs over these channels")
    return x


@for_calls(torch.rot90, "rot90")
def quarter_turn(walk: Walk, node: fx.Node, x: Labelled, k: int = 1, dims: Any = (0, 1)) -> Any:
    """Over space each channel by itself."""
    if {d % len(x.shape) for d in dims} & set(x.varying):
        return walk.give_up(node, (x, k, dims), {}, "rot90 runs over these channels")
    args, kwargs = walk.value_of((node.args, node.kwargs))
    return Labelled(walk.outcome(node, args, kwargs).shape, x.labels)


def _by_itself(walk: Walk, node: fx.Node, x: Any, dim: Any, args: Any, kwargs: Any) -> Any:
    if not isinstance(x, Labelled) or not isinstance(dim, int) or dim % len(x.shape) in x.varying or _is_one(x):
        return walk.give_up(node, (x, *args), kwargs, f"{describe(node)} runs over these channels")
    dim %= len(x.shape)
    taken, kept = x.labels, x.labels.squeeze(dim)

    def labelled(found: Any) -> Any:
        if not isinstance(found, Signature):
            return found
        return Labelled(found.shape, taken if len(found.shape) == len(x.shape) else kept)

    return map_structure(walk.outcome(node, (x, *args), kwargs), labelled)


def _is_one(x: Labelled) -> bool:
    """Return whether the whole tensor is one channel."""
    return not x.varying and not x.is_fixed


@for_calls(torch.max, torch.min, "max", "min")
def extreme(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Of two tensors, element by element; of one, over all of it, or along a dimension with the places.

    Of channels it is the extreme of those that stay; their places mean nothing in a narrower student.
    """
    other = args[0] if args else kwargs.get("other")
    if isinstance(other, Labelled):
        return elementwise(walk, node, x, other)
    dim = kwargs.get("dim", other)
    if dim is None:
        return reduce(walk, node, x)
    if not isinstance(x, Labelled) or not isinstance(dim, int):
        return walk.give_up(node, (x, *args), kwargs, f"no rule for {describe(node)} with these arguments")
    if dim % len(x.shape) not in x.varying:
        return _by_itself(walk, node, x, dim, args, kwargs)
    used = [user for user in node.users if user.users or user.target is not operator.getitem]
    if not all(user.target is operator.getitem and user.args[1] == 0 for user in used):
        return walk.give_up(node, (x, *args), kwargs, f"{describe(node)} says at which of these channels it is")
    keepdim = kwargs.get("keepdim", args[1] if len(args) > 1 else False)
    value = reduce(walk, node, x, dim, keepdim)
    return (value, value)


@for_calls(F.glu)
def glu(walk: Walk, node: fx.Node, input: Labelled, dim: int = -1) -> Any:
    """A half by the gates of the other: the channels at the same place of both go together."""
    if input.shape[dim] % 2:
        return walk.give_up(node, (input, dim), {}, "glu cuts them into unequal parts")
    parts = chunk(walk, node, input, 2, dim)
    return elementwise(walk, node, *parts) if len(parts) == 2 else parts


@for_modules(nn.GLU)
def glu_module(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Any:
    """As the function."""
    return glu(walk, node, x, module.dim)


@for_calls(F.local_response_norm)
def local_response_norm(walk: Walk, node: fx.Node, input: Labelled, *args: Any, **kwargs: Any) -> Any:
    """Each channel is divided by its neighbours, which would be others in a narrower student."""
    return walk.give_up(node, (input, *args), kwargs, "local_response_norm reads neighbouring channels")


@for_calls(F.unfold)
def unfold(walk: Walk, node: fx.Node, input: Labelled, *args: Any, **kwargs: Any) -> Any:
    """Each channel becomes as many as it has pixels in a window."""
    return _unfolded(walk, node, input, args, kwargs)


@for_modules(nn.Unfold)
def unfold_module(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Any:
    """As the function."""
    return _unfolded(walk, node, x, (), {})


def _unfolded(walk: Walk, node: fx.Node, x: Labelled, args: Any, kwargs: Any) -> Any:
    if len(x.shape) != 4:
        return walk.give_up(node, (x, *args), kwargs, "unfold gets an input without a batch")
    labels = walk.channels(x, 1, node)
    shape = walk.outcome(node, (x, *args), kwargs).shape
    return Labelled.along(shape, 1, np.repeat(labels, shape[1] // len(labels)))


@for_calls("unfold")
def windows(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Windows along a dimension are one more at the end; those over channels hold a written number of them."""
    dim = kwargs.get("dimension", args[0] if args else None)
    if not isinstance(x, Labelled) or not isinstance(dim, int) or dim % len(x.shape) in x.varying or _is_one(x):
        return walk.give_up(node, (x, *args), kwargs, "unfold runs over these channels")
    return Labelled(walk.outcome(node, (x, *args), kwargs).shape, x.labels[..., None])


@for_calls(F.fold)
def fold(walk: Walk, node: fx.Node, input: Labelled, output_size: Any, kernel_size: Any, *args: Any, **kw: Any) -> Any:
    """The channels that become the pixels of one window go together."""
    return _folded(walk, node, input, kernel_size, (output_size, kernel_size, *args), kw)


@for_modules(nn.Fold)
def fold_module(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Any:
    """As the function."""
    return _folded(walk, node, x, module.kernel_size, (), {})


def _folded(walk: Walk, node: fx.Node, x: Labelled, kernel: Any, args: Any, kwargs: Any) -> Any:
    if len(x.shape) != 3:
        return walk.give_up(node, (x, *args), kwargs, "fold gets an input without a batch")
    rows = walk.channels(x, 1, node).reshape(-1, math.prod(kernel) if isinstance(kernel, tuple | list) else kernel**2)
    walk.bundle(rows, node)
    return Labelled.along(walk.outcome(node, (x, *args), kwargs).shape, 1, rows[:, 0])


@for_calls(F.grid_sample)
def grid_sample(walk: Walk, node: fx.Node, input: Labelled, grid: Any, *args: Any, **kwargs: Any) -> Any:
    """Over space each channel by itself, at places whose coordinates are no channels; heads may lie in the batch."""
    if any(d > 1 for d in input.varying):
        return walk.give_up(node, (input, grid, *args), kwargs, "grid_sample runs over these channels")
    if any(grid.varying):
        walk.freeze(grid.labels, "grid_sample takes them for coordinates", node)
        grid = Labelled.fixed(grid.shape)
    shape = (*input.shape[:2], *grid.shape[1:-1])
    places = Labelled((grid.shape[0], *(1,) * (len(shape) - 1)), grid.labels)
    return Labelled(shape, meet(walk, node, input, places).labels)


@for_calls(torch.tensor_split, "tensor_split", torch.hsplit, "hsplit")
def tensor_split(walk: Walk, node: fx.Node, x: Labelled, parts: Any = None, dim: int = 0, **named: Any) -> Any:
    """As `chunk` where parts are equal; in space it cuts anywhere."""
    parts = next((named[name] for name in ("indices_or_sections", "indices", "sections") if name in named), parts)
    dim = ((1 if len(x.shape) > 1 else 0) if describe(node) == "hsplit" else dim) % len(x.shape)
    if isinstance(parts, int) and x.shape[dim] % parts == 0:
        return chunk(walk, node, x, parts, dim)
    if isinstance(parts, Labelled) or dim in x.varying:
        return walk.give_up(node, (x, parts, dim), {}, f"{describe(node)} cuts at written places")
    args, kwargs = walk.value_of((node.args, node.kwargs))
    return tuple(Labelled(found.shape, x.labels) for found in walk.outcome(node, args, kwargs))
