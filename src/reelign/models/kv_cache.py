"""What a block of a causal model sees of the past, and the keys and values that are kept of it.

The frames of a latent video are denoised in blocks. A block sees itself and what came before it:

    a frame k is seen by the block [a, e)  if  k < e  and  (k >= e - window  or  k < sinks)

A `KVCache` is a value, nothing is ever written into it; one that is longer shares the tensors of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from reelign.errors import ReelignError

CAUSAL = "causal.json"
"""The file of an artifact that says that it is causal, and how."""


class CausalConfig(BaseModel):
    """How a causal model sees the past; all numbers are latent frames."""

    model_config = ConfigDict(extra="forbid")
    block: int = Field(default=3, ge=1, description="Latent frames that are denoised together.")
    window: int | None = Field(
        default=None, ge=1, description="Latent frames that a block sees, its own among them; all if empty."
    )
    sinks: int = Field(default=0, ge=0, description="First latent frames that stay in sight beside the window.")
    memory: Literal["finished", "last_step"] = Field(
        default="finished",
        description="What is remembered of a block: itself, for an evaluation of its own, or what its last step saw.",
    )

    @model_validator(mode="after")
    def _a_block_sees_itself(self) -> Self:
        if self.window is not None and self.window < self.block:
            raise ValueError(f"window={self.window} is smaller than block={self.block}: a block must see itself")
        return self

    def blocks(self, frames: int) -> list[tuple[int, int]]:
        """The blocks [first, end) of a latent video.

        Raises:
            ReelignError: the block size does not divide `frames`.
        """
        if frames % self.block:
            divisors = [size for size in range(1, frames + 1) if frames % size == 0]
            raise ReelignError(
                f"blocks of {self.block} latent frames do not divide a clip of {frames}; block sizes that do: "
                f"{', '.join(map(str, divisors))}."
            )
        return [(first, first + self.block) for first in range(0, frames, self.block)]

    def seen(self, end: int) -> list[int]:
        """The frames that the block which ends before `end` sees, in order."""
        start = 0 if self.window is None else max(0, end - self.window)
        return [*range(min(self.sinks, start)), *range(start, end)]


Pair = tuple[Tensor, Tensor]
"""Keys and values, each (B, tokens, heads, width)."""


@dataclass(frozen=True)
class Remembered:
    """Keys, after rotation, and values of some frames.

    Attributes:
        frames: their absolute indices, in order.
        layers: of each layer, with len(frames) * tokens.
    """

    frames: tuple[int, ...]
    layers: tuple[Pair, ...]

    def only(self, seen: set[int]) -> Remembered:
        """Without the frames that are not in `seen`; with all of them, this one itself."""
        keep = [place for place, frame in enumerate(self.frames) if frame in seen]
        if len(keep) == len(self.frames):
            return self
        layers = tuple((self._taken(keys, keep), self._taken(values, keep)) for keys, values in self.layers)
        return Remembered(tuple(self.frames[place] for place in keep), layers)

    def _taken(self, values: Tensor, keep: list[int]) -> Tensor:
        return values.unflatten(1, (len(self.frames), -1))[:, keep].flatten(1, 2)


@dataclass(frozen=True)
class KVCache:
    """What is remembered of the frames before a block.

    Attributes:
        end: frames so far, the cached ones and the forgotten ones; the next block begins here.
        parts: the cached frames in their order, those of each block as they were written.
    """

    end: int = 0
    parts: tuple[Remembered, ...] = ()

    @property
    def frames(self) -> tuple[int, ...]:
        """Absolute indices of the cached frames, in order."""
        return tuple(frame for part in self.parts for frame in part.frames)

    def layer(self, layer: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys and values of a layer, part by part."""
        return tuple(part.layers[layer][0] for part in self.parts), tuple(part.layers[layer][1] for part in self.parts)

    def extended(self, layers: Sequence[Pair], config: CausalConfig) -> KVCache:
        """With a new block of `config.block` frames, and without the frames that the block after it does not see.

        Blocks that stay are not copied: caches of one rollout share them.
        """
        end = self.end + config.block
        fresh = Remembered(tuple(range(self.end, end)), tuple(layers))
        seen = set(config.seen(end + config.block))
        kept = (part.only(seen) for part in (*self.parts, fresh))
        return KVCache(end, tuple(part for part in kept if part.frames))

    def joined(self) -> KVCache:
        """The same in one part, copied once: what many calls read, and no other cache shares."""
        if not self.parts:
            return self
        layers = tuple(
            (torch.cat([keys for keys, _ in parts], 1), torch.cat([values for _, values in parts], 1))
            for parts in zip(*(part.layers for part in self.parts), strict=True)
        )
        return KVCache(self.end, (Remembered(self.frames, layers),))

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.nbytes for part in self.parts for layer in part.layers for tensor in layer)


TextCache = dict[int, Pair]
"""Keys and values of the prompt by layer: filled by the first call, read by the calls after it."""
