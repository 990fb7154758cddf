"""What travels between a remote reward and its service: JSON, with frames as PNG in base64, so nothing is lost.

- `GET /health`: `{"status": "ready", "reward": NAME}`; the only one that needs no token.
- `GET /contract`: a `Contract`.
- `POST /score` of a `ScoreRequest`: `{"scores": {dimension: [number, ...]}}`, or `{"error": Failure}`.
"""

from __future__ import annotations

import base64
import binascii
import math

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from reelign.data.clip import Clip
from reelign.rewards.base import Needs, Range, Reward


class Contract(BaseModel):
    """What a service promises.

    Attributes:
        reward: name of the reward.
        dimensions: lowest and highest score of each; None where there is no end, because JSON has no infinity.
        needs: what a clip is brought to before it is sent.
        limit: most bytes of a request.
    """

    model_config = ConfigDict(extra="forbid")
    reward: str
    dimensions: dict[str, tuple[float | None, float | None]] = Field(min_length=1)
    needs: Needs
    limit: int

    @classmethod
    def of(cls, reward: Reward, limit: int) -> Contract:
        """The contract of a reward."""
        ends = {name: (_finite(allowed.low), _finite(allowed.high)) for name, allowed in reward.dimensions.items()}
        return cls(reward=reward.name, dimensions=ends, needs=reward.needs, limit=limit)

    @property
    def ranges(self) -> dict[str, Range]:
        """Dimensions as a reward declares them."""
        return {
            name: Range(-math.inf if low is None else low, math.inf if high is None else high)
            for name, (low, high) in self.dimensions.items()
        }


class WireClip(BaseModel):
    """A clip; `frames` are PNG files in base64, all of one size."""

    model_config = ConfigDict(extra="forbid")
    id: str
    prompt: str
    fps: float = Field(gt=0, allow_inf_nan=False)
    frames: list[str] = Field(min_length=1)

    @classmethod
    def pack(cls, clip: Clip) -> WireClip:
        """A clip, ready to travel."""
        return cls(id=clip.id, prompt=clip.prompt, fps=clip.fps, frames=[_png(frame) for frame in clip.frames])

    def unpack(self) -> Clip:
        """The clip that was packed, to the last bit.

        Raises:
            ValueError: a frame is no RGB PNG, or has another size than the first.
        """
        return Clip(np.stack([_frame(letters) for letters in self.frames]), self.fps, self.prompt, self.id)


class ScoreRequest(BaseModel):
    """Clips to be scored, already fitted to the contract's needs."""

    model_config = ConfigDict(extra="forbid")
    clips: list[WireClip] = Field(min_length=1)


class Failure(BaseModel):
    """Why there are no scores.

    Attributes:
        reason: what is wrong.
        clips: ids of the clips that it concerns; all of the request if there are none.
        passing: whether the same request may succeed later.
    """

    reason: str
    clips: list[str] = []
    passing: bool = False


def _finite(end: float) -> float | None:
    return end if math.isfinite(end) else None


def _png(frame: np.ndarray) -> str:
    """PNG with the fastest compression: the network is rarely slower than zlib."""
    _, data = cv2.imencode(".png", np.ascontiguousarray(frame[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return base64.b64encode(data.tobytes()).decode()


def _frame(letters: str) -> np.ndarray:
    try:
        data = np.frombuffer(base64.b64decode(letters, validate=True), np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except (binascii.Error, cv2.error) as error:
        raise ValueError(f"a frame is no PNG in base64 ({error})") from error
    if picture is None:
        raise ValueError("a frame is no PNG in base64")
    return picture[..., ::-1]
