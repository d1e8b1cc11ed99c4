"""Sums of products: einsum, and products with a parameter that the forward pass uses directly."""

from __future__ import annotations

import math
import operator
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from understudy.graph.channels import FIXED, Labelled, Labels, Member, ParameterUse, Picked, Product, Turned, Work
from understudy.graph.nodes import describe
from understudy.graph.rules.movement import permute, transpose, unsqueeze
from understudy.graph.rules.pointwise import elementwise
from understudy.graph.rules.products import product
from understudy.graph.rules.tables import for_calls
from understudy.graph.rules.weights import CHANGING, arranged, cut, is_only_multiplied, made_by_columns, multiplied
from understudy.graph.walk import Walk

Operand = Labelled | ParameterUse


@for_calls(torch.einsum, parameters=True)
def einsum(walk: Walk, node: fx.Node, equation: Any, *operands: Any) -> Any:
    """Channels along a letter: those of all operands that have it are the same; those that are summed over go."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    written = _terms(equation, operands) if isinstance(equation, str) else None
    if written is None:
        return walk.give_up(node, operands, {}, "no rule for einsum with these arguments")
    if set("".join(written[0])) == set(written[1]):
        laid = [_laid_out(walk, node, x, term, written[1]) for term, x in zip(written[0], operands, strict=True)]
        return elementwise(walk, node, *laid)  # nothing is summed over
    return _contracted(walk, node, written[0], written[1], operands)


def _laid_out(walk: Walk, node: fx.Node, x: Any, term: str, result: str) -> Any:
    """Return an operand with the dimensions of the result, of size 1 where it has none."""
    x = permute(walk, node, arranged(walk, node, x), [term.index(c) for c in result if c in term])
    for place, letter in enumerate(result):
        if letter not in term:
            x = unsqueeze(walk, node, x, place)
    return x


@for_calls(
    *(operator.matmul, torch.matmul, torch.mm, torch.bmm, torch.mv, "matmul", "mm", "bmm", "mv"),
    torch.linalg.matmul,
    parameters=True,
)
def matmul(walk: Walk, node: fx.Node, a: Any, b: Any) -> Any:
    """As a linear layer where one side is a parameter (inputs, outputs), else a product of two computed tensors."""
    weight = multiplied(node, a, b)
    if weight is not None:
        return weight
    if isinstance(a, Labelled) and isinstance(b, Labelled | ParameterUse) and len(b.shape) == 1 < len(a.shape):
        letters = string.ascii_lowercase[: len(a.shape)]  # a vector, which scores what comes
        return _contracted(walk, node, [letters, letters[-1]], letters[:-1], (a, b))
    kinds = [isinstance(x, ParameterUse) and len(x.shape) > 1 for x in (a, b)]
    ranks = [len(x.shape) if isinstance(x, Labelled | ParameterUse) else 0 for x in (a, b)]
    if sum(kinds) != 1 or min(ranks) < 2 or walk.trace.are_numbers((a if kinds[0] else b).name):
        a, b = (walk.as_tensor(x, node) if isinstance(x, ParameterUse) else x for x in (a, b))
        return product(walk, node, a, b)
    around = string.ascii_lowercase[: max(ranks) - 2]
    left, right = f"{around[len(around) - ranks[0] + 2 :]}xy", f"{around[len(around) - ranks[1] + 2 :]}yz"
    return _contracted(walk, node, [left, right], f"{around}xz", (a, b))


@for_calls(torch.inner, "inner", parameters=True)
def inner(walk: Walk, node: fx.Node, input: Any, other: Any) -> Any:
    """As an einsum: the last dimensions of both are summed."""
    around = string.ascii_letters[: len(input.shape) + len(other.shape) - 1]
    own, its, last = around[: len(input.shape) - 1], around[len(input.shape) - 1 : -1], around[-1]
    return _contracted(walk, node, [own + last, its + last], own + its, (input, other))


@for_calls(torch.outer, "outer", torch.ger, "ger", parameters=True)
def outer(walk: Walk, node: fx.Node, input: Any, vec2: Any) -> Any:
    """As an einsum in which nothing is summed."""
    return elementwise(walk, node, *(_laid_out(walk, node, x, c, "ij") for x, c in ((input, "i"), (vec2, "j"))))


@for_calls(torch.baddbmm, "baddbmm", parameters=True)
def sum_and_product(walk: Walk, node: fx.Node, bias: Any, a: Any, b: Any, **more: Any) -> Any:
    """A product of matrices and what is added to it, each times a number."""
    if any(not isinstance(number, int | float) for number in more.values()):
        return walk.give_up(node, (bias, a, b), more, "no rule for baddbmm with these arguments")
    return elementwise(walk, node, matmul(walk, node, a, b), bias)


@for_calls(
    *(torch.t, "t", torch.transpose, "transpose", torch.swapaxes, "swapaxes", torch.swapdims, "swapdims"),
    arranged=True,
)
def turned(walk: Walk, node: fx.Node, x: Any, *dims: Any) -> Any:
    """Channels move with their dimension; a weight is multiplied by the other way round."""
    uses = (x, *getattr(x, "beside", ()))
    matrix = all(type(use) in (ParameterUse, Turned, Product, Member) and len(use.shape) == 2 for use in uses)
    weight = matrix and x.rows is None and is_only_multiplied(node) and not walk.trace.are_numbers(x.name)
    first, second = dims or (0, 1)
    if isinstance(x, Picked) or (weight and {first % 2, second % 2} == {0, 1}):
        return x.turned
    return transpose(walk, node, x, first, second)


CHANGING.append(turned)


@for_calls(torch.tensordot, parameters=True)
def tensordot(walk: Walk, node: fx.Node, a: Any, b: Any, dims: Any = 2, **more: Any) -> Any:
    """As an einsum: the last dimensions of the one are summed with the first of the other, or those that are named."""
    if isinstance(dims, int):
        dims = range(len(a.shape) - dims, len(a.shape)), range(dims)
    letters, pairs = iter(string.ascii_lowercase), [[d] if isinstance(d, int) else list(d) for d in dims]
    left = [next(letters) for _ in a.shape]
    right = [next(letters) for _ in b.shape]
    for i, j in zip(*pairs, strict=True):
        right[j] = left[i]
    summed = {left[i] for i in pairs[0]}
    result = "".join(c for c in (*left, *right) if c not in summed)
    return _contracted(walk, node, ["".join(left), "".join(right)], result, (a, b))


def _terms(equation: str, operands: Sequence[Any]) -> tuple[list[str], str] | None:
    """Return the letters of each operand and of the result, None where they are not all written as single letters."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    if len(terms) != len(operands) or not all(isinstance(x, Labelled | ParameterUse) for x in operands):
        return None
    spare = [c for c in string.ascii_letters if c not in equation]
    most = max(len(x.shape) - len(t.replace("...", "")) for t, x in zip(terms, operands, strict=True))
    dots = "".join(spare[:most]) if "..." in equation else ""
    for index, (term, x) in enumerate(zip(terms, operands, strict=True)):
        count = len(x.shape) - len(term.replace("...", ""))
        terms[index] = term.replace("...", dots[len(dots) - count :])
    if not arrow:
        once = sorted(c for c in set("".join(terms)) if "".join(terms).count(c) == 1 and c not in dots)
        result = "..." + "".join(once)
    result = result.replace("...", dots)
    if any(len(set(t)) != len(t) for t in (*terms, result)) or any(
        len(t) != len(x.shape) for t, x in zip(terms, operands, strict=True)
    ):
        return None
    return terms, result


