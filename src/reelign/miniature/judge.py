"""The evaluation judge: it renders what it believes it sees and compares (analysis by synthesis).

It never looks at a model and shares no estimator with `training_judge`, which training may use as a reward. From the
frames alone it estimates background, colour, coverage, shape, radius, track and motion law; then it asks how far the
video is from a rendering of those estimates. Three axes in [0, 1], 1 is a clean rendering of the scene:

* text: share of the stated attributes that the video shows;
* visual: sharpness x freedom from artefacts x contrast;
* motion: smoothness x nearness to a motion law x steadiness of light x rigidity x enough motion for what was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter

from reelign.miniature.judgement import Judgement, falloff
from reelign.miniature.render import coverage
from reelign.miniature.tracks import fit_law
from reelign.miniature.world import ATTRIBUTES, BACKGROUNDS, COLOURS, RADII, SHAPES, SIDE, Scene

BLURS = (0.0, 0.3, 0.6, 0.9, 1.2, 1.6, 2.0)
TEMPLATE_RADII = np.arange(3.4, 9.7, 0.3)
PATCH = 12
"""Half the side, in pixels, of the window around the object."""


def judge(frames: np.ndarray, scene: Scene, stated: Sequence[str] = ATTRIBUTES) -> Judgement:
    """Judge a video, uint8 (T, 32, 32, 3) at 8 fps, against the scene that was asked for."""
    seen = _observe(frames.astype(np.float32))
    law = fit_law(seen.centres)
    values = {
        "colour": seen.colour,
        "shape": seen.shape,
        "size": seen.size,
        "motion": law.motion,
        "speed": law.speed,
        "background": seen.background,
    }
    if scene.motion == "still":
        stated = [name for name in stated if name != "speed"]
    passed = {name: values[name] == getattr(scene, name) for name in stated}
    details = _visual_details(seen) | _motion_details(seen, law.residual, law.jitter, law.stalls)
    due = 0.6 * law.least_path(scene.motion)
    details["enough motion"] = min(1.0, law.path_length / due) if due else 1.0
    visual = details["sharpness"] * details["artefacts"] * details["contrast"]
    motion = float(np.prod([details[k] for k in ("smoothness", "law", "light", "rigidity", "flow", "enough motion")]))
    return Judgement(float(np.mean(list(passed.values()))), visual, motion, passed, details)


@dataclass(frozen=True)
class _Seen:
    """What the judge believes it sees. Lengths in pixels, light in units of 255."""

    background: str
    colour: str
    shape: str
    size: str
    gain: float
    light: np.ndarray
    centres: np.ndarray
    radii: np.ndarray
    blur: float
    misfit: np.ndarray
    palette_error: float


def _observe(frames: np.ndarray) -> _Seen:
    grounds = _border(frames)
    ground = np.median(grounds, axis=0)
    background = _nearest(ground, BACKGROUNDS)
    front = _front_colour(frames, grounds)
    colour, gain = _match_colour(front, BACKGROUNDS[background])
    alpha = _coverage_of(frames, grounds, front)
    centroids, areas = _moments(alpha)
    typical = np.argsort(np.abs(areas - np.median(areas)))[: max(3, len(areas) // 3)]
    patch = _aligned_mean(alpha[typical], centroids[typical])
    shape, _, blur = _match_template(patch)
    unit_area, offset = _geometry(shape)
    radii = np.clip(np.sqrt(np.maximum(areas, 0.0) / unit_area), 2.0, 14.0)
    centres = centroids - np.stack([np.zeros_like(radii), offset * radii], axis=1)
    believed = gaussian_filter(coverage(shape, radii, centres), (0, blur, blur))
    painted = grounds[:, None, None, :] + believed[..., None] * front
    misfit = np.sqrt(np.mean((frames - painted) ** 2, axis=(1, 2, 3))) / 255
    size = min(RADII, key=lambda name: abs(np.log(np.median(radii) / RADII[name])))
    expected = np.asarray(BACKGROUNDS[background], np.float32)
    error = float(np.linalg.norm(ground - expected)) / 255
    return _Seen(background, colour, shape, size, gain, grounds, centres, radii, blur, misfit, error)


def _border(frames: np.ndarray) -> np.ndarray:
    """Median colour of the outermost two pixels of each frame, (T, 3)."""
    mask = np.ones((SIDE, SIDE), bool)
    mask[2:-2, 2:-2] = False
    return np.median(frames[:, mask], axis=1)


def _front_colour(frames: np.ndarray, grounds: np.ndarray) -> np.ndarray:
    """Colour of the object minus its background, (3,): the mean over the most different pixels of each frame."""
    difference = frames - grounds[:, None, None, :]
    smooth = gaussian_filter(difference, (0, 0.7, 0.7, 0)).reshape(len(frames), -1, 3)
    flat = difference.reshape(len(frames), -1, 3)
    strongest = np.argsort(np.linalg.norm(smooth, axis=2), axis=1)[:, -14:]
    return np.median(np.take_along_axis(flat, strongest[..., None], axis=1), axis=(0, 1))


def _nearest(value: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: float(np.linalg.norm(value - np.asarray(palette[name]))))


def _match_colour(front: np.ndarray, background: tuple[int, int, int]) -> tuple[str, float]:
    """The palette colour whose difference to the background, times the best gain, is nearest; and that gain."""
    best = ("", 0.0, np.inf)
    for name, rgb in COLOURS.items():
        step = np.asarray(rgb, np.float32) - np.asarray(background, np.float32)
        gain = float(np.clip(front @ step / (step @ step), 0.3, 1.15))
        error = float(np.linalg.norm(front - gain * step))
        if error < best[2]:
            best = (name, float(front @ step / (step @ step)), error)
    return best[0], best[1]


def _coverage_of(frames: np.ndarray, grounds: np.ndarray, front: np.ndarray) -> np.ndarray:
    """Coverage (T, H, W): the share of the object's colour in each pixel, in [0, 1]."""
    return np.clip((frames - grounds[:, None, None, :]) @ front / max(float(front @ front), 100.0), 0.0, 1.0)


