"""A clip that is written while it is being made: a fragmented MP4, which plays at any moment.

Every frame is a fragment of its own (ISO/IEC 14496-12, movie fragments), without pictures that wait for later ones,
and only whole fragments reach the disk. So the file plays while it grows, after `kill -9`, and when the disk is full.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import av
import numpy as np

from reelign.data.clip import X264, even
from reelign.errors import ReelignError

FRAGMENTS = "frag_every_frame+empty_moov+default_base_moof+skip_trailer"
HEADER, FRAME = b"moov", b"mdat"
SECONDS_TO_SEEK = 2
"""A player may begin this often."""


class GrowingClip:
    """An H.264 MP4 that frames are added to; a context manager, whose end writes what is left.

    A fragment is complete when the frame after it comes, so the last frame that was added reaches the disk with the
    next one, or at the end.

    Attributes:
        frames: how many are on disk.
    """

    def __init__(self, path: Path, fps: float, crf: int = 12) -> None:
        """The file is made, over an older one, when the first frames come."""
        self.path, self.fps, self.crf, self.frames = path, fps, crf, 0
        self._file: BinaryIO | None = None
        self._ready = bytearray()
        self._size = 0

    def add(self, frames: np.ndarray) -> None:
        """Append uint8 RGB frames (T, H, W, 3), all of one size.

        Raises:
            ReelignError: they cannot be written, because the disk is full for example. The file plays up to there.
        """
        frames = even(frames)
        if self._file is None:
            self._open(frames.shape[1], frames.shape[2])
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            self._container.mux(self._video.encode(picture))
        self._write()

    def close(self) -> None:
        """Write the last frame, and no more after it.

        Raises:
            ReelignError: as for `add`.
        """
        if self._file is None or self._file.closed:
            return
        try:
            self._container.mux(self._video.encode())
            self._container.close()
            self._write()
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except ReelignError:
            if not isinstance(error, ReelignError):  # such as an interrupt: that the last frame is lost is news
                raise

    def _open(self, height: int, width: int) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb", buffering=0)
        except OSError as error:
            raise ReelignError(f"cannot write {self.path}: {error.strerror}. Choose another --out.") from error
        self._container = av.open(_Memory(self._ready), "w", format="mp4", options={"movflags": FRAGMENTS})
        self._video = self._container.add_stream("libx264", rate=Fraction(self.fps).limit_denominator(1001))
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        self._video.gop_size = max(1, round(SECONDS_TO_SEEK * self.fps))
        self._video.options = {"crf": str(self.crf), "preset": "medium", "tune": "zerolatency", "x264-params": X264}

    def _write(self) -> None:
        """Whole fragments to the disk, one after the other; of one that does not fit, nothing stays."""
        assert self._file is not None
        end = 0
        try:
            for begin, end, kind in _fragments(self._ready):
                rest = memoryview(bytes(self._ready[begin:end]))
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
                self._size += end - begin
                self.frames += kind == FRAME
        except BaseException as error:
            self._file.truncate(self._size)
            self._file.close()
            if not isinstance(error, OSError):
                raise
            raise ReelignError(
                f"cannot write more to {self.path} ({os.strerror(error.errno or 0)}). It holds {self.frames} frames "
                f"({self.frames / self.fps:.1f} s) and plays. Free some space, or choose another --out."
            ) from error
        del self._ready[:end]


class _Memory:
    """What the muxer writes to; it cannot seek, and with fragments need not."""

    def __init__(self, ready: bytearray) -> None:
        self.ready = ready

    def write(self, part: bytes) -> int:
        self.ready += part
        return len(part)


def _fragments(ready: bytearray) -> list[tuple[int, int, bytes]]:
    """Begin, end and last type of each complete run of boxes that ends with a header or a frame.

    A box begins with its size, four bytes, and its type, four.
    """
    found, begin, at = [], 0, 0
    while at + 8 <= len(ready):
        kind, end = bytes(ready[at + 4 : at + 8]), at + int.from_bytes(ready[at : at + 4], "big")
        if end > len(ready):
            break
        at = end
        if kind in (HEADER, FRAME):
            found.append((begin, end, kind))
            begin = end
    return found
