"""The training judge: geometry of outlines, in place of the evaluation judge's analysis by synthesis.

Training may use it as a reward. It shares no estimator with `judge`: pixels become outlines (`outlines`), shape is the
nearest of a few measured features, motion is read from slopes, ranges and turns of the track, and quality from
gradients, residues and steps that no neighbour foretells. A policy that fools this judge does not fool the other one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import cv2
import numpy as np

from reelign.miniature.judgement import Judgement, falloff
from reelign.miniature.outlines import FEATURES, Outlines, trace
from reelign.miniature.render import render_track
from reelign.miniature.world import (
    ATTRIBUTES,
    BACKGROUNDS,
    BOUNCE_HEIGHT,
    BOUNCES,
    COLOURS,
    DIRECTIONS,
    FRAMES,
    MOTIONS,
    ORBIT,
    RADII,
    SHAPES,
    SIDE,
    SPEEDS,
    TRAVEL,
    TURNS,
    Scene,
)

STILL_RANGE = 3.0
"""Pixels: an object that stays within this is still."""
STRAIGHT = 0.8
"""Share of the track's variance that a straight motion must explain."""
JUMP = 3.5
"""Pixels a frame: a step that differs by more from what both neighbours foretell is a jump."""
DUE_WAY = 0.92
"""Share of its way, measured on the calmed track, that costs nothing: calming cuts corners."""
FAINT = 0.08
"""Share of the contrast below which a pixel is ground."""
LEAST_BODY = 1.0
"""Difference in Lab that an object is taken to have from its ground, where it has less or none."""
CLEAN_UNDECIDED = 1.2
"""Undecided pixels of a clean clip, over those that its outline is due."""
HALF_UNDECIDED = 150.0
"""Undecided pixels of a frame, beyond those of a clean one, that halve the score."""
HALF_STRANGE = 30.0
"""Pixels of a frame that are as far from the line between its two colours as these are from each other, that halve the
score."""
HALF_PROPORTION = 0.3
"""Log ratio of an object to the size that it is nearest to, that halves the score."""
HALF_TONE = 11.0
"""Difference of the ground's lightness from the background that it is nearest to, that halves the score."""
CLEAR_LEAD = 0.5
"""How much nearer an asked value must be than the next best to be shown without doubt, over the sum of both."""
HALF_CONSTANT = 1.5
"""Spread of an outline's features over the frames, in units of their spread between pixels, that halves the score."""
HALF_UNREST = 9.0
"""Mean distance in Lab of the ground from its own colour that halves the score."""


def training_judge(frames: np.ndarray, scene: Scene, stated: Sequence[str] = ATTRIBUTES) -> Judgement:
    """Judge a video, uint8 (T, 32, 32, 3) at 8 fps, against the scene that was asked for."""
    seen = trace(frames)
    track = _reconnected(seen.centres)
    motion, speed = _motion(track)
    apart = {
        "colour": _colours(seen),
        "shape": _shapes(seen),
        "size": _sizes(seen),
        "motion": {name: float(name != motion) for name in MOTIONS},
        "speed": {name: float(name != speed) for name in SPEEDS},
        "background": _backgrounds(seen),
    }
    if scene.motion == "still":
        stated = [name for name in stated if name != "speed"]
    there = bool(seen.found.any())
    passed = {name: there and _nearest(apart[name]) == getattr(scene, name) for name in stated}
    text = np.mean([_clearness(apart[name], getattr(scene, name)) for name in stated]) if there else 0.0
    visual = _visual(seen, *(_nearest(apart[name]) for name in ("colour", "shape", "background")))
    movement = _movement(seen, scene, _pace(track, scene, motion, speed))
    return Judgement(
        float(text),
        float(np.prod(list(visual.values()))),
        float(np.prod(list(movement.values()))),
        passed,
        visual | movement,
    )


def _lab(colour: Sequence[float] | np.ndarray) -> np.ndarray:
    """CIE Lab of one RGB colour in [0, 255]."""
    return cv2.cvtColor(np.asarray(colour, np.float32).reshape(1, 1, 3) / 255, cv2.COLOR_RGB2Lab)[0, 0]


def _hue(colour: Sequence[float] | np.ndarray) -> float:
    """Angle in the plane of Lab's a and b. All backgrounds are neutral, so mixing with one hardly turns it."""
    _, a, b = _lab(colour)
    return float(np.arctan2(b, a))


