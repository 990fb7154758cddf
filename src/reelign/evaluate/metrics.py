"""Measures of any clip that need no trained weights: flicker, warp error, dynamic degree, sharpness, exposure."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from reelign.data.clip import Clip

SIDE = 256
"""Clips are measured with their longer side at most this many pixels, so that sizes can be compared."""


@dataclass(frozen=True)
class ClipMetrics:
    """What was measured.

    Attributes:
        flicker: standard deviation of the change of mean luma between frames, in [0, 1].
        warp_error: mean absolute luma difference of a frame to its predecessor moved along the optical flow, in [0, 1].
        dynamic_degree: 95th percentile of the optical flow, in frame diagonals a second.
        sharpness: strength of the 2 % steepest luma steps, in [0, 1]; a clean edge between black and white is about 1.
        exposure: share of pixels that are neither crushed (below 4 of 255) nor blown out (above 251).
    """

    flicker: float
    warp_error: float
    dynamic_degree: float
    sharpness: float
    exposure: float

    @property
    def scores(self) -> dict[str, float]:
        """Axes in [0, 1], higher is better; the dynamic degree is one, for steadiness alone rewards stillness."""
        return {
            "steadiness": float(np.clip(1 - 10 * self.flicker - 4 * self.warp_error, 0, 1)),
            "dynamics": float(1 - np.exp(-self.dynamic_degree / 0.15)),
            "sharpness": self.sharpness,
            "exposure": self.exposure,
        }


def measure_clip(clip: Clip) -> ClipMetrics:
    """Measure a clip of any size; a clip of one frame has no motion: flicker, warp error and dynamics are 0."""
    luma = [_luma(frame) for frame in clip.frames]
    means = np.array([frame.mean() for frame in luma])
    errors, flows = [0.0], [0.0]
    diagonal = float(np.hypot(*luma[0].shape))
    for before, after in zip(luma[:-1], luma[1:], strict=True):
        flow = optical_flow(before, after)
        errors.append(float(np.abs(_warp(before, flow) - after).mean()))
        flows.append(float(np.quantile(np.linalg.norm(flow, axis=2), 0.95)) / diagonal * clip.fps)
    return ClipMetrics(
        flicker=float(np.std(np.diff(means))) if len(means) > 1 else 0.0,
        warp_error=float(np.mean(errors[1:])) if len(luma) > 1 else 0.0,
        dynamic_degree=float(np.mean(flows[1:])) if len(luma) > 1 else 0.0,
        sharpness=float(np.mean([_sharpness(frame) for frame in luma])),
        exposure=float(np.mean([((frame > 4 / 255) & (frame < 251 / 255)).mean() for frame in luma])),
    )


def optical_flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Backward flow by Farneback's method: pixel p of `after` was at p + flow[p] in `before`; (H, W, 2) pixels."""
    first, second = ((frame * 255).astype(np.uint8) for frame in (after, before))
    window = int(np.clip(min(before.shape) // 8, 5, 15))
    return cv2.calcOpticalFlowFarneback(first, second, np.empty(0), 0.5, 4, window, 3, 5, 1.1, 0)  # pyright: ignore


def _luma(frame: np.ndarray) -> np.ndarray:
    """Luma in [0, 1], float32, at the measuring size."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    scale = SIDE / max(grey.shape)
    return cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else grey


def _warp(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    return cv2.remap(frame, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _sharpness(luma: np.ndarray) -> float:
    steps = np.hypot(cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1)) / 4
    return float(min(1.0, np.quantile(steps, 0.98)))
