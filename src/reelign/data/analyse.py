"""One video file, looked at once: probe, shots and their measures. Runs in a worker process (see `workers`)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from av.error import FFmpegError

from reelign.data.clip import write_clip
from reelign.data.measure import FrameMeasures, measure_frame, measure_shot
from reelign.data.probe import decode, small, summarise
from reelign.data.shots import Shot, ShotDetector

ANALYSIS_SIDE, SHOT_SIDE = 256, 128
MEASURES_PER_SECOND = 6.0


def analyse(path: str) -> dict[str, Any]:
    """Facts of a file as JSON-able values: `probe`, `shots` (measured, hashed) and `problem`, the decoder's words."""
    detector, stamps = ShotDetector(), []
    measured: list[tuple[int, FrameMeasures]] = []
    duplicates, problem, size = 0, None, (0, 0)
    previous: np.ndarray | None = None
    earlier: tuple[np.ndarray, float] | None = None
    tiny_size: tuple[int, int] | None = None
    try:
        for number, picture in enumerate(decode(Path(path), ANALYSIS_SIDE)):
            image = picture.image
            stamps.append(picture.seconds)
            tiny = small(image, SHOT_SIDE)
            tiny_size = tiny_size or (tiny.shape[1], tiny.shape[0])
            tiny = tiny if (tiny.shape[1], tiny.shape[0]) == tiny_size else cv2.resize(tiny, tiny_size)
            detector.feed(tiny)
            duplicates += (
                previous is not None and previous.shape == image.shape and bool(np.array_equal(previous, image))
            )
            previous = image
            if earlier is None or picture.seconds - earlier[1] >= 1 / MEASURES_PER_SECOND - 1e-3:
                before, seconds = earlier if earlier is not None else (None, picture.seconds)
                measured.append((number, measure_frame(image, before, picture.seconds - seconds)))
                earlier = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), picture.seconds)
    except (FFmpegError, ValueError, OSError) as error:
        problem = _plain(error)
    if not stamps:
        return {"probe": None, "shots": [], "problem": problem or "no frame could be decoded"}
    size = _full_size(path)
    probe = summarise(Path(path), stamps, duplicates, size, problem)
    shots = [_describe(shot, stamps, measured, probe.fps) for shot in detector.shots(probe.fps)]
    return {"probe": probe.as_dict(), "shots": shots, "problem": problem}


def extract(path: str, start: float, end: float, fps: float, longest_side: int, out: str) -> dict[str, Any]:
    """Write the frames with time stamps in [start, end) as a clip of constant rate, by nearest time stamp."""
    images: list[np.ndarray] = []
    stamps: list[float] = []
    try:
        for picture in decode(Path(path), longest_side):
            if picture.seconds >= end:
                break
            if picture.seconds >= start - 1e-6:
                images.append(picture.image)
                stamps.append(picture.seconds)
    except (FFmpegError, ValueError, OSError) as error:
        if not images:
            return {"problem": _plain(error)}
    if not images:
        return {"problem": "no frame in this stretch could be decoded a second time"}
    count = max(1, round((stamps[-1] - stamps[0]) * fps) + 1)
    wanted = stamps[0] + np.arange(count) / fps
    nearest = np.abs(np.array(stamps)[None, :] - wanted[:, None]).argmin(1)
    shape = images[0].shape
    frames = np.stack([images[i] if images[i].shape == shape else cv2.resize(images[i], shape[1::-1]) for i in nearest])
    write_clip(Path(out), frames, fps)
    height, width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
    return {"problem": None, "frames": len(frames), "height": height, "width": width}


def _full_size(path: str) -> tuple[int, int]:
    picture = next(decode(Path(path)))
    return picture.image.shape[0], picture.image.shape[1]


def _describe(shot: Shot, stamps: list[float], measured: list[tuple[int, FrameMeasures]], fps: float) -> dict[str, Any]:
    inside = [found for number, found in measured if shot.start <= number < shot.end]
    last = stamps[shot.end] if shot.end < len(stamps) else stamps[-1] + 1 / fps
    return {
        "start": stamps[shot.start],
        "end": last,
        "frames": shot.end - shot.start,
        "measures": asdict(measure_shot(inside)) if inside else None,
        "hashes": [f"{found.hash:016x}" for found in inside],
        "mirrored": [f"{found.mirrored_hash:016x}" for found in inside],
    }


def _plain(error: Exception) -> str:
    """The decoder's words without its numbers and paths."""
    words = (isinstance(error, FFmpegError) and error.strerror) or str(error)
    return words[0].lower() + words[1:] if words else type(error).__name__
