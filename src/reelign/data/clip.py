"""A clip: what rewards, votes and metrics see. Also how a clip is read from and written to a file (PyAV, no torch)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from reelign.errors import ReelignError


@dataclass(frozen=True)
class Clip:
    """Decoded frames with the words that describe them.

    Attributes:
        frames: uint8 RGB, shape (T, H, W, 3).
        fps: frames per second of `frames`.
        prompt: the text that the clip should show.
        id: stable name, used in messages and tables.
    """

    frames: np.ndarray
    fps: float
    prompt: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            raise ValueError(f"clip {self.id!r}: frames must be uint8 (T, H, W, 3), got {self.frames.dtype} {shape}")
        if not self.fps > 0:
            raise ValueError(f"clip {self.id!r}: fps must be positive, got {self.fps}")


X264 = "threads=1:cpu-independent=1"
"""The same frames give the same bytes, on every machine: x264's AVX-512 code alone does not keep that promise."""


def write_clip(path: Path, frames: np.ndarray, fps: float, crf: int = 12) -> None:
    """Write uint8 RGB frames (T, H, W, 3) as H.264 MP4; atomic: a half-written file never bears the name.

    Widths and heights that are odd are padded by one repeated line, because yuv420p needs even sides.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = even(frames)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix or '.mp4'}")
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
            stream.options = {"crf": str(crf), "preset": "medium", "x264-params": X264}
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def even(frames: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) whose odd sides are padded by one repeated line."""
    height, width = frames.shape[1:3]
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def read_clip(path: Path, prompt: str = "") -> Clip:
    """Decode a whole file that reelign wrote or curated. Foreign footage goes through `reelign.data.probe`.

    Raises:
        ReelignError: the file is missing or cannot be decoded.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 0)
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    except (OSError, FFmpegError, IndexError, ValueError) as error:
        raise ReelignError(f"cannot read the clip {path}: {error}. Was it moved, deleted or damaged?") from error
    return Clip(frames, fps, prompt, path.stem)
