"""Weight-free signals as a reward: what `reelign.data.metrics` measures on any clip.

Each is easily gamed alone: sharpness by noise, steadiness by stillness. They are rewards for experiments and monitors
for everything else.
"""

from __future__ import annotations

from collections.abc import Sequence

from reelign.data.clip import Clip
from reelign.data.metrics import SCORES, ClipMetrics
from reelign.errors import ReelignError
from reelign.rewards.base import Range, Reward


class Pixels(Reward):
    """Steadiness, dynamics, sharpness and exposure, each in [0, 1], or only those that are asked for."""

    name = "pixels"

    def __init__(self, dimensions: Sequence[str] = SCORES) -> None:
        """What nobody asks for is not measured.

        Raises:
            ReelignError: a dimension that it does not have.
        """
        if unknown := sorted(set(dimensions) - set(SCORES)):
            raise ReelignError(f"the reward 'pixels' has no dimension {unknown[0]!r}; it scores {', '.join(SCORES)}.")
        self.dimensions = dict.fromkeys(dimensions, Range(0.0, 1.0))

    def score(self, clips: Sequence[Clip]) -> dict[str, list[float]]:
        """Measure each clip at its own size and frame rate."""
        found = [ClipMetrics(clip).scores(tuple(self.dimensions)) for clip in clips]
        return {name: [scores[name] for scores in found] for name in self.dimensions}
