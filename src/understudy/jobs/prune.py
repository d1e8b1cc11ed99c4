"""DECORE's loop: agents and network learn together, then channels go. It is continued after any interruption.

decore/loop.checkpoint.pt   the state of every epoch, while agents learn
decore/network.safetensors  the network that learned with the agents, all channels still there
decore/architecture.json    which channels stay; written last
policy.safetensors          the agents' weights, by group
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from understudy.config.methods import Decore
from understudy.config.training import Final
from understudy.core.architecture import Architecture, Group
from understudy.core.errors import ConfigError, DamageError, ModelError, RunError, SurgeryError
from understudy.core.figures import amount, share
from understudy.core.files import read_json, understood, write_json
from understudy.core.goal import Budgets
from understudy.core.nested import called, first, mapped
from understudy.cost import predict as cost
from understudy.graph.analysis import Analysis
from understudy.graph.copies import copied
from understudy.graph.seeds import seeded
from understudy.jobs.latency import Latencies
from understudy.jobs.task import Task
from understudy.methods.decore import Agents, Rules, Steering, Usage, chosen, expected, saturated
from understudy.models.weights import load_kept, save_weights, write_tensors
from understudy.report.progress import Display
from understudy.runs.folder import Run
from understudy.surgery import build as surgery
from understudy.surgery.gated import Gated
from understudy.training.evaluator import Evaluator, Recipe
from understudy.training.loop import Progress, batches, train

_LOOK = 10  # steps, of which the first and the last are followed by a look at the cost
_TOLERANCE = 1e-4  # of the largest output, in float32: masked and sliced sum in another order
_LATE = 1.25  # times the budget that the expected cost may be at the end of the loop, without a warning
_NO_SIGNAL = 0.1  # of the teacher's score above chance, under which masked outputs tell agents nothing
_EVERYWHERE = ("parameters", "macs", "size_mb", "latency_ms")  # each layer adds to these, few to the peak of memory


class Pruning:
    """One DECORE loop in one run folder.

    Raises:
        ConfigError: no group of channels can have agents.
    """

    def __init__(
        self, task: Task, run: Run, evaluator: Evaluator, budgets: Budgets, display: Display, *, latencies: Latencies
    ) -> None:
        self.method = cast(Decore, task.settings.method)
        self.rules = Rules.of(self.method)
        self.task, self.run, self.evaluator = task, run, evaluator
        self.budgets, self.display, self.latencies = budgets, display, latencies
        self.folder = run.folder / "decore"

    def result(self) -> tuple[Evaluator, Architecture]:
        """Return the evaluator whose students inherit from the network that learned, and which channels stay.

        Raises:
            RunError: the training failed.
            SurgeryError: masked and sliced network disagree; nothing is saved then.
        """
        network = copied(self.task.analysis.teacher)
        weights, plan = self.folder / "network.safetensors", self.folder / "architecture.json"
        if not (weights.is_file() and plan.is_file()):
            self._learn(network)
        self._checkpoint.unlink(missing_ok=True)
        try:
            load_kept(network, weights)
        except ModelError as error:
            raise DamageError(str(error)) from error
        known = read_json(plan, DamageError)
        with understood(plan, DamageError):
            architecture = Architecture.from_json(self.task.space, json.dumps(known))
        evaluator = replace(self.evaluator, analysis=self.analysed(network), teacher=self.task.network)
        return evaluator, architecture

    def _learn(self, network: nn.Module) -> None:
        """Let agents and network learn, choose the channels, and save both once they are proven."""
        method, evaluator = self.method, self.evaluator
        recipe = evaluator.final_recipe(Final(training=method.training))
        gated = Gated(self.task.analysis, network)
        groups, slots = self._decided(gated)
        steps = method.training.epochs * len(batches(torch.arange(len(recipe.split)), method.training.batch_size))
        known = torch.from_numpy(self.task.analysis.magnitudes)[slots]
        usage = self._usage()
        by_cost = self.rules.worth == "cost" and self._each_layer_costs()
        agents = Agents(
            groups,
            self.rules,
            examples=len(recipe.split),
            steps=steps,
            magnitudes=known,
            together=by_cost,
            each=None if self._by_labels else self.task.aim.each,
        )
        learner = Learner(gated, agents, slots)
        steering = Steering(
            settings=self.rules, space=self.task.space, groups=groups, steps=steps, usage=usage, by_cost=by_cost
        )
        self.train_network(learner, steering, recipe)
        self._warn_if_late(learner.agents, steering)
        self._warn_of_chance(learner.agents)
        network.eval().cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        learner.cpu()
        analysis = self.analysed(network)
        weights = agents.weights
        magnitudes = torch.from_numpy(analysis.magnitudes)[learner.slots]
        architecture = self._chosen(groups, weights, magnitudes, usage)
        self._prove(analysis, architecture, gated)
        parts = weights.split([group.width // group.step for group in groups])
        policy = {group.name: part.contiguous() for group, part in zip(groups, parts, strict=True)}
        write_tensors(self.run.policy, policy)
        save_weights(self.folder / "network.safetensors", network)
        write_json(self.folder / "architecture.json", json.loads(architecture.to_json()))

    def _decided(self, gated: Gated) -> tuple[tuple[Group, ...], Tensor]:
        """Return the groups that agents can decide on, and the slot of each agent."""
        groups, able = self.task.analysis.groups, []
        for group, slots in zip(groups.groups, groups.slots_of, strict=True):
            reason = next((gated.unmasked[s] for s in slots.tolist() if s in gated.unmasked), None)
            if reason is None:
                able.append((group, slots))
            else:
                self.display.warn(f"group {group.name} keeps its {group.width} channels: {reason}")
        if not able:
            raise ConfigError(
                "DECORE needs a group of channels that masks can drop, but this teacher has none; see inspect"
            )
        return tuple(group for group, _ in able), torch.from_numpy(np.concatenate([slots for _, slots in able]))

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "loop.checkpoint.pt"

    def analysed(self, network: nn.Module) -> Analysis:
        """Return the analysis of a network that has learned with the agents."""
        return self.task.analysis.of(network)

    def _warn_if_late(self, agents: Agents, steering: Steering) -> None:
        """Warn if channels are removed that their agents would keep."""
        if steering.usage is None:
            return
        used = max(steering.usage(expected(self.task.space, steering.groups, agents.chances)))
        if used > _LATE:
            self.display.warn(
                f"the agents did not reach the budget (their expected cost is {used:.2f}x of it), so channels that "
                f"they would keep are removed; increase decore.training.epochs or decore.agent_lr "
                f"(it was {agents.rate:.3g})"
            )

    def _warn_of_chance(self, agents: Agents) -> None:
        """Warn if the masked network fell to chance level."""
        if not self._by_labels:
            return
        guess, reached = 1.0 / len(self.task.data.classes), float(agents.score)
        if reached - guess < _NO_SIGNAL * (self.evaluator.teacher_score - guess):
            self.display.warn(
                f"the masked network's score fell to {share(reached)} (chance level is {share(guess)}), so the "
                f"agents' learning signal has vanished; increase decore.training.epochs"
            )

    @property
    def _by_labels(self) -> bool:
        return self.task.aim.objective.name == "classification" and self.task.data.has_targets

    def train_network(self, learner: Learner, steering: Steering, recipe: Recipe) -> None:
        """Train network and agents together, epoch by epoch, or go on."""
        training, evaluator, steered = self.method.training, self.evaluator, steering.usage is not None
        report = _Report(self.task, self.display, learner.agents, steering.groups, steered=steered)
        done: int | None = None

        def on_step(logits: Tensor, labels: Any, indices: Tensor) -> None:
            nonlocal done
            learner.learn(logits, labels, indices)
            # Read from the device once, then counted here: a step waits for nothing.
            done = int(learner.agents.steps) if done is None else done + 1
            if done % _LOOK in (0, 1):
                steering(learner.agents)

        steering(learner.agents)
        self.folder.mkdir(exist_ok=True)
        if recipe.logits is not None:
            with self.display.steps(
                "teacher logits for the agents", training.epochs, unit="epochs", after=report.after
            ):
                recipe.logits.prepare(training.epochs, on_part=self.display.step)
        with self.display.steps("agents learn", training.epochs, unit="epochs", after=report.after):
            outcome = train(
                learner,
                recipe.split,
                training,
                normalise=self.task.data.normalise,
                views=recipe.views,
                compute=evaluator.compute,
                seed=evaluator.seed,
                aim=evaluator.aim,
                logits=None if recipe.logits is None else recipe.logits.epoch,
                on_step=on_step,
                on_epoch=report,
                on_part=self.display.step,
                checkpoint=self._checkpoint,
            )
        if outcome.status != "ok":
            raise RunError(f"the training of network and agents must succeed, but it failed: {outcome.error}")

    def _usage(self) -> Usage | None:
        """Return how much of each budget an architecture uses; its latency is estimated."""
        if not self.budgets.limits():
            return None

        def usage(architecture: Architecture) -> list[float]:
            predicted = self.latencies.predict(architecture)
            if predicted is None:
                raise SurgeryError(f"fewer channels must leave a network, but {architecture.digest} cannot be built")
            return [used for _, used in self.budgets.used(predicted)]

        return usage

    def _each_layer_costs(self) -> bool:
        limits = self.budgets.limits()
        return bool(limits) and all(name in _EVERYWHERE for name, _ in limits)

    def _chosen(
        self, groups: Sequence[Group], weights: Tensor, magnitudes: Tensor, usage: Usage | None
    ) -> Architecture:
        """Return the channels that stay; an estimate that promised too little latency is corrected by measuring."""
        factor, most = 1.0, self.budgets.latency_ms
        for _ in range(5):
            scaled = None if usage is None else lambda a, factor=factor: [factor * used for used in usage(a)]
            architecture = chosen(self.task.space, groups, weights, magnitudes, self.task.settings.widths, scaled)
            if most is None:
                return architecture
            measured, _ = self.latencies.of(architecture)
            if measured <= 0.97 * most:
                return architecture
            factor *= 1.03 * measured / most
        return architecture

    def _prove(self, analysis: Analysis, architecture: Architecture, gated: Gated) -> None:
        """Refuse to go on unless the network with masks answers as the sliced one does."""
        images, _ = self.task.data.val.batch(torch.arange(min(8, len(self.task.data.val))))
        images = self.task.data.normalise(mapped(images, lambda tensor: tensor.cpu()))
        student = surgery.build(analysis, architecture).eval()
        kept = torch.from_numpy(surgery.kept_slots(analysis, architecture))[:-1]
        answers = []
        gated.eval().mask(kept[None].float())
        for network in (gated, student):
            with torch.no_grad(), seeded():  # some draw random numbers
                answers.append(self.task.aim.read(called(network, images)))
        masked, sliced = answers
        worst, scale = float((masked - sliced).abs().max()), float(masked.abs().max())
        if not worst <= _TOLERANCE * max(scale, 1e-12):
            raise SurgeryError(
                f"the sliced network must answer as the masked one, but outputs of up to {scale:.3g} "
                f"differ by {worst:.3g}"
            )
        self.display.say(f"masked equals sliced: outputs of up to {scale:.3g} differ by {worst:.1e} at most")


class Learner(nn.Module):
    """A network and its agents: what the training loop trains. In evaluation mode channels with p < 1/2 are dropped.

    Args:
        gated: the network.
        agents: A of them.
        slots: (A,), where in the analysis each agent's channel is.
    """

    slots: Tensor

    def __init__(self, gated: Gated, agents: Agents, slots: Tensor) -> None:
        super().__init__()
        self.gated, self.agents = gated, agents
        self.register_buffer("slots", slots, persistent=False)
        self._actions: Tensor | None = None

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the network gives with masks drawn by the agents."""
        agents = self.agents
        actions = agents.draw(len(first((inputs, named)))) if self.training else (agents.weights >= 0).float()[None]
        kept = actions.new_ones(len(actions), self.gated.slots).index_copy_(1, self.slots, actions)
        self.gated.mask(kept)
        self._actions = actions
        return self.gated(*inputs, **named)

    def learn(self, logits: Tensor, labels: Any, indices: Tensor) -> None:
        """Let the agents learn from what their last actions led to; see `Agents.learn`."""
        assert self._actions is not None
        self.agents.learn(self._actions, logits, labels, indices)


