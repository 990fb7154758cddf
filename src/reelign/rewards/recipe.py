"""Rewards as a recipe names them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.rewards.base import Needs, Range, Reward, RewardSet, Weighted
from reelign.rewards.miniature import MiniatureReward
from reelign.rewards.pixels import Pixels

Weights = dict[str, float]


class MiniatureEntry(BaseModel):
    """The miniature's training judge."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["miniature"]
    weights: Weights = Field(
        default={"text": 1.0, "visual": 1.0, "motion": 1.0}, description="Weight of each dimension that is learned."
    )

    def build(self) -> Reward:
        """The reward."""
        return MiniatureReward()


class PixelsEntry(BaseModel):
    """Weight-free signals."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["pixels"]
    weights: Weights = Field(description="Weight of each dimension: steadiness, dynamics, sharpness, exposure.")

    def build(self) -> Reward:
        """The reward."""
        return Pixels()


class VideoAlignEntry(BaseModel):
    """VideoReward of VideoAlign: a learned judge of visual quality, motion quality and text alignment."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["videoalign"]
    path: Path = Field(description="Folder of the released VideoReward.")
    base: Path = Field(description="Folder with config and tokenizer of Qwen2-VL-2B-Instruct.")
    batch: int = Field(default=4, ge=1, description="Clips in one forward pass.")
    weights: Weights = Field(
        default={"text": 1.0, "visual": 1.0, "motion": 1.0}, description="Weight of each dimension that is learned."
    )

    def build(self) -> Reward:
        """The reward; importing it takes transformers' time, so that happens here.

        Raises:
            ReelignError: a file is missing or does not fit.
        """
        from reelign.rewards.videoalign import VideoAlign

        return VideoAlign(self.path, self.base, batch=self.batch)


class HPSv3Entry(BaseModel):
    """HPSv3: human preference of single frames. It ignores time: give it a motion reward as a companion."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["hpsv3"]
    path: Path = Field(description="Folder of HPSv3.safetensors.")
    base: Path = Field(description="Folder with config and tokenizer of Qwen2-VL-7B-Instruct.")
    frames: int = Field(default=8, ge=1, description="Frames of a clip that are looked at.")
    aggregate: Literal["mean", "top30"] = Field(default="mean", description="Of all frames, or of the best 30 %.")
    batch: int = Field(default=8, ge=1, description="Frames in one forward pass.")
    weights: Weights = Field(default={"preference": 1.0}, description="Weight of its one dimension.")

    def build(self) -> Reward:
        """The reward.

        Raises:
            ReelignError: a file is missing or does not fit.
        """
        from reelign.rewards.hpsv3 import HPSv3

        return HPSv3(self.path, self.base, self.frames, self.aggregate, self.batch)


class FunctionEntry(BaseModel):
    """A Python function of yours: `def reward(clips: Sequence[Clip]) -> {dimension: numbers}`."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["function"]
    path: str = Field(description="Dotted path of the function, `package.module.function`.")
    dimensions: dict[str, tuple[float, float]] = Field(min_length=1, description="Its scores with their ranges.")
    weights: Weights = Field(description="Weight of each dimension that is learned.")
    fps: float | None = Field(default=None, gt=0, description="Frame rate that it wants; the clip's own if empty.")
    frames: int | None = Field(default=None, ge=1, description="Number of frames that it wants.")
    side: int | None = Field(default=None, ge=8, description="Shorter side in pixels that it wants.")

    def build(self) -> Reward:
        """The reward.

        Raises:
            ReelignError: there is no such function.
        """
        return _Function(self)


class _Function(Reward):
    def __init__(self, entry: FunctionEntry) -> None:
        self.name = entry.path
        self.dimensions = {name: Range(*ends) for name, ends in entry.dimensions.items()}
        self.needs = Needs(entry.fps, entry.frames, entry.side)
        self._call = _imported(entry.path)

    def score(self, clips: Sequence[Clip]) -> Mapping[str, Sequence[float] | np.ndarray]:
        """What the function says."""
        return self._call(clips)


def _imported(path: str) -> Callable[[Sequence[Clip]], Any]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError) as error:
        raise ReelignError(f"the reward function {path} cannot be imported: {error}.") from error
    if not callable(found):
        raise ReelignError(f"the reward function {path} is no function; name it as package.module.function.")
    return found


AnyEntry = MiniatureEntry | PixelsEntry | VideoAlignEntry | HPSv3Entry | FunctionEntry
RewardEntry = Annotated[AnyEntry, Field(discriminator="kind")]


def build_rewards(entries: Sequence[AnyEntry]) -> RewardSet:
    """All rewards of a recipe."""
    return RewardSet([Weighted(entry.build(), entry.weights) for entry in entries])
