"""Exact, anti-aliased rendering of a scene, and the defects that real training data has.

A shape is a signed distance function; its coverage is a smooth ramp of `EDGE` pixels across the outline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter

from reelign.miniature.world import BACKGROUNDS, COLOURS, FRAMES, RADII, SIDE, Scene, track

EDGE = 1.6
"""Width of the anti-aliased outline in pixels."""


def render(scene: Scene, generator: np.random.Generator) -> np.ndarray:
    """A clean clip of the scene, uint8 (T, H, W, 3)."""
    return render_track(scene, track(scene, generator))


def render_track(scene: Scene, centres: np.ndarray) -> np.ndarray:
    """A clean clip whose object follows the given centres (T, 2), uint8 (T, H, W, 3)."""
    alpha = coverage(scene.shape, np.full(len(centres), RADII[scene.size]), centres)
    return compose(alpha, COLOURS[scene.colour], BACKGROUNDS[scene.background])


def compose(alpha: np.ndarray, colour: tuple[int, int, int], background: tuple[int, int, int]) -> np.ndarray:
    """Paint `colour` over `background` with coverage `alpha` (T, H, W) in [0, 1]; uint8 (T, H, W, 3)."""
    front, back = np.asarray(colour, np.float32), np.asarray(background, np.float32)
    return np.rint(back + alpha[..., None] * (front - back)).astype(np.uint8)


def coverage(shape: str, radii: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Share of each pixel that the object covers, (T, H, W) in [0, 1].

    Args:
        shape: a name of `world.SHAPES`.
        radii: (T,) pixels.
        centres: (T, 2) pixels, (x, y); pixel (i, j) has its middle at (j + 0.5, i + 0.5).
    """
    grid = np.arange(SIDE, dtype=np.float32) + 0.5
    x = grid[None, None, :] - centres[:, 0, None, None].astype(np.float32)
    y = grid[None, :, None] - centres[:, 1, None, None].astype(np.float32)
    distance = DISTANCES[shape](x, y, radii[:, None, None].astype(np.float32))
    ramp = np.clip(0.5 - distance / EDGE, 0.0, 1.0)
    return ramp * ramp * (3 - 2 * ramp)


def _circle(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - r


def _square(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.92 * r


def _triangle(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Isosceles, apex up, as high as it is wide."""
    side = (2 * np.abs(x) - (y + r)) / np.sqrt(5.0)
    return np.maximum(side, y - r)


def _ring(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.74 * r) - 0.26 * r


def _cross(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - r, short - 0.3 * r)


DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
    "cross": _cross,
}


def defective(scene: Scene, generator: np.random.Generator, defect: str, strength: float = 1.0) -> np.ndarray:
    """A clip of the scene with one planted defect, uint8 (T, H, W, 3).

    Args:
        scene: what the clip should have shown.
        generator: source of placement and of the defect's own randomness.
        defect: a name of `DEFECTS`.
        strength: 1 is plainly visible; training data draws it from a range.
    """
    if defect in VISUAL_DEFECTS or defect == "flicker":
        frames = render(scene, generator).astype(np.float32)
        return np.clip(np.rint(_PIXELS[defect](frames, generator, strength)), 0, 255).astype(np.uint8)
    centres, radii = track(scene, generator), np.full(FRAMES, RADII[scene.size])
    if defect == "deformation":
        radii = _pulsing(radii, generator, strength)
    else:
        centres = _TRACKS[defect](centres, generator, strength)
    alpha = coverage(scene.shape, radii, centres)
    return compose(alpha, COLOURS[scene.colour], BACKGROUNDS[scene.background])


def spoiled(
    scene: Scene, generator: np.random.Generator, strengths: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """A clip with several defects at once, by name and strength, and where its object is.

    Returns:
        frames uint8 (T, H, W, 3), and the object's centres (T, 2) in pixels.
    """
    centres, radii = track(scene, generator), np.full(FRAMES, RADII[scene.size])
    for defect, change in _TRACKS.items():
        if defect in strengths:
            centres = change(centres, generator, strengths[defect])
    if "deformation" in strengths:
        radii = _pulsing(radii, generator, strengths["deformation"])
    alpha = coverage(scene.shape, radii, centres)
    frames = compose(alpha, COLOURS[scene.colour], BACKGROUNDS[scene.background]).astype(np.float32)
    for defect, spoil in _PIXELS.items():
        if defect in strengths:
            frames = spoil(frames, generator, strengths[defect])
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8), centres


def _blur(frames: np.ndarray, generator: np.random.Generator, strength: float) -> np.ndarray:
    sigma = 1.5 * strength
    return gaussian_filter(frames, (0, sigma, sigma, 0), mode="nearest")


def _noise(frames: np.ndarray, generator: np.random.Generator, strength: float) -> np.ndarray:
    return frames + generator.normal(0, 22 * strength, frames.shape)


def _low_contrast(frames: np.ndarray, generator: np.random.Generator, strength: float) -> np.ndarray:
    share = 0.45 * min(strength, 1.6)
    return (1 - share) * frames + share * frames.mean((0, 1, 2))


def _flicker(frames: np.ndarray, generator: np.random.Generator, strength: float) -> np.ndarray:
    return frames + generator.normal(0, 24 * strength, (FRAMES, 1, 1, 1))


def _pulsing(radii: np.ndarray, generator: np.random.Generator, strength: float) -> np.ndarray:
    return radii * (1 + 0.32 * strength * np.sin(generator.uniform(0, 6.3) + 2.4 * np.arange(FRAMES)))


def _jerk(centres: np.ndarray, generator: np.random.Generator, strength: float) -> np.ndarray:
    return centres + generator.normal(0, 0.9 * strength, centres.shape)


def _teleport(centres: np.ndarray, generator: np.random.Generator, strength: float) -> np.ndarray:
    """The object jumps aside for the middle of the clip and comes back."""
    start = int(generator.integers(4, 7))
    angle = generator.uniform(0, 2 * np.pi)
    jumped = centres.copy()
    jumped[start : start + 5] += 7 * strength * np.array([np.cos(angle), np.sin(angle)])
    return np.clip(jumped, 5, SIDE - 5)


def _freeze(centres: np.ndarray, generator: np.random.Generator, strength: float) -> np.ndarray:
    """The object stops for part of the clip, then catches up at once."""
    start = int(generator.integers(3, 6))
    length = max(2, round(6 * strength))
    frozen = centres.copy()
    frozen[start : start + length] = centres[start]
    return frozen


_PIXELS = {"blur": _blur, "noise": _noise, "low contrast": _low_contrast, "flicker": _flicker}
_TRACKS = {"jerk": _jerk, "teleport": _teleport, "freeze": _freeze}

Defect = Literal["blur", "noise", "low contrast", "flicker", "jerk", "teleport", "deformation", "freeze"]
VISUAL_DEFECTS: tuple[Defect, ...] = ("blur", "noise", "low contrast")
MOTION_DEFECTS: tuple[Defect, ...] = ("flicker", "jerk", "teleport", "deformation", "freeze")
DEFECTS = VISUAL_DEFECTS + MOTION_DEFECTS
