"""Operation -> how it carries, ties and slices channels.

One function for each kind of operation, registered for the modules, functions and tensor methods that
are of this kind. What is not in the tables freezes what it touches: never guess.
"""

from understudy.graph.rules import (
    along,
    distances,
    functional,
    layers,
    movement,
    parts,
    picked,
    pointwise,
    products,
    recurrent,
    shuffles,
    sizes,
    spatial,
    sums,
)

__all__ = [
    "along",
    "distances",
    "functional",
    "layers",
    "movement",
    "parts",
    "picked",
    "pointwise",
    "products",
    "recurrent",
    "shuffles",
    "sizes",
    "spatial",
    "sums",
]