def _moments(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroids (T, 2) as (x, y) and areas (T,) of the coverage; faint pixels far from the object do not count."""
    solid = alpha * (gaussian_filter(alpha, (0, 0.8, 0.8)) > 0.22)
    areas = solid.sum((1, 2))
    grid = np.arange(SIDE) + 0.5
    weight = np.maximum(areas, 1e-3)
    x, y = (solid.sum(1) @ grid) / weight, (solid.sum(2) @ grid) / weight
    centre = np.where(areas[:, None] > 1.0, np.stack([x, y], 1), SIDE / 2)
    return centre, areas


def _aligned_mean(alpha: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The object in its own frame, averaged over time, (2 PATCH, 2 PATCH)."""
    offsets = np.arange(-PATCH, PATCH) + 0.5
    total = np.zeros((2 * PATCH, 2 * PATCH), np.float32)
    for frame, (x, y) in zip(alpha, centroids, strict=True):
        rows, columns = _linear_weights(y + offsets), _linear_weights(x + offsets)
        total += rows @ frame @ columns.T
    return total / len(alpha)


def _linear_weights(positions: np.ndarray) -> np.ndarray:
    """Matrix that reads a line of SIDE pixels at the given positions by linear interpolation; zero outside."""
    return np.maximum(0.0, 1.0 - np.abs(positions[:, None] - (np.arange(SIDE) + 0.5)[None, :])).astype(np.float32)


def _match_template(patch: np.ndarray) -> tuple[str, float, float]:
    """Shape, radius and blur whose rendering is nearest to the patch."""
    keys, bank = _bank()
    errors = np.square(bank - patch.ravel()).sum(1) / (np.square(bank).sum(1) + np.square(patch).sum())
    return keys[int(np.argmin(errors))]


@cache
def _bank() -> tuple[list[tuple[str, float, float]], np.ndarray]:
    """Templates, centred on their centroid and softened as `_aligned_mean` softens."""
    keys, rows = [], []
    soften = np.random.default_rng(0).uniform(-0.5, 0.5, (8, 2))
    for shape in SHAPES:
        for radius in TEMPLATE_RADII:
            centres = SIDE / 2 + soften
            alpha = coverage(shape, np.full(len(soften), radius), centres)
            for blur in BLURS:
                blurred = gaussian_filter(alpha, (0, blur, blur)) if blur else alpha
                centroids, _ = _moments(blurred)
                keys.append((shape, float(radius), blur))
                rows.append(_aligned_mean(blurred, centroids).ravel())
    return keys, np.stack(rows)


@cache
def _geometry(shape: str) -> tuple[float, float]:
    """Area over radius squared, and how far below the centre the centroid lies over the radius."""
    radius = 8.0
    alpha = coverage(shape, np.array([radius]), np.array([[SIDE / 2, SIDE / 2]]))
    centroid, area = _moments(alpha)
    return float(area[0]) / radius**2, float(centroid[0, 1] - SIDE / 2) / radius


def _visual_details(seen: _Seen) -> dict[str, float]:
    return {
        "sharpness": falloff(seen.blur, 1.3),
        "artefacts": falloff(float(np.mean(seen.misfit)), 0.075),
        "contrast": falloff(max(0.0, 1 - seen.gain) + 0.5 * seen.palette_error, 0.4),
    }


def _motion_details(seen: _Seen, residual: float, jitter: float, stalls: float) -> dict[str, float]:
    light = float(np.std(seen.light.mean(1))) / 255
    wobble = float(np.std(seen.radii) / max(float(np.mean(seen.radii)), 1e-6))
    return {
        "smoothness": falloff(jitter, 1.1),
        "law": falloff(residual, 3.0),
        "light": falloff(light, 0.07),
        "rigidity": falloff(wobble, 0.2),
        "flow": falloff(stalls, 0.5),
    }
