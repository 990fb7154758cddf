"""What a judge of the miniature's videos says: the type that both judges return, and nothing of how they see."""

from __future__ import annotations

from dataclasses import dataclass

AXES = ("text", "visual", "motion")


@dataclass(frozen=True)
class Judgement:
    """Scores of one video against one scene.

    Attributes:
        text, visual, motion: in [0, 1].
        attributes: for each stated attribute, whether the video shows it.
        details: the sub-scores behind visual and motion, each in [0, 1].
    """

    text: float
    visual: float
    motion: float
    attributes: dict[str, bool]
    details: dict[str, float]

    @property
    def scores(self) -> dict[str, float]:
        """The three axes by name."""
        return {"text": self.text, "visual": self.visual, "motion": self.motion}


def falloff(value: float, half: float) -> float:
    """How a fault becomes a score: 1 at 0, one half at `half`."""
    return float(1.0 / (1.0 + (value / half) ** 2))
