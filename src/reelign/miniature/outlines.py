"""Where the object is in each frame, as outlines: what the training judge sees of a video before it judges.

Pixels are compared with the corners of their frame in CIE Lab; Otsu's threshold (1979) over the whole clip parts object
from ground; the distance map, four times larger, is cut at half its height and OpenCV traces the outline. Everything
after that is geometry of closed curves: moments, hull, bounding box and the Fourier coefficients of the radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

ZOOM = 4
CORNER = 4
"""Side of the corner patches that show the ground, in pixels."""
LEAST_CONTRAST = 10.0
"""Distance in Lab from the ground below which there is no object to see."""
LEAST_HEIGHT = 1 / 3
"""Height that one of the pixels has at least from which a cubic makes more than one half."""
SUPPORT = 2
"""Pixels to either side that a cubic is made from."""
LEAST_AREA = 6.0
"""Square pixels below which an outline is a speck."""
FEATURES = ("hollow", "solidity", "extent", "lean", "wave 3", "wave 4")
"""Columns of `Outlines.features`, none of which depends on size: how empty the middle is; area over the hull's; area
over the bounding box's; how far the centroid lies below the box's middle, over the box's height; sine of the third
and cosine of the fourth harmonic of the radius as a function of angle, over the mean radius."""


@dataclass(frozen=True)
class Outlines:
    """The outline of the largest blob of each frame. Lengths in pixels, Lab as OpenCV's floats (L from 0 to 100).

    Attributes:
        ground: colour of the corners of each frame, (T, 3) in Lab.
        apart: each pixel's colour minus its frame's ground, (T, H, W, 3) in Lab.
        distance: distance of each pixel to its frame's ground, (T, H, W).
        contrast: distance of the object's body from the ground.
        colour: the body's RGB, (3,) in [0, 255].
        found: (T,) whether the frame has an outline.
        centres: (T, 2) centroid (x, y) of the area inside the outline; missing frames are interpolated.
        areas: (T,) area inside the outline, 0 where none is found.
        extents: (T,) half the longer side of the bounding box.
        fragments: (T,) share of the area of all blobs that is not the largest blob's.
        features: (T, 6), see `FEATURES`.
        typical: (6,) features of the typical outline: of the median over all frames, laid over each other at their
            centroids, so that what only some frames show does not decide.
    """

    ground: np.ndarray
    apart: np.ndarray
    distance: np.ndarray
    contrast: float
    colour: np.ndarray
    found: np.ndarray
    centres: np.ndarray
    areas: np.ndarray
    extents: np.ndarray
    fragments: np.ndarray
    features: np.ndarray
    typical: np.ndarray

    @cached_property
    def bodies(self) -> np.ndarray:
        """Colour of the object minus its ground's in each frame, (T, 3) in Lab; the clip's own where none is seen."""
        inside = self.distance > 0.5 * self.contrast
        seen = [bool(frame.any()) for frame in inside]
        whole = np.zeros(3) if all(seen) else _median(self.apart[inside])
        return np.stack([_median(a[i]) if s else whole for a, i, s in zip(self.apart, inside, seen, strict=True)])


def trace(frames: np.ndarray) -> Outlines:
    """Segment a clip, uint8 (T, H, W, 3), and trace its object. A clip without an object has no frame `found`."""
    count, height, width = frames.shape[:3]
    lab = cv2.cvtColor((frames.reshape(-1, width, 3) / np.float32(255)).astype(np.float32), cv2.COLOR_RGB2Lab)
    lab = lab.reshape(frames.shape)
    ground = np.median(_corners(lab), axis=1)
    apart = lab - ground[:, None, None, :]
    distance = _length(apart)
    soft = _length(_soften(lab) - ground[:, None, None, :])
    body = soft > max(_otsu(soft), LEAST_CONTRAST)
    blobs = np.zeros((count, 5 + len(FEATURES)))
    contrast, colour = 0.0, np.zeros(3)
    if body.any():
        contrast, colour = float(np.median(soft[body])), frames[body].mean(0)
        enlarged = cv2.resize(
            np.ascontiguousarray(soft.transpose(1, 2, 0)), None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_CUBIC
        ).reshape(height * ZOOM, width * ZOOM, count)
        for index in range(count):
            blobs[index] = _blob(np.ascontiguousarray(enlarged[..., index]) / contrast)
    found = blobs[:, 0] >= LEAST_AREA
    centres = _filled(blobs[:, 1:3], found, (width / 2, height / 2))
    areas, extents, fragments = (np.where(found, blobs[:, column], 0.0) for column in (0, 3, 4))
    typical = _typical(soft[found] / contrast, centres[found]) if found.any() else np.zeros(len(FEATURES))
    return Outlines(
        ground, apart, distance, contrast, colour, found, centres, areas, extents, fragments, blobs[:, 5:], typical
    )


def _typical(heights: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Features of the median of the frames' heights (T, H, W), each moved so that its centre is the picture's."""
    middle = np.array(heights.shape[:0:-1]) / 2  # x, y
    shifts = (middle * ZOOM - ZOOM * centres + (ZOOM - 1) / 2).astype(np.float32)
    left, right = _reach(heights.max(1), shifts[:, 0])
    top, bottom = _reach(heights.max(2), shifts[:, 1])
    moved = [
        cv2.warpAffine(
            height.astype(np.float32),
            np.array([[ZOOM, 0, float(x) - left], [0, ZOOM, float(y) - top]]),
            (right - left, bottom - top),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for height, (x, y) in zip(heights, shifts, strict=True)
    ]
    return _blob(_median(np.stack(moved)))[5:]


def _reach(profiles: np.ndarray, shifts: np.ndarray) -> tuple[int, int]:
    """Where along one side, enlarged, the median of the moved frames may exceed one half: first pixel and one past the
    last. Profiles (T, side) are the largest height over the other side.

    A cubic exceeds one half only where one of its pixels exceeds `LEAST_HEIGHT`, the median only where half of the
    frames do.
    """
    side = profiles.shape[1]
    high = profiles > LEAST_HEIGHT
    first = np.where(high.any(1), high.argmax(1), side)
    last = np.where(high.any(1), side - 1 - high[:, ::-1].argmax(1), -1)
    starts = np.where(first == 0, 0, ZOOM * (first - SUPPORT) + shifts)  # what lies beyond a border is like the border
    ends = np.where(last == side - 1, ZOOM * side, ZOOM * (last + SUPPORT) + shifts)
    half = (len(profiles) - 1) // 2
    start, end = np.sort(starts)[half], np.sort(ends)[::-1][half]
    return max(0, int(start)), min(ZOOM * side, int(end) + 1)


def _median(values: np.ndarray) -> np.ndarray:
    """`np.median` over the first axis, to the bit and in a quarter of its time: what is compared lies side by side, and
    nobody looks for nan."""
    low, high = (len(values) - 1) // 2, len(values) // 2
    ordered = np.moveaxis(values, 0, -1).copy(order="C")
    ordered.partition(low if low == high else (low, high), axis=-1)
    return (ordered[..., low] + ordered[..., high]) / 2


def _corners(lab: np.ndarray) -> np.ndarray:
    """Pixels of the four corners, (T, 4 CORNER^2, 3)."""
    sides = (slice(None, CORNER), slice(-CORNER, None))
    return np.concatenate([lab[:, rows, columns].reshape(len(lab), -1, 3) for rows in sides for columns in sides], 1)


def _length(vectors: np.ndarray) -> np.ndarray:
    x, y, z = (vectors[..., axis] for axis in range(3))  # three planes: a sum over a last axis of three is slow
    return np.sqrt(x * x + y * y + z * z)


def _soften(lab: np.ndarray) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (3, 3), 0.6, borderType=cv2.BORDER_REPLICATE) for frame in lab])