def _nearest(apart: Mapping[str, float]) -> str:
    return min(apart, key=lambda name: apart[name])


def _clearness(apart: Mapping[str, float], asked: str) -> float:
    """How clearly the asked value is shown rather than the next best, in [0, 1]; one half where both are as near.

    A clip on its way to what was asked is worth more than one that is not: the reward has a slope.
    """
    other = min(distance for name, distance in apart.items() if name != asked)
    lead = (other - apart[asked]) / max(other + apart[asked], 1e-9)
    return float(np.clip(0.5 + 0.5 * lead / CLEAR_LEAD, 0.0, 1.0))


def _colours(seen: Outlines) -> dict[str, float]:
    """Difference of hue to each colour, in radians."""
    own = _hue(seen.colour)
    return {name: float(abs(np.angle(np.exp(1j * (hue - own))))) for name, hue in _hues().items()}


@cache
def _hues() -> dict[str, float]:
    """Of the world's colours."""
    return {name: _hue(colour) for name, colour in COLOURS.items()}


def _backgrounds(seen: Outlines) -> dict[str, float]:
    """Difference of lightness to each background."""
    own = float(np.median(seen.ground[:, 0]))
    return {name: abs(lightness - own) for name, lightness in _lightness().items()}


@cache
def _lightness() -> dict[str, float]:
    """Of the world's backgrounds."""
    return {name: float(_lab(colour)[0]) for name, colour in BACKGROUNDS.items()}


def _sizes(seen: Outlines) -> dict[str, float]:
    """Log ratio of the half extent to each radius."""
    extent = float(np.median(seen.extents[seen.found])) if seen.found.any() else 0.0
    return {name: abs(float(np.log(max(extent, 1e-3) / radius))) for name, radius in RADII.items()}


def _shapes(seen: Outlines) -> dict[str, float]:
    """Distance of the typical outline's features to those of each shape, each in units of its spread when clean."""
    means, spread, _, _ = _prototypes(_nearest(_sizes(seen)))
    return {name: float(np.linalg.norm((seen.typical - mean) / spread)) for name, mean in means.items()}


@cache
def _prototypes(size: str) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, float], dict[str, float]]:
    """Features of every shape's typical outline at nine places between pixels, the spread of each feature over these
    places, the share of its colour's contrast that each shape shows (thin shapes show less), and its undecided pixels.
    """
    means, spreads, shown, undecided = {}, [], {}, {}
    offsets = np.stack(np.meshgrid(*[(0.0, 1 / 3, 2 / 3)] * 2), -1).reshape(-1, 2)
    for name in SHAPES:
        scene = Scene("red", name, size, "still", "slow", "white")
        seen = trace(render_track(scene, SIDE / 2 + offsets))
        means[name] = seen.typical
        spreads.append(seen.features.std(0))
        shown[name] = seen.contrast / _full_contrast(scene.colour, scene.background)
        undecided[name] = _undecided(seen)
    return means, np.maximum(np.mean(spreads, axis=0), 0.04 * np.ones(len(FEATURES))), shown, undecided


def _full_contrast(colour: str, background: str) -> float:
    """Distance in Lab of a colour and a background."""
    return float(np.linalg.norm(_lab(COLOURS[colour]) - _lab(BACKGROUNDS[background])))


def _motion(centres: np.ndarray) -> tuple[str, str]:
    """Name of the motion and of its speed, from a track (T, 2) in pixels."""
    calm = _calm(centres)
    width, height = np.ptp(calm, axis=0)
    if max(width, height) < STILL_RANGE:
        return "still", "slow"
    slopes = _theil_sen(centres)
    time = np.arange(len(centres))[:, None] - (len(centres) - 1) / 2
    left = calm - calm.mean(0) - time * slopes
    if 1 - np.sum(left**2) / max(np.sum((calm - calm.mean(0)) ** 2), 1e-6) > STRAIGHT:
        motion = max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], slopes)))
        covered = float(np.abs(slopes).max()) * (FRAMES - 1)
        return motion, "fast" if covered > np.sqrt(TRAVEL["slow"] * TRAVEL["fast"]) else "slow"
    if width < 0.35 * height:
        waves = np.abs(np.fft.rfft(calm[:-1, 1] - calm[:-1, 1].mean()))
        return "bouncing", "fast" if waves[2] > waves[1] else "slow"
    return "circling", "fast" if _turns(centres) > np.sqrt(TURNS["slow"] * TURNS["fast"]) else "slow"


