"""Weight-free signals as a reward: what `reelign.data.metrics` measures on any clip.

Each is easily gamed alone: sharpness by noise, steadiness by stillness. They are rewards for experiments and monitors
for everything else.
"""

from __future__ import annotations

from collections.abc import Sequence

from reelign.data.clip import Clip
from reelign.data.metrics import measure_clip
from reelign.rewards.base import Range, Reward


class Pixels(Reward):
    """Steadiness, dynamics, sharpness and exposure, each in [0, 1]."""

    name = "pixels"
    dimensions = dict.fromkeys(("steadiness", "dynamics", "sharpness", "exposure"), Range(0.0, 1.0))

    def score(self, clips: Sequence[Clip]) -> dict[str, list[float]]:
        """Measure each clip at its own size and frame rate."""
        found = [measure_clip(clip).scores for clip in clips]
        return {name: [scores[name] for scores in found] for name in self.dimensions}
