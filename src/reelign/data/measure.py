"""Measures of frames and shots that need no trained weights; all on frames of at most 256 pixels.

| measure | unit | how | |---|---|---| | sharpness | [0, 1] | 98th percentile of the luma gradient; a clean edge
between black and white is about 1 | | noise | [0, 1] | robust spread of the Laplacian residual (Immerkaer 1996),
which edges hardly touch | | exposure | [0, 1] | share of pixels that are neither crushed nor blown out | |
colourfulness | about 0 to 1 | Hasler and Suesstrunk 2003, over 100 | | motion | diagonals a second | 90th percentile
of Farneback flow | | flicker | [0, 1] | spread of the change of mean luma between frames | | black_bars | [0, 1] |
share of the picture that stays black at its borders through the shot | | text | [0, 1] | share of the picture under
dense, straight, unmoving rows of small strong edges: burnt-in captions and stamps |
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.fft import dctn

HASH_SIDE = 32


@dataclass(frozen=True)
class FrameMeasures:
    """What one frame adds to its shot."""

    sharpness: float
    noise: float
    exposure: float
    colourfulness: float
    luma: float
    motion: float
    bars: tuple[float, float, float, float]
    edges: np.ndarray
    hash: int
    mirrored_hash: int


def measure_frame(image: np.ndarray, before: np.ndarray | None, seconds: float) -> FrameMeasures:
    """Measure a small RGB frame; `before` is the grey frame that came `seconds` earlier."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    unit = grey.astype(np.float32) / 255
    gradient = np.hypot(cv2.Sobel(unit, cv2.CV_32F, 1, 0), cv2.Sobel(unit, cv2.CV_32F, 0, 1)) / 4
    return FrameMeasures(
        sharpness=float(min(1.0, np.quantile(gradient, 0.98))),
        noise=_noise(unit),
        exposure=float(np.mean((grey > 4) & (grey < 251))),
        colourfulness=_colourfulness(image),
        luma=float(unit.mean()),
        motion=_motion(before, grey, seconds),
        bars=_bars(grey),
        edges=cv2.resize((gradient > 0.12).astype(np.float32), (64, 36), interpolation=cv2.INTER_AREA),
        hash=perceptual_hash(grey),
        mirrored_hash=perceptual_hash(grey[:, ::-1]),
    )


@dataclass(frozen=True)
class ShotMeasures:
    """A shot as its frames say; see the table above."""

    sharpness: float
    noise: float
    exposure: float
    colourfulness: float
    motion: float
    flicker: float
    black_bars: float
    text: float
    luma: float


def measure_shot(frames: list[FrameMeasures]) -> ShotMeasures:
    """Put the measures of a shot's frames together."""
    luma = np.array([frame.luma for frame in frames])
    top, bottom, left, right = np.array([frame.bars for frame in frames]).min(0)
    return ShotMeasures(
        sharpness=float(np.median([frame.sharpness for frame in frames])),
        noise=float(np.median([frame.noise for frame in frames])),
        exposure=float(np.median([frame.exposure for frame in frames])),
        colourfulness=float(np.median([frame.colourfulness for frame in frames])),
        motion=float(np.median([frame.motion for frame in frames[1:]])) if len(frames) > 1 else 0.0,
        flicker=float(np.std(np.diff(luma))) if len(luma) > 1 else 0.0,
        black_bars=float(1 - max(0.0, 1 - top - bottom) * max(0.0, 1 - left - right)),
        text=_text(np.stack([frame.edges for frame in frames])),
        luma=float(np.median(luma)),
    )


def perceptual_hash(grey: np.ndarray) -> int:
    """64 bits: signs of the low frequencies of a 32 x 32 picture against their median."""
    tiny = cv2.resize(grey, (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = np.asarray(dctn(tiny, norm="ortho"))[:8, :8].ravel()
    bits = low > np.median(low[1:])
    bits[0] = False
    return int(sum(1 << index for index, bit in enumerate(bits) if bit))


def _noise(unit: np.ndarray) -> float:
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    residual = cv2.filter2D(unit, cv2.CV_32F, kernel)
    return float(np.median(np.abs(residual)) / 0.6745 / 6)


def _colourfulness(image: np.ndarray) -> float:
    red, green, blue = (image[..., channel].astype(np.float32) for channel in range(3))
    first, second = red - green, (red + green) / 2 - blue
    return float((np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean())) / 100)


def _motion(before: np.ndarray | None, grey: np.ndarray, seconds: float) -> float:
    if before is None or before.shape != grey.shape or seconds <= 0 or min(grey.shape) < 12:
        return 0.0
    flow = cv2.calcOpticalFlowFarneback(before, grey, np.empty(0), 0.5, 3, 13, 2, 5, 1.1, 0)  # pyright: ignore
    return float(np.quantile(np.linalg.norm(flow, axis=2), 0.9) / np.hypot(*grey.shape) / seconds)


def _bars(grey: np.ndarray) -> tuple[float, float, float, float]:
    """Share of rows and columns that are black from each border inwards: top, bottom, left, right."""
    rows, columns = grey.max(1) < 24, grey.max(0) < 24
    return _leading(rows), _leading(rows[::-1]), _leading(columns), _leading(columns[::-1])


def _leading(line: np.ndarray) -> float:
    return float(len(line) if line.all() else np.argmin(line)) / len(line)


def _text(edges: np.ndarray) -> float:
    """Cells full of strong edges that do not change over the shot, in rows of at least five cells."""
    dense = (edges.mean(0) > 0.35) & (edges.std(0) < 0.12)
    rows = cv2.morphologyEx(dense.astype(np.uint8), cv2.MORPH_OPEN, np.ones((1, 5), np.uint8))
    return float(rows.mean()) if len(edges) > 3 else 0.0
