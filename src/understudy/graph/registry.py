"""The tables of rules that a walk reads; `understudy.rules` fills them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Rule = Callable[..., Any]
# Operation -> rule: a module class, a function, or the name of a tensor method.
MODULE_RULES: dict[type[nn.Module], Rule] = {}
# A function of a library that the core does not import goes by its qualified name.
CALL_RULES: dict[Any, Rule] = {}
# Rules that read parameters of several dimensions; the others get them as tensors.
PARAMETER_RULES: set[Rule] = set()
# Rules of these that take parameters in any arrangement.
ARRANGED_RULES: set[Rule] = set()
# Rules of modules that take more than one input.
STATE_RULES: set[Rule] = set()
# Rules of what makes a tensor of nothing but sizes.
MAKING_RULES: set[Rule] = set()


def gathered(walk: Any, node: Any, *args: Any, **kwargs: Any) -> Any:
    """The rule of named tuples and dataclasses, which hold what they are given."""
    return (*args, *kwargs.values())