def _contracted(walk: Walk, node: fx.Node, terms: list[str], result: str, operands: Sequence[Operand]) -> Any:
    along = _letters(terms, operands)
    uses = [(t, x) for t, x in zip(terms, operands, strict=True) if isinstance(x, ParameterUse)]
    if along is None or len(uses) > max(3 - len(operands), 0):
        return walk.give_up(node, operands, {}, f"{describe(node)} mixes these channels with others")
    sizes = _sizes(terms, operands)
    for c, (labels, of) in list(along.items()):
        for term, x in zip(terms, operands, strict=True):
            dim = term.find(c)
            if dim < 0 or term is of or isinstance(x, ParameterUse):
                continue
            if x.labels.shape[dim] > 1:
                walk.tie(labels, walk.channels(x, dim, node), node)
            elif x.shape[dim] > 1:
                walk.freeze(labels, f"{describe(node)} joins it with a tensor of fixed size", node)
    if len([c for c in along if c in result]) > 1:
        return walk.give_up(node, operands, {}, f"{describe(node)} mixes these channels with others")
    found = {c: labels for c, (labels, _) in along.items()}
    for term, use in uses:
        _cut(walk, node, (term, result), use, found, [t for t in terms if t is not term])
    for c, labels in found.items():
        sizes[c] = len(labels)
    for letters in _steps(terms, result):
        macs = math.prod(n for c, n in sizes.items() if c in letters)
        factors = tuple(labels for c, labels in found.items() if c in letters and (labels != FIXED).any())
        constant = macs // math.prod(len(labels) for labels in factors)
        walk.part.work.append(Work(describe(node), constant, factors))
    shape = [sizes.get(c, 1) for c in result]
    carried = next((c for c in result if c in found and len(found[c]) > 1), None)
    return Labelled.fixed(shape) if carried is None else Labelled.along(shape, result.index(carried), found[carried])


