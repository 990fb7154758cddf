"""The miniature's training judge as a reward. The evaluation judge is never available to training."""

from __future__ import annotations

from collections.abc import Sequence

from reelign.data.clip import Clip
from reelign.miniature.captions import read_prompt
from reelign.miniature.training_judge import training_judge
from reelign.miniature.world import FPS, FRAMES, SIDE
from reelign.rewards.base import Needs, Range, Reward, RewardError


class MiniatureReward(Reward):
    """Text alignment, visual quality and motion quality of the miniature's clips, each in [0, 1]."""

    name = "miniature"
    dimensions = dict.fromkeys(("text", "visual", "motion"), Range(0.0, 1.0))
    needs = Needs(fps=FPS, frames=FRAMES, side=SIDE)

    def score(self, clips: Sequence[Clip]) -> dict[str, list[float]]:
        """Judge each clip against what its prompt states.

        Raises:
            RewardError: prompts with other words than the miniature's, or that name nothing of its world.
        """
        asked = [read_prompt(clip.prompt) for clip in clips]
        if strange := [clip.id for clip, prompt in zip(clips, asked, strict=True) if prompt is None]:
            first = next(clip.prompt for clip in clips if clip.id == strange[0])
            raise RewardError(
                self.name,
                strange,
                f"the prompt {first!r} says something that is not in the miniature's words, or nothing at all.",
            )
        found = [
            training_judge(clip.frames, prompt.scene, prompt.stated)
            for clip, prompt in zip(clips, asked, strict=True)
            if prompt is not None
        ]
        return {name: [verdict.scores[name] for verdict in found] for name in self.dimensions}