def _reconnected(centres: np.ndarray) -> np.ndarray:
    """The track without jumps there and back: a defect of the motion that does not say which motion it is."""
    steps = np.diff(centres, axis=0)
    surprises = _surprises(steps)
    jumps = surprises > max(JUMP, 4 * float(np.median(surprises)))
    if not jumps.any():
        return centres
    time, calm = np.arange(len(steps)), np.flatnonzero(~jumps)
    mended = np.stack([np.interp(time, calm, steps[calm, axis]) for axis in (0, 1)], axis=1)
    excess = (steps - mended)[jumps]
    if np.linalg.norm(excess.sum(0)) > 0.5 * np.linalg.norm(excess, axis=1).sum():
        return centres
    return np.concatenate([centres[:1], centres[0] + np.cumsum(mended, axis=0)])


def _theil_sen(centres: np.ndarray) -> np.ndarray:
    """Median slope over all pairs of frames, (2,) in pixels a frame: a third of the frames may lie anywhere."""
    first, second = np.triu_indices(len(centres), k=1)
    return np.median((centres[second] - centres[first]) / (second - first)[:, None], axis=0)


def _turns(centres: np.ndarray) -> float:
    """Turns around the centre of the circle that fits the track algebraically (Kasa, 1976)."""
    system = np.column_stack([2 * centres, np.ones(len(centres))])
    solution = np.linalg.lstsq(system, np.sum(centres**2, axis=1), rcond=None)[0]
    around = centres - solution[:2]
    angles = np.unwrap(np.arctan2(around[:, 1], around[:, 0]))
    return float(abs(angles[-1] - angles[0]) / (2 * np.pi))


def _visual(seen: Outlines, colour: str, shape: str, background: str) -> dict[str, float]:
    """Cleanness, constancy, wholeness, contrast, proportion and tone, each in [0, 1].

    Cleanness counts what is unclear about the outline, impure in the colours and restless on the ground. Constancy: an
    object that is of another shape in every frame is drawn badly, however sharp its outline. Contrast, proportion and
    tone (of the ground) have their best value in the middle: a policy that may exceed them draws larger and gaudier,
    which trembles less, on grounds so white or so black that nothing flickers.
    """
    if not seen.found.any():
        return dict.fromkeys(("clean", "constancy", "wholeness", "contrast", "proportion", "tone"), 0.0)
    outside = cv2.dilate((seen.distance > 0.25 * seen.contrast).transpose(1, 2, 0).astype(np.uint8), np.ones((3, 3)))
    apart = outside.reshape(SIDE, SIDE, -1).transpose(2, 0, 1) == 0
    unrest = float(np.mean(seen.distance[apart])) if apart.any() else seen.contrast
    sizes = _sizes(seen)
    _, spread, shown, undecided = _prototypes(_nearest(sizes))
    inconstant = float(np.mean(seen.features[seen.found].std(0) / spread))
    due = _full_contrast(colour, background) * shown[shape]
    blurred = max(0.0, _undecided(seen) - CLEAN_UNDECIDED * undecided[shape])
    return {
        "clean": 1 / (1 + blurred / HALF_UNDECIDED + _strange(seen) / HALF_STRANGE + unrest / HALF_UNREST),
        "constancy": falloff(inconstant, HALF_CONSTANT),
        "wholeness": 1 - float(np.mean(seen.fragments)),
        "contrast": falloff(1 - seen.contrast / due, 0.35),
        "proportion": falloff(min(sizes.values()), HALF_PROPORTION),
        "tone": falloff(min(_backgrounds(seen).values()), HALF_TONE),
    }


def _undecided(seen: Outlines) -> float:
    """How many pixels of a frame are neither ground nor object: few around a sharp outline, many in a blurred, mottled
    or noisy picture. Each counts `|4 c (1 - c)|` where c is its distance from the ground over the body's."""
    body = np.maximum(np.linalg.norm(seen.bodies, axis=1), LEAST_BODY)
    share = seen.distance / body[:, None, None]
    return float(np.mean(np.sum(np.where(share < FAINT, 0.0, np.abs(4 * share * (1 - share))), axis=(1, 2))))


