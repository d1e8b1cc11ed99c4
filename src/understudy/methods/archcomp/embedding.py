"""The networks of architecture compression (Ashok, 2019, arXiv 1902.03326): an embedding of architectures.

A 1-D CNN along the depth of the teacher maps an architecture's columns to a few numbers for each layer, a
second one maps those back to decisions, and heads regress cost and score. Everything is float64.
`docs/archcomp.md` numbers every choice with its source.

Shapes: B = architectures, D = decisions, K = classes of one, L = columns, I = entries of a column, C = channels
of the embedding, H = hidden channels, F = figures of cost, P = features of score, N = known scores,
M = draws of a forecast, in the order of the suffix.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Space
from understudy.core.errors import ConfigError
from understudy.methods.archcomp.rules import TUNED, Rules
from understudy.methods.surrogate.columns import CHANGING, Columns
from understudy.methods.surrogate.regression import Forecast

FIGURES = ("parameters", "macs", "weight_bytes")  # of Cost, which the cost head predicts
_SHARPNESS = 4.0  # how fast a class becomes unlikely with its distance from where the decoder is, in squared classes
# Where fits start, by entry of a column: its scale in the embedding, its value in the teacher, and the power with
# which a layer's cost grows with it; by kind of decision: how its place among the classes is read from its entry.
_SCALES = {"kept": 1.0, "width": 4.0, "kernel": 1.5, "log width": 2.0, "arriving": 2.0, "larger": 0.5}
_TEACHERS = {"kept": 1.0, "width": 1.0, "kernel": 1.0, "log width": 1.0, "arriving": 1.0, "larger": 0.0}
_EXPONENTS = {"kept": 5.0, "kernel": 2.0, "log width": 2.0, "arriving": 2.0, "larger": 2.0 * math.log(2.0)}
_READ = {"unit": (0.5, 0.0), "width": (1.0, -0.5), "kernel": (0.9, -0.4)}


@dataclass
class Known:
    """What the embedding is fitted to: architectures with costs, and the few that were trained."""

    choices_BD: Int[Tensor, "b d"]
    logs_BF: Float[Tensor, "b f"]  # log shares of the teacher's figures; nan for what cannot be built
    trained_ND: Int[Tensor, "n d"]
    scores_N: Float[Tensor, " n"]  # shares of the teacher's score


class Embedding(nn.Module):
    """Encoder, decoder and heads. Draws nothing itself: a generator is passed in."""

    def __init__(self, columns: Columns, rules: Rules = TUNED) -> None:
        super().__init__()
        self._columns, self._rules = columns, rules
        entries, channels, hidden = columns.entries, rules.channels, rules.hidden
        # On the meta device nothing is drawn: initial weights come from the searcher's own generator.
        with torch.device("meta"):
            self.encoder = _Residual(entries, hidden, channels)
            self.decoder = _Residual(channels, hidden, max(len(columns.slot_kinds), 1))
            self.cost = _Products(channels, hidden, len(columns.rows))
            self.traits = nn.Conv1d(channels, hidden, 3, padding=1)
            self.score = nn.Linear((channels + hidden) * len(columns.rows), 1)
        self.double().to_empty(device="cpu")
        self._at_D, self._slots_D = torch.tensor(columns.at), torch.tensor(columns.slots)
        self._class_K = torch.arange(columns.legal_DK.shape[1], dtype=torch.float64)

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw every layer as torch does, uniform in +-1 / sqrt(inputs); what adds to a skip starts at 0.

        But what is known from the start is where the first channels of an informed embedding start: the entries of a
        column that change, how decisions are read from them, and that a layer costs the product of its widths.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(("last.weight", "bias")) or name.startswith(("score", "cost.exponents", "cost.levels")):
                nn.init.zeros_(parameter)
            else:
                bound = 1.0 / math.sqrt(parameter[0].numel())
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        if self._rules.informed:
            with torch.no_grad():
                self._start_from_what_is_known()

    def _start_from_what_is_known(self) -> None:
        skip, decide = self.encoder.skip.weight[..., 0], self.decoder.skip
        assert decide.bias is not None
        self.cost.levels.copy_(self._columns.share_L.clamp_min(1e-9).log().expand_as(self.cost.levels))
        for channel, name in enumerate(CHANGING[: len(skip)]):
            scale, entry = _SCALES[name], len(CHANGING) - channel
            skip[channel], skip[channel, -entry] = 0.0, scale
            for slot, kind in enumerate(self._columns.slot_kinds):
                slope, level = _READ[kind]
                if name == {"unit": "kept"}.get(kind, kind):
                    decide.weight[slot], decide.weight[slot, channel], decide.bias[slot] = 0.0, slope / scale, level
            for figure, called in enumerate(FIGURES):
                exponent = _EXPONENTS.get(name, 0.0) if name != "larger" or called == "macs" else 0.0
                self.cost.exponents[figure, channel] = exponent / scale
                self.cost.levels[figure] -= exponent * _TEACHERS[name]

    def encode(self, choices_BD: Int[Tensor, "b d"]) -> Float[Tensor, "b c l"]:
        """Return the embedding of architectures."""
        code_BCL: Tensor = self.encoder(self._columns.matrix(choices_BD))
        return code_BCL

    def decisions(self, code_BCL: Float[Tensor, "b c l"]) -> Float[Tensor, "b d k"]:
        """Return the logits of every decision's classes, -inf for those that are not legal.

        The decoder says where among its classes a decision lies; the nearer a class, the likelier.
        """
        place_BD = (0.5 + self.decoder(code_BCL)[:, self._slots_D, self._at_D]) * self._columns.last_D
        logits_BDK: Tensor = -_SHARPNESS * (place_BD[..., None] - self._class_K).square()
        return logits_BDK.masked_fill(~self._columns.legal_DK, -math.inf)

    @torch.no_grad()
    def decode(self, code_BCL: Float[Tensor, "b c l"]) -> Int[Tensor, "b d"]:
        """Return the most likely choices, in canonical form: always a legal architecture."""
        return self._columns.canonical(self.decisions(code_BCL).argmax(-1))

    def costs(self, code_BCL: Float[Tensor, "b c l"]) -> Float[Tensor, "b f"]:
        """Return the logarithm of the shares of the teacher's figures: of a sum over layers."""
        logs_BFL: Tensor = self.cost(code_BCL)
        return logs_BFL.logsumexp(-1)

    def features(self, code_BCL: Float[Tensor, "b c l"]) -> Float[Tensor, "b p"]:
        """Return what score is linear in: the embedding, and traits of each layer with its neighbours."""
        return torch.cat([code_BCL, self.traits(code_BCL).tanh()], 1).flatten(1)

    def fit(self, known: Known, steps: int, generator: torch.Generator) -> None:
        """Fit everything together, from where it is, by that many steps of Adam."""
        rules = self._rules
        adam = torch.optim.Adam(self.parameters(), lr=rules.lr)
        buildable = known.logs_BF.isfinite().all(1)
        scale_F = known.logs_BF[buildable].std(0).clamp_min(1e-3) if buildable.sum() > 1 else 1.0
        mean, spread = known.scores_N.mean(), known.scores_N.std(correction=0).clamp_min(1e-3)
        for step in range(steps):
            for group in adam.param_groups:
                group["lr"] = rules.lr * (1.0 - 0.95 * step / steps)
            picked_B = torch.randint(len(known.choices_BD), (rules.batch_size,), generator=generator)
            trained_B = torch.randint(len(known.trained_ND), (rules.batch_size // 2,), generator=generator)
            choices_BD = torch.cat([known.choices_BD[picked_B], known.trained_ND[trained_B]])
            code_BCL = self.encode(choices_BD)
            noise_BCL = torch.randn(code_BCL.shape, generator=generator, dtype=torch.float64)
            noisy_BCL = code_BCL + rules.noise * noise_BCL
            loss = self._reconstruction(noisy_BCL, choices_BD) + 0.01 * code_BCL.square().mean()
            errors_BF = (self.costs(code_BCL[: len(picked_B)]) - known.logs_BF[picked_B]) / scale_F
            loss = loss + rules.cost_weight * errors_BF[buildable[picked_B]].square().sum() / errors_BF.numel()
            wanted_B = (known.scores_N[trained_B] - mean) / spread
            guessed_B = self.score(self.features(code_BCL[len(picked_B) :]))[:, 0]
            loss = loss + rules.score_weight * (guessed_B - wanted_B).square().mean()
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            adam.step()

    def _reconstruction(self, code_BCL: Tensor, choices_BD: Tensor) -> Tensor:
        """Return the cross-entropy of the decisions that change the student, nats for each."""
        logits_BDK = self.decisions(code_BCL)
        matter_BD = self._columns.matter(choices_BD)
        return nn.functional.cross_entropy(logits_BDK[matter_BD], choices_BD[matter_BD])


class _Convolutions(nn.Module):
    """A 1-D CNN along the columns."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, depth: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv1d(inputs, hidden, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv1d(hidden, hidden, 3, padding=1) for _ in range(depth - 1))
        self.last = nn.Conv1d(hidden, outputs, 3, padding=1)

    def forward(self, x_BIL: Float[Tensor, "b i l"]) -> Float[Tensor, "b o l"]:
        """Return as many columns."""
        hidden_BHL = nn.functional.silu(self.first(x_BIL))
        for layer in self.middle:
            hidden_BHL = hidden_BHL + nn.functional.silu(layer(hidden_BHL))
        result: Tensor = self.last(hidden_BHL)
        return result


class _Residual(_Convolutions):
    """A 1-D CNN beside a linear map of each column, which it adds to."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(inputs, hidden, outputs)
        self.skip = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x_BIL: Float[Tensor, "b i l"]) -> Float[Tensor, "b o l"]:
        """Return as many columns."""
        result: Tensor = self.skip(x_BIL) + super().forward(x_BIL)
        return result


class _Products(_Convolutions):
    """The logarithm of each layer's share of the figures: a linear form of its own in the embedding, and a 1-D CNN."""

    def __init__(self, channels: int, hidden: int, layers: int) -> None:
        super().__init__(channels, hidden, len(FIGURES), depth=2)
        self.levels = nn.Parameter(torch.empty(len(FIGURES), layers))
        self.exponents = nn.Parameter(torch.empty(len(FIGURES), channels, layers))

    def forward(self, x_BIL: Float[Tensor, "b c l"]) -> Float[Tensor, "b f l"]:
        """Return the logarithms, (B, F, L)."""
        linear_BFL: Tensor = torch.einsum("bcl,fcl->bfl", x_BIL, self.exponents) + self.levels
        return linear_BFL + super().forward(x_BIL)


def log_shares(figures: Sequence[Sequence[float] | None], teacher: Sequence[float]) -> Float[Tensor, "b f"]:
    """Return the logarithm of shares of the teacher's figures, (B, F); nan where there is no cost (None)."""
    nothing = [math.nan] * len(FIGURES)
    shares = [nothing if x is None else [a / max(b, 1) for a, b in zip(x, teacher, strict=True)] for x in figures]
    return torch.tensor(shares, dtype=torch.float64).reshape(-1, len(FIGURES)).clamp_min(1e-9).log()


# --- What was learned, elsewhere ---


def loaded(embedding: Embedding, policy: Mapping[str, Tensor]) -> Forecast:
    """Load an embedding from what a search's `state_dict` gave, and return what it says of score."""
    embedding.load_state_dict({name: policy[name] for name in embedding.state_dict()})
    return Forecast.of_tensors(policy)


@torch.no_grad()
def predicted_score(
    policy: Mapping[str, Tensor], space: Space, widths: Widths, architectures: Sequence[Architecture]
) -> list[tuple[float, float]]:
    """Return what a search's `state_dict` predicts of each score: share of the teacher's, standard deviation.

    Raises:
        ConfigError: it was made for another teacher or other widths.
    """
    refuse_other_embedding(policy, space, widths)
    columns = Columns(space, widths)
    embedding = Embedding(columns, sizes_of(policy, TUNED))
    forecast = loaded(embedding, policy)
    choices_BD = torch.stack([columns.choices(architecture) for architecture in architectures])
    shares_BM = forecast(embedding.features(embedding.encode(choices_BD)))
    return list(zip(shares_BM[:, 0].tolist(), shares_BM[:, 1:].std(1).tolist(), strict=True))


def refuse_other_embedding(policy: Mapping[str, Tensor], space: Space, widths: Widths) -> None:
    """Check that an embedding which was fitted elsewhere is of this teacher's structure and these widths.

    Raises:
        ConfigError: it is not, or there is none.
    """
    if "made_for" not in policy or "traits.weight" not in policy:
        raise ConfigError("an embedding is what a run of archcomp saves once it has fitted, but there is none")
    if policy["made_for"].item() != made_for(space, widths):
        raise ConfigError(
            "an embedding can be used for a teacher of the same structure and the same widths, but this one was "
            "fitted for others"
        )


def sizes_of(policy: Mapping[str, Tensor], rules: Rules) -> Rules:
    """Return rules with the sizes of the embedding in a search's `state_dict`."""
    hidden, channels = policy["traits.weight"].shape[:2]
    return replace(rules, channels=channels, hidden=hidden)


def made_for(space: Space, widths: Widths) -> int:
    """Return a number that names what choices mean: the Space and its legal widths."""
    options = [widths.options(group) for group in space.groups]
    return int(hashlib.sha256(f"{space.digest} {options}".encode()).hexdigest()[:15], 16)
