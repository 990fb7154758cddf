"""Intervals: the cluster bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval and the number of values behind it."""

    value: float
    low: float
    high: float
    n: int


def bootstrap_mean(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean and percentile-bootstrap interval, resampling whole clusters.

    Args:
        values: one a clip.
        clusters: the prompt of each clip: clips of one prompt are not independent. None: every clip its own.
        resamples: bootstrap samples.
        seed: the interval is a function of the values and this seed.

    Raises:
        ValueError: there are no values, or lengths differ.
    """
    if not len(values) or (clusters is not None and len(clusters) != len(values)):
        raise ValueError("bootstrap_mean needs values, and one cluster for each")
    array = np.asarray(values, np.float64)
    names = list(range(len(array))) if clusters is None else list(clusters)
    index = {name: position for position, name in enumerate(dict.fromkeys(names))}
    member = np.array([index[name] for name in names])
    totals = np.bincount(member, weights=array, minlength=len(index))
    counts = np.bincount(member, minlength=len(index))
    picks = np.random.default_rng(seed).integers(len(index), size=(resamples, len(index)))
    means = totals[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high), len(array))
