"""Strengths of models from votes with ties (Davidson, Journal of the American Statistical Association 65, 1970).

    P(i better than j) = s_i / (s_i + s_j + nu sqrt(s_i s_j))        P(same) = nu sqrt(s_i s_j) / (...)

With t = log s and d = t_i - t_j the three outcomes have the weights exp(d / 2), nu and exp(-d / 2): a multinomial
logit, whose likelihood is concave. Newton's method finds its maximum; nu = 0, Bradley and Terry's own model, when there
is no tie. Strengths are logarithms with mean 0: a difference of log(2) is two wins for each loss.

Intervals come from the observed information H and the scores g of whole prompts, H^-1 (sum g g') H^-1, the variance
that stays right when votes of one prompt depend on each other (Huber's sandwich), with Student's quantile for the
number of prompts. No refits: a resampled study in which some model never wins has no estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse.csgraph import connected_components
from scipy.special import stdtrit

from reelign.errors import ReelignError
from reelign.evaluate.statistics import TAIL, Interval
from reelign.feedback.comparison import models_of, plain
from reelign.feedback.vote import Axis, Vote

STEPS = 100
CONVERGED = 1e-10
ADVICE = "the estimate would be infinite. Ask for more votes, or read the net GSB."


@dataclass(frozen=True)
class Strengths:
    """What a fit found.

    Attributes:
        models: log strength of each with its interval; `n` is the number of votes on it. Strongest first.
        nu: how readily raters say "same"; between equals the share of ties is nu / (2 + nu).
        votes, prompts: what it was fitted to.
    """

    models: dict[str, Interval]
    nu: float
    votes: int
    prompts: int


@dataclass(frozen=True)
class _Data:
    """One row a vote: a design for d, the outcome (0 first better, 1 same, 2 second better) and the prompt's number."""

    names: list[str]
    design: np.ndarray
    outcome: np.ndarray
    prompt: np.ndarray


def fit_strengths(votes: Sequence[Vote], axis: Axis, prior: float = 0.0) -> Strengths:
    """Fit Davidson's model to the plain votes of an axis.

    Args:
        votes: of any models, axes and kinds.
        axis: the one to fit.
        prior: precision of a normal prior on each log strength. 0 is maximum likelihood; a small one (0.01) gives an
            estimate where a few votes determine none, as when pairs are to be chosen in the middle of a study.

    Raises:
        ReelignError: fewer than two models or prompts, every vote a tie, or no finite estimate: models that were never
            compared, or that never lost or won, or an order that no vote contradicts. The message names them.
    """
    data = _data(votes, axis)
    if (data.outcome == 1).all():
        raise ReelignError("every vote is a tie: nothing tells the strengths of the models apart.")
    if not prior:
        _refuse_what_has_no_estimate(data)
    ties = bool((data.outcome == 1).any())
    theta, information = _maximum(data, ties, prior)
    spread = _sandwich(data, theta, information, ties, prior)
    names, prompts = data.names, int(data.prompt.max()) + 1
    half = -stdtrit(prompts - 1, TAIL) * spread
    votes_on = np.abs(data.design).sum(0).astype(int)
    strengths = {
        name: Interval(float(theta[i]), float(theta[i] - half[i]), float(theta[i] + half[i]), int(votes_on[i]))
        for i, name in enumerate(names)
    }
    ranked = dict(sorted(strengths.items(), key=lambda item: -item[1].value))
    return Strengths(ranked, float(np.exp(theta[-1])) if ties else 0.0, len(data.outcome), prompts)


def evalica_strengths(votes: Sequence[Vote], axis: Axis) -> dict[str, dict[str, float]]:
    """The fits of evalica (arXiv 2412.11314) to the same votes, as log strengths with mean 0.

    Returns:
        "newman": Davidson's model by Newman's iteration (JMLR 24, 2023), the same maximum reached another way.
        "bradley_terry": a tie counts as half a win for each, which draws strengths together.

    Raises:
        ReelignError: evalica is not installed.
    """
    try:
        import evalica
    except ImportError as error:
        raise ReelignError("evalica is not installed. Install it with: pip install 'reelign[feedback]'") from error
    rows = _comparable(votes, axis)
    winner = {"good": evalica.Winner.X, "same": evalica.Winner.Draw, "bad": evalica.Winner.Y}
    sides = [vote.a.model for vote in rows], [vote.b.model for vote in rows], [winner[vote.verdict] for vote in rows]
    found = {}
    for name in ("newman", "bradley_terry"):
        scores = getattr(evalica, name)(*sides, tolerance=1e-12, limit=10_000).scores
        logs = np.log(scores)
        found[name] = {str(model): float(value) for model, value in (logs - logs.mean()).items()}
    return found


def _comparable(votes: Sequence[Vote], axis: Axis) -> list[Vote]:
    return [vote for vote in plain(votes, axis) if vote.a.model != vote.b.model]


def _data(votes: Sequence[Vote], axis: Axis) -> _Data:
    rows = _comparable(votes, axis)
    names = models_of(rows)
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(vote.prompt for vote in rows))}
    if len(prompts) < 2:
        raise ReelignError(
            f"strengths on the axis {axis} need votes on two models and on two prompts at least; there are "
            f"{len(names)} models and {len(prompts)} prompts."
        )
    number = {name: i for i, name in enumerate(names)}
    design = np.zeros((len(rows), len(names)))
    every = np.arange(len(rows))
    design[every, [number[vote.a.model] for vote in rows]] = 1
    design[every, [number[vote.b.model] for vote in rows]] = -1
    outcome = np.array([1 - vote.worth for vote in rows])
    return _Data(names, design, outcome, np.array([prompts[vote.prompt] for vote in rows]))


