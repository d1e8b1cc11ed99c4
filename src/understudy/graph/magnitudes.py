"""How large the weights of each channel are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from understudy.graph.channels import FIXED
from understudy.graph.copies import tensor_at
from understudy.graph.groups import Groups


def slot_magnitudes(groups: Groups) -> npt.NDArray[np.float64]:
    """Return the mean squared weight of each slot, (slots,), each parameter scaled to a mean of 1.

    All parameters that have a slot count alike: the filters that emit it, its norm's scale, the filters
    that read it (the group magnitude of Fang et al., 2023).
    """
    total = np.zeros(groups.slots)
    for name, plan in groups.parameters.items():
        cut = [(dim, labels) for dim, labels in enumerate(plan.dims) if isinstance(labels, np.ndarray)]
        if not cut or name.endswith(("running_mean", "running_var", "bias")):
            continue
        squared = tensor_at(groups.trace.teacher, name).detach().cpu().double().square()  # MPS has no doubles
        for dim, labels in cut:
            others = [d for d in range(squared.dim()) if d != dim]
            means = (squared.mean(others) if others else squared).numpy()
            means = means / max(means.mean(), 1e-12)
            known = labels != FIXED
            np.add.at(total, labels[known], means[known])
    return total
