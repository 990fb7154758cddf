"""Rewards as a recipe names them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from reelign.data.clip import Clip
from reelign.data.endpoint import ChatEndpoint
from reelign.errors import ReelignError
from reelign.rewards.base import Needs, Range, Reward, RewardSet, Weighted
from reelign.rewards.miniature import MiniatureReward
from reelign.rewards.pixels import Pixels
from reelign.rewards.remote import Remote
from reelign.rewards.vlm import Vlm

Weights = dict[str, float]
Finite = Annotated[float, Field(allow_inf_nan=False)]


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
    weights: Weights = Field(description="Weight of each that is measured: steadiness, dynamics, sharpness, exposure.")

    def build(self) -> Reward:
        """The reward."""
        return Pixels(tuple(self.weights))


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


class LearnedEntry(BaseModel):
    """A reward that was fitted to votes: the artifact of a `reward` stage."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["learned"]
    path: Path | None = Field(default=None, description="The artifact; that of this run's `reward` stage if empty.")
    pessimism: float = Field(default=0.0, ge=0, description="Spreads taken off, of a reward that says how sure it is.")
    batch: int = Field(default=16, ge=1, description="Clips in one forward pass.")
    weights: Weights = Field(
        default={"text": 1.0, "visual": 1.0, "motion": 1.0}, description="Weight of each dimension that is learned."
    )

    def build(self) -> Reward:
        """The reward.

        Raises:
            ReelignError: there is none yet, a file is missing, or it cannot be told from chance.
        """
        from reelign.rewards.preference import LearnedReward

        if self.path is None:
            raise ReelignError("the reward `learned` has no path, and this run has fitted none: add a `reward:` stage.")
        return LearnedReward(self.path, self.pessimism, self.batch, tuple(self.weights))


class VlmEntry(ChatEndpoint):
    """A vision-language model behind an OpenAI-compatible endpoint that answers with scores."""

    kind: Literal["vlm"]
    name: str = Field(default="vlm", description="How logs call it.")
    dimensions: dict[str, tuple[Finite, Finite]] = Field(min_length=1, description="Its scores with their ranges.")
    rubric: dict[str, str] = Field(default={}, description="A sentence on what a dimension means, where it needs one.")
    weights: Weights = Field(description="Weight of each dimension that is learned.")
    compare: Literal["none", "pairwise"] = Field(
        default="none", description="none: each clip alone; pairwise: win shares among the clips of a prompt."
    )
    opponents: int = Field(default=4, ge=2, multiple_of=2, description="Clips that each one meets, pairwise.")
    frames: int = Field(default=8, ge=1, description="Frames of a clip that it sees, evenly spread.")
    side: int | None = Field(default=None, ge=8, description="Shorter side in pixels that it sees.")
    concurrency: int = Field(default=8, ge=1, description="Requests at a time.")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if unknown := sorted(self.rubric.keys() - self.dimensions.keys()):
            raise ValueError(f"rubric.{unknown[0]} explains no dimension; they are {', '.join(self.dimensions)}")
        for name, ends in self.dimensions.items():
            if ends[0] >= ends[1]:
                raise ValueError(f"dimensions.{name}: the range {list(ends)} is empty")
            if self.compare == "pairwise" and ends != (0.0, 1.0):
                raise ValueError(f"dimensions.{name}: with compare=pairwise the scores are win shares, [0, 1]")
        return self

    def build(self) -> Reward:
        """The reward."""
        return Vlm(
            self.name,
            self,
            {name: Range(*ends) for name, ends in self.dimensions.items()},
            self.rubric,
            Needs(frames=self.frames, side=self.side),
            self.compare,
            self.opponents,
            self.concurrency,
        )


class RemoteEntry(BaseModel):
    """A reward behind `reelign reward serve`."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["remote"]
    url: str = Field(pattern="^https?://", description="Its address, for example http://localhost:8801.")
    name: str | None = Field(default=None, description="How logs call it; as the service calls its reward if empty.")
    weights: Weights = Field(description="Weight of each dimension that is learned.")
    token_variable: str = Field(
        default="REELIGN_REWARD_TOKEN", description="Environment variable that holds the token, if there is one."
    )
    batch: int = Field(default=8, ge=1, description="Clips in one request.")
    seconds: float = Field(default=300, gt=0, description="Time limit of one request.")
    patience: float = Field(default=120, ge=0, description="Seconds that the service may take to come up or back.")

    def build(self) -> Reward:
        """The reward; it asks the service for its contract.

        Raises:
            ReelignError: there is no such service.
        """
        return Remote(self.url, self.name, self.token_variable, self.batch, self.seconds, self.patience)


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


AnyEntry = (
    MiniatureEntry | PixelsEntry | VideoAlignEntry | HPSv3Entry | LearnedEntry | VlmEntry | RemoteEntry | FunctionEntry
)
RewardEntry = Annotated[AnyEntry, Field(discriminator="kind")]


def build_rewards(entries: Sequence[AnyEntry]) -> RewardSet:
    """All rewards of a recipe."""
    return RewardSet([Weighted(entry.build(), entry.weights) for entry in entries])


def with_own_reward(entries: Sequence[AnyEntry], artifact: Path) -> list[AnyEntry]:
    """The entries of a run whose `reward` stage made `artifact`."""
    return [
        entry.model_copy(update={"path": artifact}) if isinstance(entry, LearnedEntry) and entry.path is None else entry
        for entry in entries
    ]


def pick_entry(entries: Sequence[AnyEntry], which: str) -> AnyEntry:
    """One entry of a recipe by its place from 0, or by its name: a function's path, else its `name`, else its kind.

    Raises:
        ReelignError: there is none, or several have that name.
    """
    names = [_called(entry) for entry in entries]
    if which.isdecimal() and int(which) < len(entries):
        return entries[int(which)]
    if names.count(which) != 1:
        listed = ", ".join(f"{place} ({name})" for place, name in enumerate(names))
        raise ReelignError(f"the reward {which!r} is not one of the recipe's; name one by its number: {listed}.")
    return entries[names.index(which)]


def _called(entry: AnyEntry) -> str:
    if isinstance(entry, FunctionEntry):
        return entry.path
    return (entry.name if isinstance(entry, VlmEntry | RemoteEntry) else None) or entry.kind