def _sizes(terms: list[str], operands: Sequence[Operand]) -> dict[str, int]:
    """Return the size along each letter, where that is more than one."""
    sizes: dict[str, int] = {}
    for term, x in zip(terms, operands, strict=True):
        for letter, size in zip(term, x.shape, strict=True):
            if size > 1 and sizes.setdefault(letter, size) != size:  # what a removal brings
                raise ValueError(f"{size} and {sizes[letter]} elements cannot be multiplied one by one")
    return sizes


def _steps(terms: list[str], result: str) -> list[set[str]]:
    """Return the letters of each product of two: what the first operands are comes to the next one."""
    found, left = [], set(terms[0])
    for place, term in enumerate(terms[1:], 2):
        found.append(left | set(term))
        left = found[-1] & set("".join((*terms[place:], result)))
    return found or [left]


def _letters(terms: list[str], operands: Sequence[Operand]) -> dict[str, tuple[Labels, str]] | None:
    """Return the channels along each letter that has some, and the term that they are of; None if in two dimensions."""
    found: dict[str, tuple[Labels, str]] = {}
    for term, x in zip(terms, operands, strict=True):
        if isinstance(x, ParameterUse) or x.is_fixed:
            continue
        if len(x.varying) != 1:
            return None
        labels = np.ascontiguousarray(x.labels.reshape(-1))
        found.setdefault(term[x.varying[0]], (labels, term))
    return found


def _cut(
    walk: Walk, node: fx.Node, written: tuple[str, str], use: ParameterUse, found: dict[str, Labels], others: list[str]
) -> None:
    """Cut a parameter along the channels that it meets; the last letter that it alone brings makes new channels."""
    term, result = written
    own = [c for c in term if c in result and not any(c in other for other in others) and use.shape[term.index(c)] > 1]
    before = walk.known.get(walk.trace.names.get(use.name, use.name))
    known = (
        None if before is None else use.seen(before.dims) if isinstance(use, Turned | Picked | Member) else before.dims
    )
    if own and not any(c in result for c in found) and use.name not in walk.constants:
        dim = term.index(own[-1])
        if known is None or isinstance(known[dim], np.ndarray):
            rows = isinstance(use, Turned) or (dim == 0) != (isinstance(use, Member) and use.transposed)
            name = use.name if rows else made_by_columns(walk, use, use.name)
            found[own[-1]] = walk.emit(name, use.shape[dim])
    dims = tuple(found[c] if c in found and n > 1 else n for c, n in zip(term, use.shape, strict=True))
    cut(walk, node, use, dims)
