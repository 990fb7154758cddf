"""What pixels alone say of a clip of the miniature: measures that need no weights, for a reward that votes teach.

The eye takes the mean of each latent frame, and sees little of how steadily something moves; a few hundred votes do not
teach it either (docs/results/reward.md). Here the ground is what the rim of a frame shows, and the object what differs
from it. No estimator of a judge is used: no outline is traced, no scene is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.signal import savgol_filter

from reelign.miniature.render import DEFECTS, spoiled
from reelign.miniature.world import FRAMES, SIDE, scenes

NAMES = (
    "tone",
    "light",
    "light step",
    "turn",
    "jerk",
    "worst jerk",
    "tremor",
    "growth",
    "growth step",
    "reshaping",
    "area",
    "least area",
    "radius",
    "pace",
    "slowest",
    "width",
    "height",
    "mist",
    "blur",
    "contrast",
    "change",
    "restlessness",
)
TONE = np.array([name == "tone" for name in NAMES])
"""The only measure that is no size of something."""
RIM = 2
"""Pixels of a frame's edge that are taken for ground."""
OBJECT = (0.25, 0.75)
"""Shares of a clip's contrast below which a pixel is no part of the object, and above which it is."""
LESSONS = 192
"""Rendered clips, half of them spoiled, that say what is usual."""
LEAST = 1e-3
"""What keeps a share of nothing from being infinite."""
BOUND = 4.0
"""Most deviations of a measure: a clip unlike all others shall not decide alone."""
CALM = np.asarray(savgol_filter(np.eye(FRAMES), 5, 2, axis=0))
"""A track (T, 2) times this is that track without its tremor: a parabola through each five frames."""


@dataclass(frozen=True)
class Reading:
    """What the pixels of a clip say.

    Attributes:
        track: where the object is in each frame, (T, 2) as (x, y) in pixels.
        signals: the measures in the order of `NAMES`, standardised over rendered clips, float32.
    """

    track: np.ndarray
    signals: np.ndarray


def read(frames: np.ndarray) -> Reading:
    """Measure a clip, uint8 (T, H, W, 3)."""
    track, measures = _measured(frames)
    clean, centre, scale = _usual()
    return Reading(track, ((_felt(measures, clean) - centre) / scale).clip(-BOUND, BOUND).astype(np.float32))


def _felt(measures: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Faults multiply, so they are felt as logarithms; what is far below a clean clip's is no better than none. The
    tone stays as it is."""
    return np.where(TONE, measures, np.log(clean + measures))


@cache
def _usual() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of training scenes: the mean of each measure over clean clips, and how it is felt over clean and spoiled ones,
    mean and deviation."""
    pool, clean, spoilt = scenes(held_out=False), [], []
    for index in range(LESSONS):
        source = np.random.default_rng((17, index))
        scene = pool[int(source.integers(len(pool)))]
        strengths = {name: source.uniform(0.1, 1.2) for name in DEFECTS if index % 2 and source.random() < 0.4}
        (spoilt if index % 2 else clean).append(_measured(spoiled(scene, source, strengths)[0])[1])
    usual = np.mean(clean, axis=0) + LEAST
    felt = _felt(np.array(clean + spoilt), usual)
    return usual, felt.mean(0), felt.std(0)


@dataclass(frozen=True)
class _Apart:
    """What is apart from the ground.

    Attributes:
        ground: its colour in each frame, (T, 3).
        apart: distance of each pixel's colour from it, (T, H, W).
        contrast: that of the object.
        body: how much of a pixel is the object, in [0, 1], (T, H, W).
        area: of the object, in pixels, (T,).
        centres: (T, 2).
    """

    ground: np.ndarray
    apart: np.ndarray
    contrast: float
    body: np.ndarray
    area: np.ndarray
    centres: np.ndarray


PLACES = np.arange(SIDE) + 0.5
"""Of the pixels of a line."""


def _apart(video: np.ndarray) -> _Apart:
    ground = np.median(_rim(video), axis=1)
    apart = np.linalg.norm(video - ground[:, None, None], axis=-1)
    contrast = float(np.percentile(apart, 98)) + LEAST
    body = np.clip((apart / contrast - OBJECT[0]) / (OBJECT[1] - OBJECT[0]), 0, 1)
    area = body.sum((1, 2)) + LEAST
    centres = np.stack([(body.sum(1) * PLACES).sum(1), (body.sum(2) * PLACES).sum(1)], axis=1) / area[:, None]
    return _Apart(ground, apart, contrast, body, area, centres)


def _measured(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The track of a clip, and its measures in the order of `NAMES` as they are: none is below 0."""
    video = frames.astype(np.float32) / 255
    seen = _apart(video)
    body, area, centres = seen.body, seen.area, seen.centres
    share = np.clip(seen.apart / seen.contrast, 0, 1)
    across, down = (PLACES - centres[:, side, None] for side in (0, 1))
    radii = np.sqrt((body * (across[:, None, :] ** 2 + down[:, :, None] ** 2)).sum((1, 2)) / area) + LEAST
    light = seen.ground.mean(1)
    pace, turn, jerk = (np.linalg.norm(np.diff(centres, order, axis=0), axis=1) for order in (1, 2, 3))
    measures = [
        light.mean(),
        light.std(),
        np.abs(np.diff(light)).mean(),
        np.sqrt(np.mean(turn**2)),
        np.median(jerk),
        jerk.max(),
        np.sqrt(np.mean((centres - CALM @ centres) ** 2)),
        area.std() / area.mean(),
        np.abs(np.diff(area)).mean() / area.mean(),
        radii.std() / radii.mean(),
        area.mean(),
        area.min() / area.mean(),
        radii.mean(),
        pace.mean(),
        np.sort(pace)[:4].mean(),
        *np.ptp(centres, axis=0),
        np.minimum(seen.apart, OBJECT[0] * seen.contrast).mean(),
        (share * (1 - share)).mean(),
        seen.contrast,
        *(np.abs(np.diff(video, order, axis=0)).mean() for order in (1, 2)),
    ]
    return centres, np.array(measures)


def _rim(video: np.ndarray) -> np.ndarray:
    """The pixels of each frame's edge, (T, N, 3)."""
    inside = np.ones(video.shape[1:3], bool)
    inside[RIM:-RIM, RIM:-RIM] = False
    return video[:, inside]
