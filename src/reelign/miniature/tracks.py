"""Which motion law a track follows: a fit of every law of the world to the centres of an object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reelign.miniature.world import (
    BOUNCE_HEIGHT,
    BOUNCES,
    DIRECTIONS,
    FRAMES,
    MOTIONS,
    ORBIT,
    SPEEDS,
    TRAVEL,
    TURNS,
)


@dataclass(frozen=True)
class Law:
    """The law nearest to a track.

    Attributes:
        motion, speed: names of the world.
        residual: mean distance of the track to the law, in pixels.
        jitter: root mean square of the track's second difference beyond the law's own, in pixels a frame squared.
        stalls: share of the frames in which the law moves and the object does not, in [0, 1].
        path_length: pixels that the object covers, measured over two frames so that noise adds little.
    """

    motion: str
    speed: str
    residual: float
    jitter: float
    stalls: float
    path_length: float

    @staticmethod
    def least_path(motion: str) -> float:
        """Pixels that the slow form of a motion covers; 0 for a still object."""
        return _length(_curve(motion, "slow", 0.0, FRAMES)) if motion != "still" else 0.0


def fit_law(centres: np.ndarray) -> Law:
    """Fit every law to the track (T, 2); sums of distances rather than squares, so that a jump does not decide."""
    best: tuple[float, str, str, np.ndarray] | None = None
    for motion in MOTIONS:
        for speed in SPEEDS if motion != "still" else SPEEDS[:1]:
            curve = _placed(centres, motion, speed)
            residual = float(np.mean(np.linalg.norm(centres - curve, axis=1)))
            if best is None or residual < best[0]:
                best = (residual, motion, speed, curve)
    assert best is not None
    residual, motion, speed, curve = best
    return Law(motion, speed, residual, _jitter(centres, curve), _stalls(centres, curve), _length(centres))


def _curve(motion: str, speed: str, phase: float, frames: int) -> np.ndarray:
    time = np.arange(frames) / (FRAMES - 1)
    if motion in DIRECTIONS:
        return time[:, None] * TRAVEL[speed] * np.array(DIRECTIONS[motion])
    if motion == "circling":
        angle = 2 * np.pi * TURNS[speed] * time + phase
        return ORBIT * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if motion == "bouncing":
        return np.stack([0 * time, -BOUNCE_HEIGHT * np.abs(np.sin(np.pi * BOUNCES[speed] * time))], axis=1)
    return np.zeros((frames, 2))


def _placed(centres: np.ndarray, motion: str, speed: str) -> np.ndarray:
    """The law's curve, shifted (and for circling: turned) to lie nearest to the track."""
    phase = 0.0
    if motion == "circling":
        time = np.arange(len(centres)) / (FRAMES - 1)
        wave = np.exp(2j * np.pi * TURNS[speed] * time)
        basis = np.stack([np.ones_like(wave), wave], axis=1)
        solution, *_ = np.linalg.lstsq(basis, centres[:, 0] + 1j * centres[:, 1], rcond=None)
        phase = float(np.angle(solution[1]))
    curve = _curve(motion, speed, phase, len(centres))
    return curve + np.median(centres - curve, axis=0)


def _jitter(centres: np.ndarray, curve: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.sum(np.diff(centres - curve, n=2, axis=0) ** 2, axis=1))))


def _stalls(centres: np.ndarray, curve: np.ndarray) -> float:
    moved = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    due = np.linalg.norm(np.diff(curve, axis=0), axis=1)
    moving = due > 0.2
    return float(np.mean(moved[moving] < 0.3 * due[moving])) if moving.any() else 0.0


def _length(centres: np.ndarray) -> float:
    return float(np.linalg.norm(centres[2::2] - centres[:-2:2], axis=1).sum())
