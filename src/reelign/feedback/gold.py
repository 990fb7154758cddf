"""Copies of clips that are visibly worse: pairs with a known answer, which show whether a rater looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import cv2
import numpy as np

from reelign.data.clip import Clip
from reelign.feedback.vote import Axis

Harm = Literal["blurred", "frozen"]
HARMED: dict[Harm, tuple[Axis, ...]] = {"blurred": ("visual", "overall"), "frozen": ("motion", "overall")}
"""The axes on which the original is better. Of the others nothing is known."""
BLUR = 1 / 20
"""Width of the blur, as a share of the shorter side."""
STEP, SHARE = 24, 0.01
"""A copy is visibly different where pixels of this share, in the mean of all frames, change by so many grey levels."""


def degraded(clip: Clip, harm: Harm) -> Clip | None:
    """The clip, harmed; None where nobody could see it, such as a still clip that is frozen."""
    if harm == "blurred":
        width = BLUR * min(clip.frames.shape[1:3])
        frames = np.stack([cv2.GaussianBlur(frame, (0, 0), width) for frame in clip.frames])
    else:
        frames = np.repeat(clip.frames[:1], len(clip.frames), axis=0)
    return replace(clip, frames=frames) if _visible(clip.frames, frames) else None


def _visible(frames: np.ndarray, others: np.ndarray) -> bool:
    changed = [
        float((np.abs(one.astype(np.int16) - other).max(-1) >= STEP).mean())
        for one, other in zip(frames, others, strict=True)
    ]
    return float(np.mean(changed)) >= SHARE
