"""The part of a recipe that says how prompts are enhanced: which language model, on which pairs, by which rewards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reelign.data.pairs import PromptPair, read_pairs
from reelign.enhancer.enhancer import Manner
from reelign.enhancer.guard import window_of
from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig
from reelign.miniature.enhancer_pairs import miniature_pairs
from reelign.rewards.recipe import RewardEntry
from reelign.sampling.sample import SampleConfig
from reelign.stages.asked import PromptSource
from reelign.train.track import Sink


class MiniaturePairs(BaseModel):
    """Pairs for the miniature's training scenes; held-out scenes never occur."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["miniature"]
    count: int = Field(default=2000, ge=1, description="Number of pairs.")
    seed: int = Field(default=31, ge=0, description="Which scenes and words.")

    def read(self) -> list[PromptPair]:
        """The pairs."""
        return miniature_pairs(self.count, self.seed)


class PairFile(BaseModel):
    """A file that `reelign pairs` wrote, or one with `prompt` and `enhanced`."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["file"]
    path: Path = Field(description="JSON lines, JSON or a table.")
    rewriter: str | None = Field(default=None, description="Whose rewrites, where a file has several; all if empty.")

    def read(self) -> list[PromptPair]:
        """The pairs."""
        return read_pairs(self.path, self.rewriter)


PairSource = Annotated[MiniaturePairs | PairFile, Field(discriminator="kind")]


class LanguageLora(BaseModel):
    """Low-rank adapters of a language model, on all its linear layers."""

    model_config = ConfigDict(extra="forbid")
    rank: int = Field(default=32, ge=1, description="Rank of the adapters.")
    alpha: int = Field(default=64, ge=1, description="Scale: the update is multiplied by alpha / rank.")


class PairTraining(BaseModel):
    """Supervised training on pairs."""

    model_config = ConfigDict(extra="forbid")
    pairs: list[PairSource] = Field(min_length=1, description="What users type, and what the generator likes.")
    steps: int = Field(default=200, ge=1, description="Optimiser steps.")
    batch_size: int = Field(default=32, ge=1, description="Pairs a step, over all ranks.")
    micro_batch: int = Field(default=32, ge=1, description="Pairs at once on a rank.")
    lr: float = Field(default=1e-5, gt=0, description="Peak rate; it falls in a straight line.")


class RewardTraining(BaseModel):
    """GRPO. A step renders at most `prompts_per_step x group_size x clips` clips."""

    model_config = ConfigDict(extra="forbid")
    prompts: list[PromptSource] = Field(min_length=1, description="What users ask for.")
    rewards: list[RewardEntry] = Field(min_length=1, description="Who judges, and the weight of each dimension.")
    structure: float = Field(default=0.5, ge=0, description="Weight of the reward for format and length.")
    against: Literal["original", "rewrite"] = Field(
        default="original",
        description="Whose words the clips are judged by. 'rewrite' is the wrong way, for experiments: it also leaves "
        "out the guard, and the model learns to ask for something else.",
    )
    steps: int = Field(default=100, ge=1, description="Optimiser steps.")
    prompts_per_step: int = Field(default=8, ge=1, description="Groups a step, over all ranks.")
    group_size: int = Field(default=8, ge=2, description="Rewrites a prompt, the raw ones among them.")
    raw: int = Field(default=1, ge=0, description="Rewrites of a group that are the user's own words.")
    clips: int = Field(default=2, ge=2, description="Clips a rewrite; all rewrites of a prompt have the same noises.")
    noises: int = Field(default=8, ge=1, description="Noises that prompts share among them.")
    micro_batch: int = Field(default=16, ge=1, description="Rewrites that are learned from at once on a rank.")
    temperature: float = Field(default=1.0, gt=0, description="Of sampling rewrites.")
    lr: float = Field(default=2e-6, gt=0, description="Constant rate.")
    kl: float = Field(default=0.0, ge=0, description="Weight of the divergence from the supervised model.")
    generator: str | None = Field(default=None, description="Generator that renders, such as a few-step student.")
    sampler: SampleConfig | None = Field(default=None, description="Cheaper than deployment; deployment's if empty.")
    frames: int | None = Field(default=None, ge=1, description="Frames of a clip; the battery's if empty.")
    height: int | None = Field(default=None, ge=8, description="Height of a clip; the battery's if empty.")
    width: int | None = Field(default=None, ge=8, description="Width of a clip; the battery's if empty.")
    save_every: int = Field(default=10, ge=1, description="Steps between checkpoints.")

    def size(self, battery: BatteryConfig) -> BatteryConfig:
        """The battery with the size of these clips."""
        named = {name: getattr(self, name) or getattr(battery, name) for name in ("frames", "height", "width")}
        return battery.model_copy(update=named)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.group_size - self.raw < 2:
            raise ValueError(f"raw={self.raw} leaves fewer than two of group_size={self.group_size} to learn from")
        if self.clips > self.noises:
            raise ValueError(f"clips={self.clips} is more than there are noises={self.noises}")
        if self.micro_batch > self.prompts_per_step * self.group_size:
            raise ValueError(f"micro_batch={self.micro_batch} is more than a step has rewrites")
        return self


class EnhanceConfig(BaseModel):
    """Prompt enhancement: which language model, on which pairs, by which rewards."""

    model_config = ConfigDict(extra="forbid")
    language_model: str = Field(description="'miniature', a transformers folder or a hub id of a chat model.")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Type of its weights.")
    method: Literal["full", "lora"] = Field(default="full", description="Train all weights or low-rank adapters.")
    lora: LanguageLora = Field(default_factory=LanguageLora, description="Adapters; read when `method` is lora.")
    gradient_checkpointing: bool = Field(default=False, description="Trade compute for memory.")
    template: str = Field(default="video-1", description="Frame around the user's words.")
    guard: Literal["lexical", "miniature"] = Field(default="lexical", description="How faithfulness is checked.")
    window: tuple[int, int] | None = Field(
        default=None, description="Least and most words of a rewrite; measured on the pairs if empty."
    )
    tokens: int = Field(default=320, ge=1, description="Tokens of an answer at most.")
    supervised: PairTraining = Field(description="First step.")
    grpo: RewardTraining | None = Field(default=None, description="Second step; left out, the first one is all.")
    track: list[Sink] = Field(default_factory=list, description="Besides metrics.jsonl: tensorboard, wandb.")

    def manner(self, pairs: Sequence[PromptPair]) -> Manner:
        """How the model is asked and guarded; the window is that of the generator's captions."""
        window = self.window or window_of([pair.rewrite for pair in pairs])
        return Manner(self.template, window, self.guard, self.tokens)


def divided(rows: int, micro: int, what: str, ranks: int) -> tuple[int, int]:
    """Rows at once on a rank, and how often before the optimiser steps.

    Raises:
        ReelignError: the rows do not divide.
    """
    share, rest = divmod(rows, ranks)
    if rest or not share:
        raise ReelignError(f"{what}={rows} does not divide over {ranks} ranks.")
    micro = min(micro, share)
    if share % micro:
        raise ReelignError(f"{what}={rows} gives each rank {share}, which is no multiple of micro_batch={micro}.")
    return micro, share // micro
