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

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def can_be_opened(module: nn.Module) -> bool:
    """Return whether a module is attention that adds nothing to keys and values."""
    if type(module) is not nn.MultiheadAttention or "forward" in vars(module):
        return False
    return module.bias_k is None and not module.add_zero_attn


def is_followed(query: Any, key: Any, value: Any, *, attn_mask: Any = None, **_: Any) -> bool:
    """Return whether a call is of batches (B, N, E), with a mask (N, N) or one for each head (B * H, N, N), if any."""
    batches = all(isinstance(x, fx.Node) and _of(x).dim() == 3 for x in (query, key, value))
    return batches and (attn_mask is None or _of(attn_mask).dim() in (2, 3))


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
    width = plain(module.embed_dim)
    if query.shape[-1] != width:
        raise TraceError(f"attention takes {width} channels, but got {tuple(_of(query).shape)}")
    masks = _of_heads(attn_mask, module.num_heads), key_padding_mask, is_causal
    dropout = module.dropout, module.training
    y, weights = _weighed(
        _projected(module, query, key, value), masks, dropout, average_attn_weights if need_weights else None
    )
    y = F.linear(y, module.out_proj.weight, module.out_proj.bias)
    return (y if module.batch_first else y.transpose(0, 1)), weights


def called(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Return what the function of torch does, for inputs (N, B, E) and with weights in one or apart.

    Raises:
        TraceError: it adds something to keys and values, or its inputs or masks are of other dimensions.
    """
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    inputs = {name[0]: given[name] for name in ("query", "key", "value")}
    added = [given[name] for name in ("bias_k", "bias_v", "add_zero_attn", "static_k", "static_v")]
    adds = any(value is not None and value is not False for value in added)
    if adds or any(_of(x).dim() != 3 for x in inputs.values()):
        raise TraceError("attention adds something to keys and values, or gets inputs without a batch")
    width, bias, heads = _of(inputs["q"]).shape[-1], given["in_proj_bias"], given["num_heads"]
    masks = _of_heads(given["attn_mask"], heads), given["key_padding_mask"], given["is_causal"]
    made = []
    for place, (name, x) in enumerate(inputs.items()):
        rows = slice(place * width or None, None if place == 2 else (place + 1) * width)
        weight = given[f"{name}_proj_weight"] if given["use_separate_proj_weight"] else given["in_proj_weight"][rows]
        y = F.linear(x, weight, None if bias is None else bias[rows])
        made.append(y.unflatten(-1, (heads, width // heads)).permute(1, 2, 0, 3))
    average = given["average_attn_weights"] if given["need_weights"] else None
    y, weights = _weighed((made[0], made[1], made[2]), masks, (given["dropout_p"], given["training"]), average)
    return F.linear(y, given["out_proj_weight"], given["out_proj_bias"]).transpose(0, 1), weights


def _weighed(
    heads: tuple[Any, Any, Any], masks: tuple[Any, Any, bool], dropout: tuple[float, bool], average: bool | None
) -> tuple[Any, Any]:
    """Return what queries, keys and values (B, H, N, D) give, (B, N, H * D), and the weights, averaged or not, if any.

    Args:
        heads: the three.
        masks: for pairs, for keys, and whether the first is causal.
        dropout: its rate, and whether it is on.
        average: whether weights are averaged over heads; None to return none.
    """
    (q, k, v), (pairs, padding, causal), (rate, on) = heads, masks, dropout
    causal = causal and padding is None and average is None
    mask, weights = None if causal else _joined(_added(pairs, q), _added(padding, q)), None
    if average is not None:
        scores = (q * math.sqrt(1.0 / _of(q).shape[-1])) @ k.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(dim=-1)
        weights = F.dropout(weights, p=rate, training=on)
        y = weights @ v
        weights = weights.mean(dim=1) if average else weights
    else:
        rate = rate if on else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate, is_causal=causal)
    return y.transpose(1, 2).flatten(2), weights


def _projected(module: nn.MultiheadAttention, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """Return queries, keys and values, (B, H, N, D) each; what is made of the same input is made at once."""
    width, heads = plain(module.embed_dim), plain(module.num_heads)
    weight, bias = module.in_proj_weight, module.in_proj_bias
    apart = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight

    def made(x: Any, first: int, count: int) -> Any:
        rows = slice(first * width or None, None if first + count == 3 else (first + count) * width)
        parts: tuple[Any, Any] = (weight, bias)
        if count < 3:
            own = apart[first] if weight is None else weight[rows]
            parts = own, None if bias is None else bias[rows]
        x = x if module.batch_first else x.transpose(0, 1)
        y = F.linear(x, *parts).unflatten(-1, (count, heads, width // heads))
        return y.permute(2, 0, 3, 1, 4).unbind(0)

    if weight is not None and query is key is value:
        q, k, v = made(query, 0, 3)
    elif weight is not None and key is value:
        (q,), (k, v) = made(query, 0, 1), made(key, 1, 2)
    else:
        (q,), (k,), (v,) = made(query, 0, 1), made(key, 1, 1), made(value, 2, 1)
    return q, k, v


def _of_heads(mask: Any, heads: int) -> Any:
    """Return a mask (N, N) as it is, one for each head (B * H, N, N) as (B, H, N, N)."""
    return mask if mask is None or _of(mask).dim() == 2 else mask.unflatten(0, (-1, heads))


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
