"""Small real containers made with PyAV: footage to curate."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

SIDE, RATE = 96, 24


def texture(seed: int, side: int = 3 * SIDE) -> np.ndarray:
    """A picture of soft coloured patches with some detail, uint8 (side, side, 3)."""
    generator = np.random.default_rng(seed)
    total = np.zeros((side, side, 3), np.float32)
    for cells, share in ((6, 0.7), (48, 0.3)):
        coarse = generator.uniform(0, 255, (cells, cells, 3)).astype(np.float32)
        total += share * cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(total, 0, 255).astype(np.uint8)


def pan(seed: int, count: int = 48, step: int = 2) -> np.ndarray:
    """A camera that moves over a texture, uint8 (count, SIDE, SIDE, 3)."""
    picture = texture(seed)
    return np.stack([picture[40 : 40 + SIDE, i * step % (2 * SIDE) :][:, :SIDE] for i in range(count)])


def write(path: Path, frames: np.ndarray, rate: int = RATE, crf: int = 18, times: list[int] | None = None) -> Path:
    """H.264 (or VP9 for .webm); `times` are time stamps in thousandths of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
        stream = container.add_stream(codec, rate=rate, options={"crf": str(crf), "g": "24"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_footage(folder: Path) -> Path:
    """Good clips, two shots in one file, and everything that goes wrong with footage."""
    write(folder / "good one.mp4", pan(1))
    (folder / "good one.txt").write_text("A slow pan over a bright texture.\n")
    write(folder / "cut.mp4", np.concatenate([pan(2), pan(3)]))
    write(folder / "sub/🎬 e\u0301te\u0301.mp4", pan(4))
    write(folder / "-dash.webm", pan(5))
    (folder / "metadata.csv").write_text("file_name,caption\n-dash.webm,A pan that starts with a dash.\n")
    write(folder / "copy.mp4", pan(1), crf=38)
    write(folder / "black.mp4", np.zeros((48, SIDE, SIDE, 3), np.uint8))
    write(folder / "still.mp4", np.repeat(pan(6, 1), 48, axis=0))
    write(folder / "short.mp4", pan(7, 5))
    steps = [0, 20, 90, 110, 200, 210, 330, 340, 420, 500, 505, 600, 640, 700, 800, 810, 900, 960]
    write(folder / "vfr.mp4", pan(8, 54), times=[1000 * (i // 18) + steps[i % 18] for i in range(54)])
    whole = write(folder / "cut off.mp4", pan(9))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "words.mp4").write_text("this is not a video")
    (folder / "page.mp4").write_text("<!DOCTYPE html><html>404</html>")
    (folder / "pointer.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (folder / "README.md").write_text("notes")
    shutil.copy(folder / "good one.mp4", folder / "no suffix")
    return folder
