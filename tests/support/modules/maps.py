"""Maps as people move them: warped by a flow, resized, taken into patches, met by tables of another size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.modules.base import Case
from tests.support.modules.written import Written, weight


def _warped(net: Any, x: Tensor) -> Tensor:
    """A map at the places that a flow points to, where these lie inside, as in PWC-Net."""
    first, second = net.stem(x), net.stem(x.flip(-1))
    b, _, h, w = first.size()
    across, down = torch.arange(w).view(1, -1).repeat(h, 1), torch.arange(h).view(-1, 1).repeat(1, w)
    places = torch.stack((across, down))[None].repeat(b, 1, 1, 1).float() + net.flow(torch.cat([first, second], 1))
    places = (2 * places.permute(0, 2, 3, 1) + 1) / torch.tensor([w, h]) - 1
    inside = F.grid_sample(torch.ones(second.size()), places, align_corners=False)
    inside[inside < 0.999] = 0
    inside[inside > 0] = 1
    return net.tail(torch.relu(first + F.grid_sample(second, places, align_corners=False) * inside))


def _transformed(net: Any, x: Tensor) -> Tensor:
    """A spatial transformer over a map."""
    y = torch.relu(net.stem(x))
    turned = F.affine_grid(net.angles(y.mean((2, 3))).view(-1, 2, 3), y.size(), align_corners=False)
    return net.tail(F.grid_sample(y, turned, padding_mode="border", align_corners=False))


def _deformable(net: Any, x: Tensor) -> Tensor:
    """Queries look at a few places of a map for each head, which lies in the batch."""
    y = net.stem(x)
    b, _, h, w = y.shape
    asked = net.table.weight.unsqueeze(0).expand(b, -1, -1)
    heads, n = net.heads, asked.shape[1]
    values = net.value(y.flatten(2).transpose(1, 2)).view(b, h * w, heads, -1).permute(0, 2, 3, 1)
    places = net.places(asked).view(b, n, heads, 4, 2).transpose(1, 2).flatten(0, 1).tanh()
    weights = net.weights(asked).view(b, n, heads, 4).softmax(-1).transpose(1, 2).reshape(b * heads, 1, n, 4)
    seen = F.grid_sample(values.reshape(b * heads, -1, h, w), places, align_corners=False)
    return net.head((asked + net.out((seen * weights).sum(-1).view(b, -1, n).transpose(1, 2))).mean(1))


def _patches(net: Any, x: Tensor) -> Tensor:
    y = torch.relu(net.stem(x))
    patches = net.mix(F.unfold(y, 2, stride=2).transpose(1, 2)).transpose(1, 2)
    return net.tail(F.fold(torch.relu(patches), y.shape[-2:], 2, stride=2))


def _resized(net: Any, x: Tensor) -> Tensor:
    """Tables and constants of one size over maps of another."""
    y = net.stem(x)
    y = y + F.interpolate(net.table, size=y.shape[-2:], mode="bilinear")
    return net.tail(torch.relu(y * F.interpolate(torch.eye(4)[None, None], size=y.shape[-2:])))


def _positions(net: Any, x: Tensor) -> Tensor:
    """Positions of a ViT of another image size."""
    y = net.stem(x)
    h, w = y.shape[-2:]
    grid = net.table[:, 1:].reshape(1, 3, 3, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(h, w), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
    y = torch.cat([net.token.expand(len(y), -1, -1), y.flatten(2).transpose(1, 2)], 1)
    y = y + torch.cat([net.table[:, :1], grid], 1)
    return net.head((y + net.out(F.gelu(net.up(y))))[:, 0])


def _networks() -> dict[str, Any]:
    def stem(**more: Any) -> dict[str, Any]:
        tail = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
        return {"stem": nn.Conv2d(3, 8, 3, padding=1), "tail": tail, **more}

    flow = nn.Sequential(nn.Conv2d(16, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 3, padding=1))
    return {
        "warped": Written(_warped, **stem(flow=flow)),
        "transformed": Written(
            _transformed, **stem(angles=nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 6)))
        ),
        "deformable": Written(
            _deformable,
            stem=nn.Conv2d(3, 16, 1),
            table=nn.Embedding(5, 16),
            heads=4,
            value=nn.Linear(16, 16),
            places=nn.Linear(16, 4 * 4 * 2),
            weights=nn.Linear(16, 16),
            out=nn.Linear(16, 16),
            head=nn.Linear(16, 3),
        ),
        "patches": Written(_patches, **stem(mix=nn.Linear(32, 32))),
        "folded": Written(
            lambda n, x: n.tail(n.fold(n.unfold(torch.relu(n.stem(x))))),
            **stem(unfold=nn.Unfold(3, padding=1), fold=nn.Fold((6, 6), 3, padding=1)),
        ),
        "resized": Written(_resized, **stem(table=weight(1, 8, 4, 4))),
        "positions": Written(
            _positions,
            stem=nn.Conv2d(3, 8, 1),
            token=weight(1, 1, 8),
            table=weight(1, 10, 8),
            up=nn.Linear(8, 16),
            out=nn.Linear(16, 8),
            head=nn.Linear(8, 3),
        ),
    }


def _make(name: str) -> nn.Module:
    made: nn.Module = _networks()[name]
    return made


CASES = [Case(f"map_{name}", lambda name=name: _make(name)) for name in _networks()]  # type: ignore[misc]
