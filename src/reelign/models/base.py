"""A video model: a diffusers pipeline seen as four verbs (encode text, encode video, predict velocity, decode)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from reelign.files import write_atomically
from reelign.models.block_cache import Cache
from reelign.models.causal import CausalAttention
from reelign.models.kv_cache import CAUSAL, CausalConfig
from reelign.models.stream_decoder import StreamDecoder

Conditions = dict[str, Tensor]
"""The encoded prompts: tensors keyed by name, batch first; opaque to everyone but the adapter of the family."""


def take(conditions: Conditions, rows: Tensor | slice) -> Conditions:
    """The conditions of some rows, in their order: a slice of them, or indices, where a row may come more than once."""
    if isinstance(rows, slice):
        return {name: value[rows] for name, value in conditions.items()}
    return {name: value[rows.to(value.device)] for name, value in conditions.items()}


CARD = "card.json"
"""The file of an artifact that says what it is and where it comes from."""


def write_card(model: VideoModel, folder: Path, facts: dict[str, Any]) -> None:
    """Write the card of an artifact: `facts`, and of a distilled model its sampler and how it sees the past."""
    if model.own_sampler is not None:
        facts = {**facts, "sampler": model.own_sampler}
    if model.causal is not None:
        write_atomically(folder / CAUSAL, model.causal.config.model_dump_json(indent=1))
    write_atomically(folder / CARD, json.dumps(facts, indent=2))


@dataclass(frozen=True)
class NativeSize:
    """The clip that a checkpoint makes when nobody says otherwise, and the guidance that suits it."""

    frames: int
    height: int
    width: int
    fps: float
    guidance_scale: float = 5.0


class VideoModel(ABC):
    """What every stage sees of a checkpoint.

    Latents are float32 (B, C, F, h, w), normalised by the autoencoder's statistics; sigma is (B,) in [0, 1]; frames are
    uint8 RGB (B, T, H, W, 3).

    Attributes:
        pipeline: the diffusers pipeline underneath.
        name: what the model was loaded from.
        native_size: the clip that it makes by default.
        scheduler_shift: the flow shift that the checkpoint ships.
        causal: its block-causal attention; None for a model that sees all frames at once.
        own_sampler: the sampler that a distilled model was made for, as its card says it; None for others.
        block_cache: what steps take over from the steps before them; None where every step is computed.
    """

    pipeline: DiffusionPipeline
    name: str
    native_size: NativeSize
    scheduler_shift: float
    causal: CausalAttention | None = None
    own_sampler: dict[str, Any] | None = None
    block_cache: Cache | None = None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the networks are."""

    @property
    @abstractmethod
    def frame_stride(self) -> int:
        """Frames a latent frame stands for: clips have `1 + k * frame_stride` frames."""

    @property
    @abstractmethod
    def side_multiple(self) -> int:
        """Heights and widths are multiples of this many pixels."""

    @abstractmethod
    def encode_text(self, prompts: Sequence[str]) -> Conditions:
        """Prompts to conditions with batch size `len(prompts)`."""

    @abstractmethod
    def encode_video(self, frames: Tensor) -> Tensor:
        """Frames uint8 (B, T, H, W, 3) to normalised latents float32 (B, C, F, h, w)."""

    @abstractmethod
    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """Predicted velocity `eps - x0`, float32, same shape as `latents`; gradients flow.

        `sigma` is (B,), or (B, F) where each latent frame has a level of its own.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents to frames uint8 (B, T, H, W, 3)."""

    @abstractmethod
    def decoder(self) -> StreamDecoder:
        """Decodes one video block after block; the frames are those that `decode` gives for the whole."""

    @abstractmethod
    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, h, w) of a clip.

        Raises:
            ReelignError: the size does not fit the autoencoder; the message names the nearest sizes that do.
        """

    @abstractmethod
    def make_causal(self, config: CausalConfig) -> None:
        """Let the denoiser see the past only, block by block; its weights stay as they are.

        Raises:
            ReelignError: the denoiser is of a kind that cannot.
        """

    @abstractmethod
    def twin(self) -> Self:
        """The same model with denoisers of its own; text encoder and autoencoder are shared. It is not causal."""

    @property
    def stateless(self) -> bool:
        """Whether several threads may call `velocity` at once: it remembers nothing, and needs no other rank."""
        sharded = any(isinstance(network, FSDPModule) for network in self.denoisers().values())
        return self.block_cache is None and not sharded

    def branch(self, name: str) -> AbstractContextManager[None]:
        """Calls of `velocity` within it belong to one side of guidance, "cond" or "uncond"."""
        return nullcontext() if self.block_cache is None else self.block_cache.branch(name)

    @abstractmethod
    def denoisers(self) -> dict[str, Any]:
        """The networks that training changes, diffusers `ModelMixin`s by the name of their pipeline component."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything as a diffusers folder; a half-written one never bears the name."""
