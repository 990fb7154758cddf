"""What a video file really holds: decoded truth, not what its header says.

Frames come upright (rotation applied), with square pixels and their time stamps. Damaged files raise from the
decoder; this runs in a worker process with a time limit, because some damaged files make a decoder hang.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.stream import Disposition

JUMP = 0.5
"""Seconds back in time that mean another recording in the same file (joined transport streams): it is continued."""


@dataclass(frozen=True)
class Probe:
    """Facts of one file.

    Attributes:
        frames: decoded frames.
        fps: effective rate, from the median step between time stamps.
        seconds: from the first frame to the end of the last.
        height, width: upright, square pixels.
        variable_frame_rate: whether steps differ by more than a third from the median.
        rotation: degrees that the file asks for.
        aspect: width of a stored pixel over its height.
        duplicate_frames: share of frames equal to their predecessor.
        declared_frames: what the header says, 0 for nothing.
        problem: the decoder's words when it gave up before the end.
    """

    frames: int
    fps: float
    seconds: float
    height: int
    width: int
    variable_frame_rate: bool
    rotation: int
    aspect: float
    duplicate_frames: float
    declared_frames: int
    problem: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Picture:
    """One decoded frame.

    Attributes:
        seconds: its time stamp, from the start of the stream.
        image: uint8 RGB (H, W, 3), upright, square pixels, at most `longest_side`.
    """

    seconds: float
    image: np.ndarray


def decode(path: Path, longest_side: int | None = None) -> Iterator[Picture]:
    """Frames in the order of display, one at a time.

    Raises:
        av.error.FFmpegError: the file cannot be opened, or is damaged at this place.
        ValueError: it has no video stream, or only a cover picture.
    """
    with av.open(str(path.resolve()), metadata_errors="replace") as container:
        streams = [s for s in container.streams.video if not _is_cover(s)]
        if not streams:
            raise ValueError("no video stream")
        stream = streams[0]
        stream.thread_type = "SLICE"
        step = 1 / float(stream.average_rate or 25)
        start: float | None = None
        seconds = 0.0
        for number, frame in enumerate(container.decode(stream)):
            stamp = float(frame.time) if frame.time is not None else number * step
            start = stamp if start is None else start
            if stamp - start < seconds - JUMP:
                start = stamp - seconds - step
            seconds = stamp - start
            yield Picture(seconds, _upright(frame, stream, longest_side))


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _upright(frame: av.VideoFrame, stream: Any, longest_side: int | None) -> np.ndarray:
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    width, height = max(1, round(frame.width * aspect)), frame.height
    if longest_side is not None and max(width, height) > longest_side:
        scale = longest_side / max(width, height)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
    if (width, height) == (frame.width, frame.height):
        image = frame.to_ndarray(format="rgb24")
    else:
        # Shrink inside the decoder's own format first: an 8k frame never becomes an RGB array.
        image = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def summarise(path: Path, stamps: list[float], duplicates: int, size: tuple[int, int], problem: str | None) -> Probe:
    """The facts of a file whose frames have been looked at."""
    with av.open(str(path.resolve()), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        declared, aspect = int(stream.frames), float(stream.sample_aspect_ratio or 1) or 1.0
        average = float(stream.average_rate or 0)
        frame = next(container.decode(stream), None)
        rotation = round(frame.rotation) if frame is not None else 0
    steps = np.diff(np.maximum.accumulate(np.array(stamps)))
    steps = steps[steps > 1e-6]
    median = float(np.median(steps)) if len(steps) else 1 / (average or 25.0)
    uneven = float(np.mean(np.abs(steps - median) > median / 3)) if len(steps) else 0.0
    # Time stamps are rounded to the container's clock: where the header's rate agrees, it is the exact one.
    fps = average if average and abs(average * median - 1) < 0.02 else 1 / median
    return Probe(
        frames=len(stamps),
        fps=fps,
        seconds=(stamps[-1] - stamps[0] + median) if stamps else 0.0,
        height=size[0],
        width=size[1],
        variable_frame_rate=uneven > 0.05,
        rotation=rotation,
        aspect=aspect,
        duplicate_frames=duplicates / max(1, len(stamps) - 1),
        declared_frames=declared,
        problem=problem,
    )


def small(image: np.ndarray, longest_side: int) -> np.ndarray:
    """A picture with its longer side at most `longest_side`."""
    scale = longest_side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
