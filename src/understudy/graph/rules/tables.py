"""How a rule gets into the tables that a walk reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from understudy.graph.registry import (
    ARRANGED_RULES,
    CALL_RULES,
    MAKING_RULES,
    MODULE_RULES,
    PARAMETER_RULES,
    STATE_RULES,
    Rule,
)

R = TypeVar("R", bound=Rule)


def for_modules(*classes: type[nn.Module], states: bool = False, parameters: bool = False) -> Callable[[R], R]:
    """Register a rule (walk, node, module, *inputs) for modules of exactly these classes.

    Those with `states` may be given more than one input, those with `parameters` get such as they are.
    """

    def register(rule: R) -> R:
        if parameters:
            PARAMETER_RULES.add(rule)
        if states:
            STATE_RULES.add(rule)
        MODULE_RULES.update(dict.fromkeys(classes, rule))
        return rule

    return register


def for_calls(
    *targets: Any, parameters: bool = False, arranged: bool = False, making: bool = False
) -> Callable[[R], R]:
    """Register a rule (walk, node, *arguments) for functions, and for tensor methods by name.

    A rule with `parameters` gets those that the forward pass uses directly as they are, the others as tensors; one
    with `arranged` also gets those whose dimensions have another order.
    One that is `making` tensors is called for calls without any as well.
    """

    def register(rule: R) -> R:
        if parameters or arranged:
            PARAMETER_RULES.add(rule)
        if arranged:
            ARRANGED_RULES.add(rule)
        if making:
            MAKING_RULES.add(rule)
        CALL_RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register
