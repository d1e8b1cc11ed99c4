"""Does the embedding of architecture compression know what it should, and does descending in it find good students?

    python benchmarks/archcomp.py embedding                           # the tables of docs/archcomp.md: what is known
    python benchmarks/archcomp.py embedding --spaces vgg13 resnet18   # decoder and costs on real networks
    python benchmarks/archcomp.py search --seeds 5                    # best rewards beside random search and N2N
    python benchmarks/archcomp.py search --ablate                     # with one device switched off at a time
    python benchmarks/archcomp.py warm --budget 40                    # from what a search on other data has learned

Toy spaces (chain: VGG-13, residual: 12 blocks) have a known accuracy by formula, another landscape for each seed.
Real networks are not trained here, so nothing is said about accuracy on them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from scipy.stats import spearmanr
from torch import Tensor

from understudy.config.methods import N2N, ArchComp, Method, RandomSearch
from understudy.core.architecture import Architecture, Space
from understudy.core.errors import SurgeryError
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.goal import Goal, Reward
from understudy.cost.predict import predict
from understudy.graph.analysis import analyse
from understudy.methods.archcomp.rules import RULES, TUNED, Rules
from understudy.methods.archcomp.search import ArchCompSearcher, Objective, ascend, rewarded
from understudy.methods.base import Problem
from understudy.methods.baselines.random import RandomSearcher
from understudy.models.zoo import create
from understudy.testing.contracts import run_searcher
from understudy.testing.landscapes import toy_cost, toy_evaluation, toy_problem, toy_reward, toy_score, toy_space

TOYS = ("chain", "residual")
NETWORKS = ("vgg13", "resnet18", "densenet40")
HELD_OUT = 300
YARDSTICKS: dict[str, Callable[[int], Method]] = {
    "random": lambda students: RandomSearch(students=students),
    "N2N": lambda students: N2N(removal_updates=students // 10, shrinkage_updates=students // 10),
}
ABLATIONS = {
    "no ascent": Rules(steps=0),
    "half the radius": Rules(trust=0.5),
    "no noise": Rules(noise=0.0),
    "costs alone shape it": Rules(score_weight=0.0),
    "the mean for all": Rules(draws=1),
    "no pool near the best": Rules(changes=1e3),
    "students may be alike": Rules(apart=0),
    "half the steps of refits": Rules(refit_steps=30),
    "from random weights": RULES["paper"],
}


def place(name: str) -> tuple[Space, Callable[[Architecture], Cost | None]]:
    """Return a Space and the exact costs in it."""
    if name in TOYS:
        return toy_space(name), toy_cost  # type: ignore[arg-type]
    analysis = analyse(create(name).eval(), torch.zeros(2, 3, 32, 32))

    def cost(architecture: Architecture) -> Cost | None:
        try:
            return predict(analysis, architecture)
        except SurgeryError:
            return None

    return analysis.space, cost


def embedded(name: str, students: int, fit_steps: int, seed: int) -> tuple[ArchCompSearcher, Objective]:
    """Return a search whose embedding was fitted once, to that many students of random search."""
    space, cost = place(name)
    teacher = cost(space.full)
    assert teacher is not None, "the teacher can be built"
    reward = toy_reward(space) if name in TOYS else Reward(teacher_cost=teacher, teacher_score=1.0)
    settings = ArchComp(students=2 * students)
    problem = Problem(space=space, reward=reward, predict=cost, seed=seed)
    searcher = ArchCompSearcher(problem, settings, rules=Rules(fit_steps=fit_steps), start=students)
    while searcher.stage == "random":
        # Nothing is trained on real networks: their embedding knows of no accuracy but the teacher's.
        found = [toy_evaluation(a, landscape=seed) if name in TOYS else untrained(a) for a in searcher.propose()]
        searcher.learn(found)
    return searcher, searcher.fit()


def untrained(architecture: Architecture) -> Evaluation:
    """Return an evaluation that failed."""
    return Evaluation(
        architecture=architecture, teacher="", data="", recipe="", cost=None, score=0.0, seconds=0.0, seed=0,
        status="failed", error="nothing is trained here",
    )  # fmt: skip


def knowledge(name: str, students: int, fit_steps: int, seed: int) -> dict[str, float]:
    """Return how well a fitted embedding knows architectures that it has not seen."""
    began = time.process_time()
    searcher, objective = embedded(name, students, fit_steps, seed)
    figures = {"CPU seconds": time.process_time() - began}
    held_BD = searcher.columns.sample(HELD_OUT, torch.Generator().manual_seed(1000 + seed))
    with torch.no_grad():
        code_BCL = searcher.embedding.encode(held_BD)
        decoded_BD, logs_BF = searcher.embedding.decode(code_BCL), searcher.embedding.costs(code_BCL)
    right_BD, exact_BF = decoded_BD == held_BD, searcher.exact(held_BD)
    figures["decisions exact"] = right_BD[searcher.columns.matter(held_BD)].double().mean().item()
    figures["architectures exact"] = right_BD.all(1).double().mean().item()
    buildable_B = exact_BF.isfinite().all(1)
    figures["sampled can be built"] = buildable_B.double().mean().item()
    errors_BF = ((logs_BF - exact_BF).exp() - 1.0).abs()[buildable_B]
    figures["error of parameters"], figures["error of MACs"], _ = errors_BF.median(0).values.tolist()
    if name in TOYS:
        figures["rank, all sizes"] = rank(searcher, objective, held_BD, seed)
        drawn = RandomSearcher(toy_problem(place(name)[0], seed=2000 + seed), RandomSearch())
        like_BD = torch.stack([searcher.columns.choices(drawn.drawn()) for _ in range(HELD_OUT)])
        figures["rank, as labelled"] = rank(searcher, objective, like_BD, seed)
    return figures | along(searcher, objective, name in TOYS, seed)


def rank(searcher: ArchCompSearcher, objective: Objective, choices_BD: Tensor, seed: int) -> float:
    """Return the rank correlation of predicted and true accuracy."""
    with torch.no_grad():
        guessed_B = objective.forecast(searcher.embedding.features(searcher.embedding.encode(choices_BD)))[:, 0]
    true = [toy_score(searcher.columns.architecture(choices_D), landscape=seed) for choices_D in choices_BD]
    return float(spearmanr(guessed_B, true).statistic)


def along(searcher: ArchCompSearcher, objective: Objective, toy: bool, seed: int) -> dict[str, float]:
    """Return what becomes of the points on the way of an ascent: can they be built, how good are they."""
    starts_SD = searcher.starts(objective)
    draw_S = 1 + torch.arange(len(starts_SD)) % TUNED.draws
    way = ascend(objective, starts_SD, draw_S, steps=TUNED.steps, radius=searcher.radius)
    figures, built = dict[str, float](), list[Tensor]()
    for number, choices_SD in enumerate([starts_SD, *way]):
        exact_SF = searcher.exact(choices_SD)
        built += [exact_SF.isfinite().all(1)] if number else []
        if toy:
            with torch.no_grad():
                guessed_S = objective(searcher.embedding.encode(choices_SD), draw_S)
            true = [toy_score(searcher.columns.architecture(c_D), landscape=seed) / 0.95 for c_D in choices_SD]
            true_S = rewarded(exact_SF[:, 0], torch.tensor(true, dtype=torch.float64))
            figures[f"objective predicted, after {5 * number} steps"] = guessed_S.mean().item()
            figures[f"objective true, after {5 * number} steps"] = true_S.mean().item()
    return figures | {"can be built on the way": torch.cat(built).double().mean().item()}


def best(name: str, params: str | None, method: Method | Rules, seed: int, *, students: int = 100) -> float:
    """Return the best true reward of a search on a toy landscape; `Rules` are those of ArchComp with `students`."""
    problem = toy_problem(toy_space(name), params, seed=seed)  # type: ignore[arg-type]
    searcher = (
        ArchCompSearcher(problem, ArchComp(students=students), rules=method)
        if isinstance(method, Rules)
        else method.searcher(problem)
    )
    return max(problem.reward(evaluation) for evaluation in run_searcher(searcher, landscape=seed))


def other_data(architecture: Architecture, seed: int) -> Evaluation:
    """Return an evaluation whose accuracy is half (geometrically) the landscape of a seed, half another one."""
    evaluation = toy_evaluation(architecture, landscape=seed)
    other = toy_score(architecture, landscape=1000 + seed)
    return replace(evaluation, score=math.sqrt(evaluation.score * other))


def warm(name: str, params: str | None, budget: int, seed: int) -> dict[str, list[float]]:
    """Return the best rewards so far, on other data, of a search from scratch and of one from another's embedding."""
    space = toy_space(name)  # type: ignore[arg-type]
    reward = toy_reward(space, Goal(params=params))
    first = ArchCompSearcher(toy_problem(space, params, seed=seed), ArchComp(students=60))
    run_searcher(first, landscape=seed)
    learned = {name: value for name, value in first.state_dict().items() if isinstance(value, Tensor)}
    found: dict[str, list[float]] = {}
    for called, policy in (("from scratch", None), ("from another's", learned)):
        problem = toy_problem(space, params, seed=seed, policy=policy)
        searcher = ArchCompSearcher(problem, ArchComp(students=budget))
        rewards: list[float] = []
        while proposals := searcher.propose():
            told = [other_data(architecture, seed) for architecture in proposals]
            searcher.learn(told)
            rewards += [reward(evaluation) for evaluation in told]
        found[called] = list(itertools.accumulate(rewards, max))
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["embedding", "search", "warm"])
    parser.add_argument("--spaces", nargs="+", choices=[*TOYS, *NETWORKS], default=list(TOYS))
    parser.add_argument(
        "--students", type=int, default=200, help="with known accuracy, for the tables of what is known"
    )
    parser.add_argument("--fit-steps", type=int, default=TUNED.fit_steps, help="for the tables of what is known")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--params", nargs="+", default=["0", "20x"], help="budgets of the searches; 0: none")
    parser.add_argument("--budget", type=int, default=100, help="students of a search")
    parser.add_argument("--ablate", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "embedding":
        for name in options.spaces:
            found = [knowledge(name, options.students, options.fit_steps, seed) for seed in range(options.seeds)]
            for figure in found[0]:
                print(f"| {name} | {figure} | {spread([figures[figure] for figures in found])} |", flush=True)
        return
    if options.what == "warm":
        for name, params in itertools.product(options.spaces, options.params):
            goal = None if params == "0" else params
            curves = [warm(name, goal, options.budget, seed) for seed in range(options.seeds)]
            for called, students in itertools.product(curves[0], (5, 10, 20, options.budget)):
                values = [curve[called][students - 1] for curve in curves]
                print(f"| {name} | {params} | {called} | {students} | {spread(values)} |", flush=True)
        return
    own = ArchComp(students=options.budget)
    methods: dict[str, Method | Rules] = {called: method(options.budget) for called, method in YARDSTICKS.items()}
    methods["ArchComp"] = own
    if options.ablate:
        methods = {"ArchComp": own, **ABLATIONS}
    for name in options.spaces:
        for params in options.params:
            reached: dict[str, list[float]] = {}
            for called, method in methods.items():
                goal = None if params == "0" else params
                reached[called] = [
                    best(name, goal, method, seed, students=options.budget) for seed in range(options.seeds)
                ]
                wins = sum(a > b for a, b in zip(reached[called], next(iter(reached.values())), strict=True))
                print(f"| {name} | {params} | {called} | {spread(reached[called])} | {wins} |", flush=True)


def spread(values: list[float]) -> str:
    """Return mean and standard deviation."""
    deviation = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


if __name__ == "__main__":
    main()
