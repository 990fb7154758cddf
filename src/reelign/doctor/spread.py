"""Whether the clips of a group differ by more than their judge wavers.

A policy gradient learns from differences inside a group. For each dimension

    spread = root mean over groups of the variance of a group's scores
    noise  = the same of (second score - first score), over sqrt 2

where the second score is that of the same clips again, or of clips whose grey levels moved by -1, 0 or 1 at random,
which no viewer sees; the larger counts. Normalised rewards of ratio r = spread / noise that are added with weights w
have together the ratio `sqrt(sum w^2 / sum (w / r)^2)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from reelign.data.clip import Clip
from reelign.stages.algorithm import Algorithm

LEAST_RATIO = 3.0
"""Below this more than a tenth of the variance that is learned from is the judge's own."""
USUAL_LEVELS = {"flow": 0.7, "dance": 0.3, "truncated": 0.45}
"""Of the laws whose level may grow beyond any bound."""


@dataclass(frozen=True)
class Spread:
    """Of one dimension inside the groups: how far its scores lie apart, and how much of it does not repeat."""

    value: float
    noise: float

    @property
    def ratio(self) -> float:
        """Spread over noise; 0 where all scores are equal."""
        return 0.0 if self.value == 0 else self.value / self.noise if self.noise else math.inf


def spreads(
    scores: Mapping[str, Tensor], again: Sequence[Mapping[str, Tensor]], weights: Mapping[str, float]
) -> dict[str, Spread]:
    """Spread of each dimension that is learned from.

    Args:
        scores: by name (prompts, group).
        again: second scores.
        weights: by name; a dimension of weight 0 is left out.
    """
    return {
        name: Spread(
            _deviation(scores[name]),
            max(_deviation(other[name] - scores[name]) for other in again) / math.sqrt(2),
        )
        for name, weight in weights.items()
        if weight
    }


def overall(found: Mapping[str, Spread], weights: Mapping[str, float]) -> float:
    """The ratio of what is added up; 0 when no dimension has any spread."""
    varied = {name: spread for name, spread in found.items() if spread.ratio}
    if not varied:
        return 0.0
    wavers = sum((weights[name] / spread.ratio) ** 2 for name, spread in varied.items())
    return math.sqrt(sum(weights[name] ** 2 for name in varied) / wavers) if wavers else math.inf


def dithered(clips: Sequence[Clip], seed: int) -> list[Clip]:
    """The clips with every grey level moved by -1, 0 or 1 at random."""
    random = np.random.default_rng(seed)
    moved = (clip.frames.astype(np.int16) + random.integers(-1, 2, clip.frames.shape) for clip in clips)
    return [
        replace(clip, frames=frames.clip(0, 255).astype(np.uint8)) for clip, frames in zip(clips, moved, strict=True)
    ]


def alternatives(algorithm: Algorithm) -> dict[str, Algorithm]:
    """At most two changes that let the clips of a group differ more, by the override that makes them."""
    changes: list[tuple[str, Any]] = []
    if algorithm.shared_noise:
        changes.append(("shared_noise", False))
    if algorithm.objective == "grpo":
        if algorithm.law not in USUAL_LEVELS:
            changes.append(("law", "flow"))
        else:
            louder = float(f"{1.5 * algorithm.noise_level:.3g}")
            changes.append(("noise_level", max(USUAL_LEVELS[algorithm.law], louder)))
        if algorithm.steps != "all" and algorithm.last > 0.25 > algorithm.first:
            changes.append(("last", 0.25))
    return {
        f"rlhf.algorithm.{key}={str(value).lower()}": algorithm.model_copy(update={key: value})
        for key, value in changes[:2]
    }


def _deviation(values: Tensor) -> float:
    return float(values.double().var(1, correction=1).mean().sqrt())
