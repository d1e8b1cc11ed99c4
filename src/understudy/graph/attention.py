"""What `nn.MultiheadAttention` computes, written out, so that its heads and its width are seen.

The layer itself knows one width, of what comes in and of all heads together, so whatever lacks channels is a plain
graph. The steps are those of `torch.nn.functional.multi_head_attention_forward`.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from understudy.core.errors import TraceError
from understudy.graph.numbers import plain


def can_be_opened(module: nn.Module) -> bool:
    """Return whether a module is attention with one packed projection and nothing added to keys and values."""
    if type(module) is not nn.MultiheadAttention or "forward" in vars(module):
        return False
    return module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn


def is_followed(query: Any, key: Any, value: Any, *, attn_mask: Any = None, **_: Any) -> bool:
    """Return whether a call is of batches (B, N, E), with one mask for all of them and all heads."""
    batches = all(isinstance(x, fx.Node) and _of(x).dim() == 3 for x in (query, key, value))
    return batches and (attn_mask is None or _of(attn_mask).dim() == 2)


def attended(module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Return what the layer does: outputs (B, N, E), and weights (B, N, N), of each head (B, H, N, N), or None.

    Raises:
        TraceError: the input is of another width.
    """
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    query, key, value = (bound.arguments.pop(name) for name in ("query", "key", "value"))
    return _attended(module, query, key, value, **bound.arguments)


def _attended(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    *,
    key_padding_mask: Any,
    need_weights: bool,
    attn_mask: Any,
    average_attn_weights: bool,
    is_causal: bool,
) -> tuple[Any, Any]:
    width, heads = plain(module.embed_dim), plain(module.num_heads)
    if query.shape[-1] != width:
        raise TraceError(f"attention takes {width} channels, but got {tuple(_of(query).shape)}")
    q, k, v = _projected(module, query, key, value)
    is_causal = is_causal and key_padding_mask is None and not need_weights
    mask = None if is_causal else _joined(_added(attn_mask, q), _added(key_padding_mask, q))
    weights = None
    if need_weights:
        scores = (q * math.sqrt(1.0 / (width // heads))) @ k.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(dim=-1)
        weights = F.dropout(weights, p=module.dropout, training=module.training)
        y = weights @ v
        weights = weights.mean(dim=1) if average_attn_weights else weights
    else:
        dropout = module.dropout if module.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
    y = F.linear(y.transpose(1, 2).flatten(2), module.out_proj.weight, module.out_proj.bias)
    return (y if module.batch_first else y.transpose(0, 1)), weights


def _projected(module: nn.MultiheadAttention, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """Return queries, keys and values, (B, H, N, D) each; what is made of the same input is made at once."""
    width, heads = plain(module.embed_dim), plain(module.num_heads)
    weight, bias = module.in_proj_weight, module.in_proj_bias

    def made(x: Any, first: int, count: int) -> Any:
        rows = slice(first * width or None, None if first + count == 3 else (first + count) * width)
        whole = count == 3
        parts = (weight, bias) if whole else (weight[rows], None if bias is None else bias[rows])
        x = x if module.batch_first else x.transpose(0, 1)
        y = F.linear(x, *parts).unflatten(-1, (count, heads, width // heads))
        return y.permute(2, 0, 3, 1, 4).unbind(0)

    if query is key is value:
        q, k, v = made(query, 0, 3)
    elif key is value:
        (q,), (k, v) = made(query, 0, 1), made(key, 1, 2)
    else:
        (q,), (k,), (v,) = made(query, 0, 1), made(key, 1, 1), made(value, 2, 1)
    return q, k, v


def _added(mask: Any, x: Any) -> Any:
    """Return a mask as what is added to scores: (N, N) as it is, that of each example (B, N) as (B, 1, 1, N)."""
    if mask is None:
        return None
    if _of(mask).dtype is torch.bool:
        mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(mask, float("-inf"))
    return mask


def _joined(pairs: Any, examples: Any) -> Any:
    examples = None if examples is None else examples[:, None, None, :]
    if pairs is None or examples is None:
        return examples if pairs is None else pairs
    return pairs + examples


def _of(value: Any) -> Tensor:
    node = value.node if isinstance(value, fx.Proxy) else value
    found: Tensor = node.meta["value"] if isinstance(node, fx.Node) else node
    return found
