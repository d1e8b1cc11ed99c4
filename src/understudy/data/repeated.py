"""Examples of one split that lie in another one as well: whoever is judged by them is judged by what was learned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from understudy.core.nested import leaves
from understudy.data.split import AnySplit, Split

_MOST = 2**31  # bytes of a split that are compared, a few seconds


def repeated(split: AnySplit, known: AnySplit) -> int:
    """Return how many examples of a split have the same inputs, bit for bit, as one of another split.

    0 where one of them is decoded only when it is asked for, or has more than 2 GiB.
    """
    if not isinstance(split, Split) or not isinstance(known, Split) or max(map(_bytes, (split, known))) > _MOST:
        return 0
    seen = set(_digests(known))
    return sum(digest in seen for digest in _digests(split))


def _bytes(split: Split) -> int:
    return sum(tensor.nbytes for _, tensor in leaves(split.images))


def _digests(split: Split) -> Iterator[bytes]:
    arrays = [tensor.cpu().contiguous().numpy() for _, tensor in leaves(split.images)]
    for parts in zip(*arrays, strict=True):
        yield hashlib.blake2b(b"".join(part.tobytes() for part in parts), digest_size=16).digest()