class _Report:
    """Tells after each epoch where agents and network are, and warns of what is known to fail."""

    def __init__(self, task: Task, display: Display, agents: Agents, groups: Sequence[Group], *, steered: bool) -> None:
        self._task, self._display, self._agents, self._groups = task, display, agents, groups
        self._steered = steered
        self._warned: set[str] = set()
        self._epoch: float | None = None  # seconds of one

    def after(self) -> float | None:
        """Return the seconds of the final training; an epoch without agents costs a little less than one with them."""
        final, workers = self._task.settings.final, self._task.settings.device.workers
        return (
            None if self._epoch is None else self._epoch * final.training.epochs * -(-final.students // max(workers, 1))
        )

    def __call__(self, progress: Progress) -> bool:
        agents = self._agents
        chances, penalty = agents.chances, float(agents.penalty)
        likely = cost.predict(self._task.analysis, expected(self._task.space, self._groups, chances))
        stuck = float(saturated(agents.weights, agents.settings.limit).float().mean())
        self._epoch = progress.seconds / progress.epoch
        left = self._epoch * (progress.epochs - progress.epoch)
        pays = max(penalty, 0.0) / (1.0 + max(penalty, 0.0))
        self._display.step(progress.epoch, left=left)
        self._display.say(
            f"epoch {progress.epoch}/{progress.epochs}  {int((chances >= 0.5).sum())}/{len(chances)} channels kept  "
            f"expected {amount(likely.parameters)} parameters, {amount(likely.macs)} MACs  "
            f"score {share(float(agents.score))} with masks  reward {float(agents.reward):+.3g}  "
            f"penalty {penalty:.3g} (dropping pays above {share(pays)})  {share(stuck)} saturated"
            + f"  {self._display.rest(left)}"
        )
        numbers = {"kept": float((chances >= 0.5).float().mean()), "score": float(agents.score), "penalty": penalty}
        numbers |= {"reward": float(agents.reward), "parameters": float(likely.parameters), "macs": float(likely.macs)}
        self._display.numbers({f"agents/{name}": value for name, value in numbers.items()}, progress.epoch)
        if float(agents.score) <= pays and not self._steered:
            right = float(agents.score)
            self._warn(
                f"dropping does not pay: {share(right)} of the answers are right, but with a penalty of {penalty:.4g} "
                f"it takes more than {share(pays)}; give a penalty under {right / max(1 - right, 1e-9):.3g} or a budget"
            )
        if bool((agents.weights >= min(agents.settings.initial, 6.9)).all()):
            self._warn(
                "every agent still keeps its channel with p >= 0.999, so hardly any drop is tried: "
                "increase decore.training.epochs or decore.agent_lr"
            )
        return True

    def _warn(self, line: str) -> None:
        if line[:20] not in self._warned:
            self._warned.add(line[:20])
            self._display.warn(line)
