"""Labels that were tied, by the number of what they stay or go with: slots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from understudy.graph.channels import FIXED, Labelled, Labels, ParameterPlan, Part, Plan
from understudy.graph.fake import map_structure

Reasons = dict[int, tuple[str, str]]  # of slots: why, and the line


def by_slot(found: list[tuple[Labels, str, str]], slots: Labels) -> Reasons:
    """Return the first reason and line of each slot."""
    reasons: Reasons = {}
    for labels, reason, source in found:
        for slot in renamed(labels, slots).tolist():
            reasons.setdefault(slot, (reason, source))
    return reasons


def renamed(labels: Labels, slots: Labels) -> Labels:
    """Return labels as slots: `slots` has that of every label."""
    if not slots.size:
        return labels
    return np.where(labels == FIXED, FIXED, slots[np.maximum(labels, 0)])


def renamed_plan(plan: Plan, slots: Labels) -> Plan:
    """Return what a pass found, in slots."""

    def dims(p: ParameterPlan) -> tuple[Labels | int, ...]:
        return tuple(renamed(d, slots) if isinstance(d, np.ndarray) else d for d in p.dims)

    def count(labels: Labels | tuple[Labels, ...]) -> Labels | tuple[Labels, ...]:
        return tuple(renamed(x, slots) for x in labels) if isinstance(labels, tuple) else renamed(labels, slots)

    def value(v: Any) -> Any:
        return Labelled(v.shape, renamed(v.labels, slots)) if isinstance(v, Labelled) else v

    def part(p: Part) -> Part:
        return Part(
            parameters={name: replace(q, dims=dims(q)) for name, q in p.parameters.items()},
            attributes=[replace(a, labels=renamed(a.labels, slots)) for a in p.attributes],
            work=[replace(w, factors=tuple(renamed(f, slots) for f in w.factors)) for w in p.work],
            sizes=[replace(s, labels=count(s.labels)) for s in p.sizes],
            statistic=p.statistic,
            feeds_back=None if p.feeds_back is None else renamed(p.feeds_back, slots),
        )

    return Plan(
        values={node: map_structure(v, value) for node, v in plan.values.items()},
        parts={node: part(p) for node, p in plan.parts.items()},
        sizes={node: np.unique(renamed(labels, slots)) for node, labels in plan.sizes.items()},
        measured=plan.measured,
    )
