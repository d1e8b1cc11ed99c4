from __future__ import annotations

from dataclasses import fields

import pytest

import understudy as us
from understudy.config.methods import ArchComp, Decore, OptunaSearch, RandomSearch, UniformWidth
from understudy.core.errors import ConfigError
from understudy.methods.decore import PAPER as DECORE
from understudy.methods.decore import Rules
from understudy.methods.n2n.rules import HIDDEN, PAPER


def test_n2n_is_the_papers() -> None:
    job = us.paper("n2n")
    method, widths, training = job.method, job.widths, job.candidates.training
    assert method == us.N2N.paper() and isinstance(method, us.N2N)
    assert (method.removal_updates, method.shrinkage_updates, method.rollouts, HIDDEN) == (100, 100, 5, 30)
    assert (method.lr, PAPER.phase_updates, method.granularity, method.rules) == (0.003, 15, "layers", "paper")
    assert (method.revisit, method.draws_per_rollout, method.capped, us.N2N().capped) == (0.0, 1, False, True)
    assert widths.factors == tuple(tenth / 10 for tenth in range(1, 11))
    # One gradient step for each update, by its mean reward less the earlier ones', and nothing but the reward steers.
    assert (PAPER.replay, PAPER.gradient_steps, PAPER.per_rollout, PAPER.entropy_bonus) == (1, 1, False, 0.0)
    helps = (PAPER.calibrate, PAPER.resamples, PAPER.repair, PAPER.fill, PAPER.look_ahead, PAPER.keep_bias)
    assert not any(helps)
    assert (PAPER.scaled, PAPER.harmonics) == (False, 0)
    assert (training.optimizer, training.lr, training.weight_decay, training.schedule) == (
        "adam",
        5e-4,
        5e-4,
        "constant",
    )
    assert (training.epochs, training.loss) == (5, "mse")
    assert (job.candidates.weights, job.candidates.examples, job.candidates.stop_below) == ("fresh", 0, 0.0)
    assert (job.final.weights, job.final.training.loss, job.final.training.lr) == ("fresh", "mse+ce", 5e-4)


def test_decore_is_the_papers() -> None:
    job = us.paper("decore")
    assert job.method == Decore.paper() and isinstance(job.method, Decore)
    assert (job.method.penalty, job.method.training.epochs, job.method.training.batch_size) == (200.0, 260, 256)
    assert (job.method.training.loss, job.final.training.epochs, job.final.students) == ("ce", 40, 1)
    assert Rules.of(job.method) == DECORE
    assert (DECORE.agent_lr, DECORE.initial, DECORE.score, DECORE.worth) == (0.01, 6.9, "right", "channel")
    assert not any((DECORE.importance, DECORE.pooled, DECORE.pooled_layers, DECORE.limit)) and DECORE.baseline == "none"
    assert (job.widths.round_to, job.widths.min_width) == (1, 1)


def test_archcomp_learns_its_embedding_from_nothing() -> None:
    assert us.paper("archcomp").method == ArchComp.paper() == ArchComp(rules="paper")


def test_other_methods_have_no_paper() -> None:
    with pytest.raises(ConfigError, match=r"one of n2n, decore, archcomp, but got 'n2m' \(did you mean 'n2n'\?\)"):
        us.paper("n2m")


def test_settings_are_few() -> None:
    methods = (us.N2N, Decore, ArchComp, RandomSearch, OptunaSearch, UniformWidth)
    shared = (us.Compression, us.Goal, us.Widths, us.Candidates, us.Final, us.Training, us.Augmentation, us.Device)
    leaves = {
        kind: [f.name for f in fields(kind) if f.name not in _TABLES and f.default_factory is not us.Device]
        for kind in (*methods, *shared, us.Teaching)
    }
    assert len(leaves[us.N2N]) <= 8
    assert sum(map(len, leaves.values())) <= 62  # since it was cut to 60: the goal in 8 bits, looks of archcomp


_TABLES = ("method", "goal", "widths", "augmentation", "candidates", "final", "training")
