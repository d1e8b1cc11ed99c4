"""Counts what a network computes while it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop


def counting() -> FlopCounterMode:
    """Return torch's counter of FLOPs, two for each MAC, which also counts attention on a CPU; torch's own does not."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={attention: _attention})


def _attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return int(sdpa_flop(query, key, value))
