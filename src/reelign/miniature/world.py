"""The miniature world: one coloured shape that moves on a plain background, for 17 frames of 32 x 32 pixels.

A scene is six named attributes. Where exactly the object starts is drawn from a generator, so a scene has many clips.
One in eleven of the (colour, shape, motion) triples is held out: no training pair, caption or curated clip of the
miniature ever shows it, and the evaluation battery is made of nothing else.
"""

from __future__ import annotations

import itertools
from dataclasses import astuple, dataclass, fields

import numpy as np

FRAMES, SIDE, FPS = 17, 32, 8.0

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (228, 40, 44),
    "green": (36, 180, 70),
    "blue": (48, 84, 236),
    "yellow": (244, 212, 36),
    "purple": (166, 52, 204),
    "cyan": (40, 204, 214),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (14, 14, 16),
    "grey": (118, 120, 124),
    "white": (242, 242, 238),
}
RADII: dict[str, float] = {"small": 5.4, "large": 8.2}
"""Half the height of the object, in pixels."""
SHAPES = ("circle", "square", "triangle", "ring", "cross")
MOTIONS = ("left", "right", "up", "down", "circling", "bouncing", "still")
SPEEDS = ("slow", "fast")

TRAVEL: dict[str, float] = {"slow": 5.0, "fast": 13.0}
"""Pixels that a straight motion covers from the first frame to the last."""
TURNS: dict[str, float] = {"slow": 0.6, "fast": 1.2}
"""Turns, clockwise, of a circling object."""
ORBIT = 5.2
"""Radius of the circling motion, in pixels."""
BOUNCES: dict[str, float] = {"slow": 1.0, "fast": 2.0}
BOUNCE_HEIGHT = 11.0
"""Pixels from the ground to the top of a bounce."""
DIRECTIONS: dict[str, tuple[float, float]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True, order=True)
class Scene:
    """What a clip shows, in words. `speed` of a still object is always "slow" and never part of a caption."""

    colour: str
    shape: str
    size: str
    motion: str
    speed: str
    background: str

    @property
    def held_out(self) -> bool:
        """Whether training never sees this (colour, shape, motion)."""
        colour, shape, motion = (
            list(COLOURS).index(self.colour),
            SHAPES.index(self.shape),
            MOTIONS.index(self.motion),
        )
        return (2 * colour + 3 * shape + 5 * motion) % 11 == 0

    @property
    def id(self) -> str:
        """The attributes joined by dashes, unique for a scene."""
        return "-".join(astuple(self))


ATTRIBUTES: tuple[str, ...] = tuple(field.name for field in fields(Scene))
VALUES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(RADII),
    "motion": MOTIONS,
    "speed": SPEEDS,
    "background": tuple(BACKGROUNDS),
}
"""The values of each attribute."""


def scenes(held_out: bool) -> list[Scene]:
    """All scenes of one side of the split, in a fixed order."""
    return [scene for scene in _all_scenes() if scene.held_out == held_out]


def _all_scenes() -> list[Scene]:
    moves = [(motion, speed) for motion in MOTIONS for speed in (SPEEDS if motion != "still" else SPEEDS[:1])]
    return [
        Scene(colour, shape, size, motion, speed, background)
        for colour, shape, size, (motion, speed), background in itertools.product(
            COLOURS, SHAPES, RADII, moves, BACKGROUNDS
        )
    ]


def track(scene: Scene, generator: np.random.Generator) -> np.ndarray:
    """Centre of the object in each frame, (T, 2) as (x, y) in pixels; the object never leaves the picture."""
    time = np.linspace(0.0, 1.0, FRAMES)
    path = _path(scene, time, generator)
    margin = RADII[scene.size] + 0.6
    low, high = margin - path.min(0), SIDE - margin - path.max(0)
    return path + generator.uniform(low, np.maximum(high, low))


def _path(scene: Scene, time: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The motion alone, (T, 2), up to a shift."""
    if scene.motion in DIRECTIONS:
        return time[:, None] * TRAVEL[scene.speed] * np.array(DIRECTIONS[scene.motion])
    if scene.motion == "circling":
        angle = 2 * np.pi * (TURNS[scene.speed] * time + generator.uniform())
        return ORBIT * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if scene.motion == "bouncing":
        height = BOUNCE_HEIGHT * np.abs(np.sin(np.pi * BOUNCES[scene.speed] * time))
        return np.stack([np.zeros_like(time), -height], axis=1)
    return np.zeros((FRAMES, 2))
