"""The cluster bootstrap over prompts for statistics of votes: whole prompts are drawn again.

It is that of `evaluate/statistics.py`, with one precaution. Votes are bounded, and their mean may lie near a bound:
where one model nearly always wins, no resample holds the losses that happened not to be seen, and an interval of 95 %
covers too little. As for shares of single votes (Agresti & Coull 1998; Bonett & Price 2012 for the difference of
two), pretended data at the bounds repair it: a quarter of a prompt of the worst votes and one of the best are drawn
along with the others. `benchmarks/vote_statistics.py` measures the coverage with and without them. The estimate itself
is never moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reelign.evaluate.statistics import Interval, expanded_tail

RESAMPLES = 2000
PRETENDED = 0.25
"""Prompts of mean size at each bound."""


def bounded_mean(
    values: Sequence[float], prompts: Sequence[str], low: float, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Mean of values in [low, 1], and its interval by resampling prompts.

    Args:
        values: one a vote.
        prompts: that of each vote.
        low: the least that a value can be.
        seed: the interval is a function of the values, their order and this seed.
        resamples: bootstrap samples.
    """
    array = np.asarray(values, float)
    of_prompt = by_prompt(np.stack([array, np.ones(len(array))], 1), prompts)
    half = PRETENDED * len(array) / len(of_prompt)
    drawn = resampled(np.concatenate([of_prompt, [[half, half], [low * half, half]]]), seed, resamples)
    return interval(float(array.mean()), drawn[:, 0] / drawn[:, 1], len(of_prompt), len(array))


def by_prompt(rows: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Rows (votes, ...) added up inside prompts (prompts, ...), in the order in which they come."""
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    sums = np.zeros((len(number), *rows.shape[1:]))
    np.add.at(sums, [number[prompt] for prompt in prompts], rows)
    return sums


def resampled(of_prompt: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Sums over as many prompts as there are, drawn with replacement (resamples, ...)."""
    prompts = len(of_prompt)
    picks = np.random.default_rng(seed).integers(prompts, size=(resamples, prompts))
    row = np.arange(resamples)[:, None] * prompts
    times = np.bincount((picks + row).ravel(), minlength=picks.size).reshape(picks.shape)
    return (times @ of_prompt.reshape(prompts, -1)).reshape(resamples, *of_prompt.shape[1:])


def interval(value: float, drawn: np.ndarray, prompts: int, n: int) -> Interval:
    """The expanded percentile interval of what was drawn; it always holds the value."""
    tail = expanded_tail(prompts)
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value), n)
