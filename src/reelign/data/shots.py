"""Shots of a film: hard cuts by PySceneDetect, dissolves by what changed over a second, fades as dark ends.

Frames are handed over one at a time, so that a film of any length needs no more memory than its measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

DARK = 0.045
"""Mean luma below which a frame is black: a fade's end, not a scene."""
CHANGED = 0.55
"""Histogram correlation, over the span of a dissolve, below which the picture is another one."""
HARD = 0.93
"""Likeness of neighbouring frames below which a cut is a cut."""
SPAN = 0.6
"""Half the longest dissolve that is looked for, in seconds."""
BLENDED = 0.7
"""Variance of luma in the middle of a dissolve over that at its ends: two unlike pictures halved add up to 0.5
(Alattar 1993), while a camera that moves on keeps about 1."""


@dataclass(frozen=True)
class Shot:
    """Frames `start` to `end` (exclusive) of a file, transitions excluded."""

    start: int
    end: int


class ShotDetector:
    """Feed every frame in order, then ask for the shots."""

    def __init__(self) -> None:
        self._cuts: set[int] = set()
        self._detectors = (ContentDetector(threshold=30.0, min_scene_len=6), AdaptiveDetector(min_scene_len=6))
        self._histograms: list[np.ndarray] = []
        self._luma: list[float] = []
        self._variance: list[float] = []

    def feed(self, image: np.ndarray) -> None:
        """Look at the next frame, uint8 RGB (H, W, 3), of constant size."""
        number = len(self._luma)
        bgr = np.ascontiguousarray(image[..., ::-1])
        for detector in self._detectors:
            time = FrameTimecode(number, 25.0)
            self._cuts |= {cut.frame_num for cut in detector.process_frame(time, bgr)}
        planes = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
        histogram = cv2.calcHist([planes], [0, 1, 2], None, [12, 16, 16], [0, 256, 64, 192, 64, 192]).ravel()
        self._histograms.append(histogram / max(float(histogram.sum()), 1.0))
        self._luma.append(float(image.mean()) / 255)
        self._variance.append(float(planes[..., 0].var()))

    def shots(self, fps: float) -> list[Shot]:
        """All shots, in order; black stretches belong to none."""
        count, dark = len(self._luma), np.array(self._luma) < DARK
        cuts = {cut for cut in self._cuts if self._is_hard(cut) and not dark[max(0, cut - 2) : cut + 2].any()}
        excluded = dark.copy()
        for start, end in self._dissolves(fps, dark, cuts):
            excluded[start:end] = True
        borders = sorted({0, count} | cuts)
        found: list[Shot] = []
        for low, high in pairwise(borders):
            run: int | None = None
            for index in range(low, high + 1):
                inside = index < high and not excluded[index]
                if inside and run is None:
                    run = index
                elif not inside and run is not None:
                    found.append(Shot(run, index))
                    run = None
        return found

    def _is_hard(self, cut: int) -> bool:
        """Whether the picture changes from one frame to the next; inside a dissolve it does not."""
        before, after = self._histograms[max(0, cut - 1)], self._histograms[min(cut, len(self._histograms) - 1)]
        return float(np.sqrt(before * after).sum()) < HARD

    def _dissolves(self, fps: float, dark: np.ndarray, cuts: set[int]) -> list[tuple[int, int]]:
        """Stretches over which the picture slowly becomes another, without a cut and without passing through black."""
        half = max(3, round(SPAN * fps))
        if len(self._histograms) < 2 * half + 2:
            return []
        roots = np.sqrt(np.stack(self._histograms))
        likeness = (roots[: -2 * half] * roots[2 * half :]).sum(1)
        change = np.ones(len(roots))
        change[half:-half] = likeness
        found: list[tuple[int, int]] = []
        index = half
        while index < len(roots) - half:
            if change[index] >= CHANGED:
                index += 1
                continue
            end = index
            while end < len(roots) - half and change[end] < CHANGED:
                end += 1
            middle = (index + end) // 2
            low, high = middle - half, middle + half
            through_black = dark[max(0, low - half) : high + half].any()
            ends = (self._variance[low] + self._variance[high - 1]) / 2
            blended = self._variance[middle] < BLENDED * ends
            cut_inside = any(low <= cut <= high for cut in cuts)
            if blended and not through_black and not cut_inside:
                found.append((low, high))
            index = end
        return found