def _otsu(values: np.ndarray) -> float:
    """The threshold that parts the values into two classes with the largest variance between them."""
    top = float(values.max())
    if top <= 0:
        return 0.0
    levels = np.rint(values.reshape(-1, 1) * (255 / top)).astype(np.uint8)
    return cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0] * top / 255


def _blob(height: np.ndarray) -> np.ndarray:
    """Area, centroid x and y, half extent, fragments and the features of the largest blob above half the height."""
    contours, _ = cv2.findContours((height > 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    row = np.zeros(5 + len(FEATURES))
    areas = [cv2.contourArea(contour) for contour in contours]
    if not areas or max(areas) < 1:
        return row
    outline = contours[int(np.argmax(areas))]
    area, hull = max(areas), cv2.contourArea(cv2.convexHull(outline))
    moments = cv2.moments(outline)
    x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    _, top, wide, high = cv2.boundingRect(outline)
    middle = height[max(0, round(y) - 2) : round(y) + 3, max(0, round(x) - 2) : round(x) + 3]
    row[0] = (area + cv2.arcLength(outline, True) / 2) / ZOOM**2
    row[1:3] = (x + 0.5) / ZOOM, (y + 0.5) / ZOOM
    row[3] = max(wide, high) / (2 * ZOOM)
    row[4] = 1 - area / sum(areas)
    row[5:8] = 1 - middle.mean(), area / max(hull, 1.0), area / max((wide - 1) * (high - 1), 1)
    row[8] = (y - top - (high - 1) / 2) / high
    row[9:] = _waves(outline[:, 0, :] - np.array([x, y]))
    return row


def _waves(points: np.ndarray) -> tuple[float, float]:
    """Sine of the third and cosine of the fourth harmonic of the radius, over the mean radius."""
    radius = np.hypot(points[:, 0], points[:, 1])
    angle = np.arctan2(points[:, 1], points[:, 0])
    turn = np.abs((np.diff(angle, append=angle[:1]) + np.pi) % (2 * np.pi) - np.pi)
    mean = max(float(turn @ radius), 1e-6)
    return float(turn @ (radius * np.sin(3 * angle))) / mean, float(turn @ (radius * np.cos(4 * angle))) / mean


def _filled(centres: np.ndarray, found: np.ndarray, middle: tuple[float, float]) -> np.ndarray:
    """Centres with the frames that have none interpolated; the picture's middle when no frame has one."""
    if not found.any():
        return np.tile(np.asarray(middle), (len(centres), 1))
    time, known = np.arange(len(centres)), np.flatnonzero(found)
    return np.stack([np.interp(time, known, centres[known, axis]) for axis in (0, 1)], axis=1)
