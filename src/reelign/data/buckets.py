"""Buckets: the sizes that clips are trained at, and the plan that says which clip goes where and how.

Nothing is dropped or re-timed in silence: every clip of a dataset has a row in the plan, with its bucket, the frames
that are taken and how they are fitted, or the reason why no bucket takes it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

Row = Mapping[str, Any]
"""A row of a dataset's manifest."""


class Bucket(BaseModel):
    """A size that clips are trained at; frames are 1 + 4k for Wan's autoencoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    frames: int = Field(ge=1, description="Frames a clip.")
    height: int = Field(ge=1, description="Height in pixels.")
    width: int = Field(ge=1, description="Width in pixels.")

    @property
    def key(self) -> str:
        """`FRAMESxHEIGHTxWIDTH`."""
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Window:
    """One training clip: which source frames become which bucket.

    Attributes:
        row: the clip's manifest row.
        bucket: the size it is fitted to.
        indices: (bucket.frames,) frame numbers in the clip file, by nearest time stamp.
        part: number of the window in its clip, from 0.
    """

    row: Row
    bucket: Bucket
    indices: tuple[int, ...]
    part: int

    @property
    def id(self) -> str:
        """Unique name of the window."""
        return f"{self.row['id']}#{self.part}"


@dataclass(frozen=True)
class BucketPlan:
    """What training will see, and the clips that no bucket takes, each with a sentence."""

    windows: list[Window]
    refused: list[tuple[str, str]]

    def __str__(self) -> str:
        counts = Counter(window.bucket.key for window in self.windows)
        clips = len({window.row["id"] for window in self.windows})
        lines = [f"{clips} clips give {len(self.windows)} windows"]
        lines += [f"  {key}: {count}" for key, count in sorted(counts.items())]
        lines += [f"  not used: {name}: {reason}" for name, reason in self.refused]
        return "\n".join(lines)


def plan_buckets(
    rows: Sequence[Row], buckets: Sequence[Bucket], fps: float | None, windows: Literal["first", "all"] = "all"
) -> BucketPlan:
    """Give each clip the bucket of the nearest shape, and among those the one with the most frames it can fill.

    Args:
        rows: manifest rows with `id`, `fps`, `frames`, `height`, `width`.
        buckets: the sizes on offer.
        fps: frames a second of the training clips: source frames are chosen by nearest time stamp. None keeps the
            clip's own rate. A rate above the clip's own would repeat frames and is refused.
        windows: all windows of a long clip that do not overlap, or only the first.
    """
    taken: list[Window] = []
    refused: list[tuple[str, str]] = []
    for row in rows:
        rate = float(row["fps"]) if fps is None else fps
        if rate > 1.01 * float(row["fps"]):
            refused.append((str(row["id"]), f"has {row['fps']:.4g} frames a second, training wants {rate:.4g}"))
            continue
        available = math.floor((int(row["frames"]) - 1) / float(row["fps"]) * rate + 1e-6) + 1
        fitting = [bucket for bucket in buckets if bucket.frames <= available]
        if not fitting:
            least = min(bucket.frames for bucket in buckets)
            refused.append(
                (str(row["id"]), f"gives {available} frames at {rate:.4g} a second, the shortest bucket needs {least}")
            )
            continue
        shape = math.log(int(row["width"]) / int(row["height"]))
        bucket = min(fitting, key=lambda b: (round(abs(math.log(b.width / b.height) - shape), 6), -b.frames, -b.height))
        count = available // bucket.frames if windows == "all" else 1
        for part in range(count):
            times = (np.arange(bucket.frames) + part * bucket.frames) / rate
            indices = np.minimum(np.rint(times * float(row["fps"])), int(row["frames"]) - 1).astype(int)
            taken.append(Window(row, bucket, tuple(int(i) for i in indices), part))
    return BucketPlan(taken, refused)


def fit_frames(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale so that the target is covered, then crop the middle: uint8 (T, H, W, 3) to (T, height, width, 3)."""
    scale = max(height / frames.shape[1], width / frames.shape[2])
    size = (max(width, round(frames.shape[2] * scale)), max(height, round(frames.shape[1] * scale)))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    scaled = np.stack([cv2.resize(frame, size, interpolation=kind) for frame in frames])
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return scaled[:, top : top + height, left : left + width]
