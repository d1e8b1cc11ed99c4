"""Counts what a network computes while it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop
from torch.utils.module_tracker import ModuleTracker


def counting() -> FlopCounterMode:
    """Return torch's counter of FLOPs, two for each MAC, which also counts attention on a CPU; torch's own does not."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={attention: _attention})
    counter.mod_tracker = _Forward()
    return counter


class _Forward(ModuleTracker):
    """Knows which modules a forward pass is in, and leaves the backward pass alone.

    torch's own follows it by hooks on the gradients of what modules take and give, and fails at a view of a parameter
    that was made under no_grad, such as a class token that is expanded: it asks for a gradient and has none.
    """

    def _fw_pre_hook(self, mod: nn.Module, input: Any) -> None:
        super()._fw_pre_hook(mod, ())

    def _fw_post_hook(self, mod: nn.Module, input: Any, output: Any) -> None:
        super()._fw_post_hook(mod, (), ())


def _attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return int(sdpa_flop(query, key, value))
