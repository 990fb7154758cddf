"""Votes for tests of their statistics: written out one by one, or drawn from a model whose strengths are known."""

import math
from itertools import combinations

import numpy as np

from reelign.feedback.vote import Shown, Vote

LETTERS = {"+": "good", "0": "same", "-": "bad"}


def vote(verdict="good", prompt="a red ball", rater="ann", models=("base", "tuned"), **changes) -> Vote:
    """A plain vote of a person; models are those of A and B."""
    a, b = (Shown(model, f"{model}/{prompt}.mp4") for model in models)
    fields = {"pair": f"{prompt}: {' '.join(sorted(models))}", "prompt": prompt, "a": a, "b": b, "axis": "overall"}
    fields |= {"verdict": verdict, "rater": rater, "seconds": 5.0, "left": "a", "kind": "plain", "source": "person"}
    return Vote(**{**fields, **changes})


def votes_of(table: str, **changes) -> list[Vote]:
    """A row a prompt, a column a rater: + where A is better, - where B is, 0 for the same, a space for no vote."""
    return [
        vote(LETTERS[letter], f"prompt {row}", f"rater-{column}", **changes)
        for row, line in enumerate(table.splitlines())
        for column, letter in enumerate(line)
        if letter != " "
    ]


def davidson(d: float, nu: float) -> np.ndarray:
    """Probabilities of good, same and bad for a difference of log strengths."""
    weight = np.array([math.exp(d / 2), nu, math.exp(-d / 2)])
    return weight / weight.sum()


def drawn(strengths: dict[str, float], nu: float, prompts: int, seed: int = 0) -> list[Vote]:
    """One vote on every pair of models at every prompt."""
    generator = np.random.default_rng(seed)
    return [
        vote(
            ("good", "same", "bad")[generator.choice(3, p=davidson(strengths[a] - strengths[b], nu))],
            f"{n}",
            models=(a, b),
        )
        for n in range(prompts)
        for a, b in combinations(strengths, 2)
    ]
