"""The papers' own configurations, each one word away. No torch."""

from __future__ import annotations

from understudy.config.job import Compression
from understudy.config.methods import N2N, ArchComp, Decore
from understudy.config.training import Candidates, Final, Training
from understudy.config.widths import Widths
from understudy.core.errors import ConfigError, did_you_mean


def paper(method: str) -> Compression:
    """Return a method as its paper has it: the search, and the training of candidates and final students.

    n2n (Ashok et al., 2018): two stages of up to 100 updates of 5 rollouts, single layers removed, widths by factors
    of 0.1 to 1.0; candidates have fresh weights and 5 epochs on all examples by Adam, learning rate and weight decay
    5e-4. decore (Alwani et al., 2022): 260 epochs with agents, 40 of fine-tuning, batches of 256. archcomp (Ashok,
    2019) states no training: that of students stays as it is here.

    Raises:
        ConfigError: there is no paper of that method.
    """
    known = ("n2n", "decore", "archcomp")
    if not isinstance(method, str) or method not in known:
        raise ConfigError(
            f"a method with a paper must be one of {', '.join(known)}, but got {method!r}{did_you_mean(method, known)}"
        )
    if method == "n2n":
        taught = Training(
            epochs=5, optimizer="adam", lr=0.0005, weight_decay=0.0005, schedule="constant", gradient_clip=0.0
        )
        settled = Training(
            epochs=30, optimizer="adam", lr=0.0005, weight_decay=0.0005, schedule="constant", loss="mse+ce"
        )
        return Compression(
            method=N2N.paper(),
            widths=Widths(factors=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), round_to=1, min_width=10),
            candidates=Candidates(training=taught, examples=0, weights="fresh", stop_below=0.0),
            final=Final(training=settled, weights="fresh"),
        )
    if method == "decore":
        tuned = Training(epochs=40, batch_size=256, lr=0.001, schedule="constant", loss="ce")
        return Compression(method=Decore.paper(), final=Final(students=1, training=tuned))
    return Compression(method=ArchComp.paper())
