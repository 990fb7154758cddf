"""Measures of any clip that need no trained weights: flicker, warp error, dynamic degree, sharpness, exposure.

| metric | unit, range | better | how |
|---|---|---|---|
| flicker | luma, [0, 0.5] | lower | spread of the change of mean luma from frame to frame; a steady fade has none |
| warp error | luma, [0, 1] | lower | a frame against the one before, moved along the optical flow (arXiv 1808.00449) |
| dynamic degree | frame diagonals a second, >= 0 | - | the fastest 5 % of the flow, as in VBench (arXiv 2311.17982) |
| sharpness | luma, [0, 1] | higher | steepest 2 % of luma steps; a clean edge between black and white is about 1 |
| exposure | share, [0, 1] | higher | pixels neither crushed (luma 4 of 255 or less) nor blown out (251 or more) |
| foreground | share, [0, 1] | - | pixels whose luma is `DISTINCT` or more away from their frame's border's median |

The flow is Farneback's (2003). Luma is in [0, 1], at a longer side of at most `SIDE` pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np

from reelign.data.clip import Clip

SIDE = 256
"""Clips are measured with their longer side at most this many pixels, so that sizes can be compared."""
DISTINCT = 0.08
"""Difference in luma that sets a pixel apart from the ground."""
SMALLEST_FLOW_SIDE = 8
"""Below this many pixels a frame has no room for the flow's windows."""
MEASURES = ("flicker", "warp_error", "dynamic_degree", "sharpness", "exposure", "foreground")
SCORES = ("steadiness", "dynamics", "sharpness", "exposure")
"""Of the measures, what a judge would say."""


class ClipMetrics:
    """Measures of a clip of any size, each taken when it is first asked for: the flow is by far the dearest.

    A clip of one frame does not move: its flicker, warp error and dynamic degree are 0. The dynamic degree depends on
    `clip.fps`: the same frames shown twice as fast move twice as fast. Units and ranges are in the table above.
    """

    def __init__(self, clip: Clip) -> None:
        self._clip = clip

    @cached_property
    def flicker(self) -> float:
        """Spread of the steps of mean luma."""
        return float(np.std(np.diff([frame.mean() for frame in self._luma]))) if len(self._luma) > 1 else 0.0

    @cached_property
    def warp_error(self) -> float:
        """What the flow does not explain of each frame."""
        steps = zip(pairwise(self._luma), self._flows, strict=True)
        errors = [np.abs(_warp(before, flow) - after).mean() for (before, after), flow in steps]
        return float(np.mean(errors)) if errors else 0.0

    @cached_property
    def dynamic_degree(self) -> float:
        """Speed of the fastest."""
        diagonal = float(np.hypot(*self._luma[0].shape))
        speeds = [np.quantile(np.linalg.norm(flow, axis=2), 0.95) / diagonal * self._clip.fps for flow in self._flows]
        return float(np.mean(speeds)) if speeds else 0.0

    @cached_property
    def sharpness(self) -> float:
        """Mean over the frames."""
        return float(np.mean([_sharpness(frame) for frame in self._luma]))

    @cached_property
    def exposure(self) -> float:
        """Share of pixels that are neither crushed nor blown out."""
        return float(np.mean([((frame > 4 / 255) & (frame < 251 / 255)).mean() for frame in self._luma]))

    @cached_property
    def foreground(self) -> float:
        """Share of pixels that stand out."""
        return float(np.mean([_foreground(frame) for frame in self._luma]))

    @property
    def measures(self) -> dict[str, float]:
        """All of the table."""
        return {name: getattr(self, name) for name in MEASURES}

    @property
    def steadiness(self) -> float:
        """In [0, 1]; alone it rewards stillness."""
        return float(np.clip(1 - 10 * self.flicker - 4 * self.warp_error, 0, 1))

    @property
    def dynamics(self) -> float:
        """The dynamic degree, brought into [0, 1]."""
        return float(1 - np.exp(-self.dynamic_degree / 0.15))

    def scores(self, names: Sequence[str] = SCORES) -> dict[str, float]:
        """Axes in [0, 1], higher is better."""
        return {name: getattr(self, name) for name in names}

    @cached_property
    def _luma(self) -> list[np.ndarray]:
        return [_luma(frame) for frame in self._clip.frames]

    @cached_property
    def _flows(self) -> list[np.ndarray]:
        return [optical_flow(before, after) for before, after in pairwise(self._luma)]


def optical_flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Backward flow between two luma frames (H, W) in [0, 1].

    Returns:
        (H, W, 2) in pixels: what is at p in `after` was at p + flow[p] in `before`. Zero where a side is too small.
    """
    if min(before.shape) < SMALLEST_FLOW_SIDE:
        return np.zeros((*before.shape, 2), np.float32)
    first, second = (np.round(frame * 255).astype(np.uint8) for frame in (after, before))
    window = int(np.clip(min(before.shape) // 8, 5, 15))
    start = np.zeros((*before.shape, 2), np.float32)
    return cv2.calcOpticalFlowFarneback(first, second, start, 0.5, 4, window, 3, 5, 1.1, 0)


def _luma(frame: np.ndarray) -> np.ndarray:
    """Luma in [0, 1], float32, at the measuring size."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    scale = SIDE / max(grey.shape)
    if scale >= 1:
        return grey
    height, width = (max(1, round(side * scale)) for side in grey.shape)
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)


def _warp(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    along_x, along_y = columns + flow[..., 0], rows + flow[..., 1]
    return cv2.remap(frame, along_x, along_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _foreground(luma: np.ndarray) -> float:
    border = np.concatenate([luma[0], luma[-1], luma[:, 0], luma[:, -1]])
    return float((np.abs(luma - np.median(border)) >= DISTINCT).mean())


def _sharpness(luma: np.ndarray) -> float:
    steps = np.hypot(cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1)) / 4
    return float(min(1.0, np.quantile(steps, 0.98)))