def _derivatives(data: _Data, theta: np.ndarray, ties: bool, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all votes, one a row, and the observed information; last comes log nu, where there are ties."""
    count = len(data.names)
    d = data.design @ theta[:count]
    weight = np.stack([d / 2, np.full_like(d, theta[-1] if ties else -np.inf), -d / 2], 1)
    p = np.exp(weight - weight.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    feature = np.stack([data.design / 2, 0 * data.design, -data.design / 2], 1)
    if ties:
        same = np.broadcast_to(np.array([0.0, 1.0, 0.0])[None, :, None], (len(d), 3, 1))
        feature = np.concatenate([feature, same], 2)
    mean = np.einsum("nk,nkp->np", p, feature)
    scores = feature[np.arange(len(d)), data.outcome] - mean
    information = np.einsum("nk,nkp,nkq->pq", p, feature, feature) - mean.T @ mean
    information[:count, :count] += prior * np.eye(count) + 1 / count  # fixes the mean of log strengths at 0
    return scores, information


def _maximum(data: _Data, ties: bool, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method with half steps; the likelihood is concave and its maximum finite."""
    count = len(data.names)
    theta = np.zeros(count + ties)
    scores, information = _derivatives(data, theta, ties, prior)
    for _ in range(STEPS):
        slope = scores.sum(0) - prior * np.pad(theta[:count], (0, int(ties)))
        step = np.linalg.solve(information, slope)
        step /= max(1.0, float(np.abs(step).max()) / 2)
        theta += step
        scores, information = _derivatives(data, theta, ties, prior)
        if np.abs(step).max() < CONVERGED:
            return theta, information
    raise ReelignError(f"the strengths of {', '.join(data.names)} did not converge in {STEPS} steps.")


def _sandwich(data: _Data, theta: np.ndarray, information: np.ndarray, ties: bool, prior: float) -> np.ndarray:
    """Standard errors: scores are added up inside prompts first."""
    scores, _ = _derivatives(data, theta, ties, prior)
    prompts = int(data.prompt.max()) + 1
    of_prompt = np.zeros((prompts, scores.shape[1]))
    np.add.at(of_prompt, data.prompt, scores)
    of_prompt -= of_prompt.mean(0)
    bread = np.linalg.inv(information)
    variance = bread @ (of_prompt.T @ of_prompt) @ bread * prompts / (prompts - 1)
    return np.sqrt(np.diag(variance))


def _refuse_what_has_no_estimate(data: _Data) -> None:
    """The likelihood has no maximum where it grows for ever in some direction (Albert & Anderson 1984).

    Without a change of nu that is Ford's condition (1957), ties counting for both sides: from each model a chain of
    wins or ties must lead to every other. With one, strengths that spread ever further beside a nu that grows.
    """
    first, second = data.design.argmax(1), data.design.argmin(1)
    at_least = np.zeros((len(data.names),) * 2, bool)
    at_least[first[data.outcome < 2], second[data.outcome < 2]] = True
    at_least[second[data.outcome > 0], first[data.outcome > 0]] = True
    if len(parts := _parts(data, at_least, strong=False)) > 1:
        apart = " | ".join(", ".join(names) for _, names in parts)
        raise ReelignError(f"these groups of models were never compared: {apart}. Ask for votes on pairs across them.")
    parts = _parts(data, at_least, strong=True)
    for inside, names in parts if len(parts) > 1 else []:
        for word, beaten in (("lost", at_least[~inside][:, inside]), ("won", at_least[inside][:, ~inside])):
            if not beaten.any():
                raise ReelignError(
                    f"{' and '.join(names)} never {word} against the others, nor tied with them: {ADVICE}"
                )
    if order := _order_without_contradiction(data):
        raise ReelignError(f"no vote contradicts the order {' > '.join(order)}, apart from ties: {ADVICE}")


def _order_without_contradiction(data: _Data) -> list[str]:
    """Models in an order in which each win leads down by a step or more, and each tie by a step at most; else empty."""
    ties = np.unique(data.design[data.outcome == 1], axis=0)
    wins = np.unique(((1 - data.outcome)[:, None] * data.design)[data.outcome != 1], axis=0)
    if not len(ties):
        return []  # nu = 0, and Ford's condition is all
    limits = np.repeat([-1.0, 1.0], [len(wins), 2 * len(ties)])
    found = linprog(np.zeros(len(data.names)), np.concatenate([-wins, ties, -ties]), limits, bounds=(None, None))
    return [data.names[i] for i in np.argsort(-found.x, kind="stable")] if found.success else []


def _parts(data: _Data, at_least: np.ndarray, strong: bool) -> list[tuple[np.ndarray, list[str]]]:
    """Connected groups of models, as a mask and by name, the smallest first."""
    count, member = connected_components(at_least, directed=strong, connection="strong")
    masks = sorted((member == part for part in range(count)), key=lambda mask: (mask.sum(), mask.argmax()))
    return [(mask, [name for name, inside in zip(data.names, mask, strict=True) if inside]) for mask in masks]
