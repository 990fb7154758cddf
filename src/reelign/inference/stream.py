"""A stream into a file that grows: `reelign stream MODEL "prompt" --out clip.mp4`; `stream_server.py` shows one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reelign.data.growing import GrowingClip
from reelign.errors import ReelignError
from reelign.inference.plan_request import plain_sampler
from reelign.models.base import VideoModel
from reelign.models.kv_cache import CausalConfig
from reelign.sampling.stream import Chunk, Stream


class StreamSettings(BaseModel):
    """How the streams of a command are made; what is left out is the model's own."""

    model_config = ConfigDict(extra="forbid")
    seconds: float | None = Field(default=None, ge=0, description="Length of the video; with `frames` empty, no end.")
    frames: int | None = Field(default=None, ge=1, description="Length in frames.")
    window: int | None = Field(default=None, ge=1, description="Latent frames that stay in sight.")
    sinks: int | None = Field(default=None, ge=0, description="First latent frames that stay beside them.")
    refresh: bool = Field(default=False, description="See the past under the new prompt at a switch.")
    steps: int | None = Field(default=None, ge=1, description="Steps of the sampler.")
    height: int | None = Field(default=None, ge=1, description="Pixels.")
    width: int | None = Field(default=None, ge=1, description="Pixels.")

    def prepare(self, model: VideoModel) -> None:
        """Let a causal model see what `window` and `sinks` say, and try everything that can be wrong with a stream.

        Raises:
            ReelignError: see `Stream`; or the window is smaller than a block.
        """
        asked = {name: getattr(self, name) for name in ("window", "sinks") if getattr(self, name) is not None}
        if model.causal is not None and asked:
            try:
                model.make_causal(CausalConfig(**model.causal.config.model_dump() | asked))
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ReelignError(f"--window and --sinks do not fit {model.name}: {reason}.") from None
        self.begin(model, "", 0)

    def begin(self, model: VideoModel, prompt: str, seed: int) -> Stream:
        """A stream of a model that is prepared."""
        frames = self.frames if self.seconds is None else max(1, round(self.seconds * model.native_size.fps))
        sampler = plain_sampler(model, self.steps)
        return Stream(model, prompt, seed, sampler, frames, self.height, self.width, self.refresh)


@dataclass
class Pace:
    """How fast a stream is made.

    Attributes:
        first_frame: seconds to the first frame.
        frames, chunks: made so far.
    """

    first_frame: float = 0.0
    frames: int = 0
    chunks: int = 0
    _begun: tuple[int, float] = (0, 0.0)
    _later: tuple[int, float] = (0, 0.0)

    def add(self, chunk: Chunk) -> None:
        """Count a chunk."""
        self.frames, self.chunks = self.frames + len(chunk.frames), self.chunks + 1
        if self.chunks == 1:
            self.first_frame, self._begun = chunk.seconds, (len(chunk.frames), chunk.work)
        else:
            self._later = (self._later[0] + len(chunk.frames), self._later[1] + chunk.work)

    @property
    def rate(self) -> float:
        """Frames for a second of work, after the first chunk where there is a later one."""
        frames, seconds = self._later if self._later[0] else self._begun
        return frames / seconds if seconds else 0.0


@dataclass(frozen=True)
class Switch:
    """Another prompt from the first block on that begins at or after `seconds` of the video."""

    seconds: float
    prompt: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """'12.5:another prompt'.

        Raises:
            ReelignError: it does not read like that.
        """
        before, mark, prompt = text.partition(":")
        try:
            seconds = float(before)
        except ValueError:
            seconds = -1.0
        if not mark or not prompt.strip() or not 0 <= seconds < float("inf"):
            raise ReelignError(f"--switch {text!r} is no time and prompt; write SECONDS:PROMPT, such as '12.5:a dog'.")
        return cls(seconds, prompt.strip())


def write_stream(
    stream: Stream,
    out: Path,
    switches: Sequence[Switch] = (),
    told: Callable[[Pace], None] = lambda pace: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Pace:
    """Write a stream as MP4 that plays while it grows, until it ends or `stopped` says so.

    Args:
        stream: where the frames come from.
        out: the file.
        switches: prompts for later.
        told: called after each chunk is on disk.
        stopped: asked before each block.

    Raises:
        ReelignError: the file cannot be written; it plays up to there.
    """
    pace, coming = Pace(), sorted(switches, key=lambda switch: switch.seconds)
    with GrowingClip(out, stream.fps) as clip:
        while not stopped():
            while coming and stream.made >= coming[0].seconds * stream.fps:
                stream.switch(coming.pop(0).prompt)
            chunk = next(stream, None)
            if chunk is None:
                break
            clip.add(chunk.frames)
            pace.add(chunk)
            told(pace)
    return pace


def summary(stream: Stream, pace: Pace) -> str:
    """A sentence with size, speed and memory."""
    return (
        f"{pace.frames} frames ({pace.frames / stream.fps:.1f} s) of {stream.width} x {stream.height} at "
        f"{stream.fps:g} fps, made at {pace.rate:.1f} frames a second; KV cache {stream.cache.nbytes / 2**20:.1f} MiB"
    )