def _strange(seen: Outlines) -> float:
    """How much of a frame is of neither colour nor a mixture of both: the sum over pixels of the distance in Lab from
    the line through ground and body, over the distance of these two."""
    bodies = seen.bodies
    body = np.maximum(np.linalg.norm(bodies, axis=1), LEAST_BODY)
    along = np.matmul(seen.apart, (bodies / body[:, None])[:, None, :, None])[..., 0]
    off = np.sqrt(np.maximum(seen.distance**2 - along**2, 0.0))
    return float(np.mean(np.sum(off / body[:, None, None], axis=(1, 2))))


def _movement(seen: Outlines, scene: Scene, pace: float) -> dict[str, float]:
    """Presence, smoothness, steady light, rigidity, flow and enough motion, each in [0, 1]."""
    if not seen.found.any():
        return dict.fromkeys(("presence", "smoothness", "steady light", "rigidity", "unbroken", "pace"), 0.0)
    areas = seen.areas[seen.found]
    steps = np.diff(seen.centres, axis=0)
    moving = scene.motion != "still"
    return {
        "presence": float(seen.found.mean()),
        "smoothness": falloff(float(np.sqrt(np.mean(_surprises(steps) ** 2))), 1.3),
        "steady light": falloff(_unsteady(seen), 5.0),
        "rigidity": falloff(float(np.std(areas) / np.mean(areas)), 0.35),
        "unbroken": falloff(max(0, _longest_rest(steps) - 3), 3.0) if moving else 1.0,
        "pace": pace,
    }


def _unsteady(seen: Outlines) -> float:
    """Spread over the frames of the lightness of ground and object, root mean square of the two.

    Light falls on both. The ground alone can hide it: a policy that may not be bright and dark by turns finds grounds
    so white or so black that nothing is left to change.
    """
    ground = seen.ground[:, 0]
    return float(np.hypot(np.std(ground), np.std(ground + seen.bodies[:, 0])) / np.sqrt(2))


def _pace(track: np.ndarray, scene: Scene, motion: str, speed: str) -> float:
    """Share of its way that the object covers on its track (T, 2) without jumps, at most 1.

    Due is the way of the motion and speed that are seen: a clip of another speed than the asked one lacks no motion, it
    shows the wrong one. Without this a policy finds that the slower, the smoother and the sharper, and slows down.
    """
    if scene.motion == "still":
        return 1.0
    if motion == "still":
        motion, speed = scene.motion, "slow"
    due = {
        "circling": 2 * np.pi * ORBIT * TURNS[speed],
        "bouncing": 2 * BOUNCE_HEIGHT * BOUNCES[speed],
    }.get(motion, TRAVEL[speed])
    way = float(np.linalg.norm(np.diff(_calm(track), axis=0), axis=1).sum())
    return min(1.0, way / (DUE_WAY * due))


def _calm(centres: np.ndarray) -> np.ndarray:
    """The track (T, 2) without its tremor, by a binomial average over three frames."""
    return np.stack([np.convolve(np.pad(line, 1, "edge"), (0.25, 0.5, 0.25), "valid") for line in centres.T], 1)


def _surprises(steps: np.ndarray) -> np.ndarray:
    """What neither the two steps before nor the two after foretell of each step, in pixels a frame.

    A bounce is foretold from one side and costs nothing; a jump or a tremor is foretold from none.
    """
    before = np.full(len(steps), np.inf)
    after = np.full(len(steps), np.inf)
    before[2:] = np.linalg.norm(steps[2:] - (2 * steps[1:-1] - steps[:-2]), axis=1)
    after[:-2] = np.linalg.norm(steps[:-2] - (2 * steps[1:-1] - steps[2:]), axis=1)
    return np.minimum(before, after)


def _longest_rest(steps: np.ndarray) -> int:
    """Frames in a row in which the object moves less than a quarter of its usual step."""
    length = np.linalg.norm(steps, axis=1)
    longest = run = 0
    for resting in length < 0.25 * np.percentile(length, 75):
        run = run + 1 if resting else 0
        longest = max(longest, run)
    return longest
