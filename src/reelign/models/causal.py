"""Block-causal attention for diffusers' Wan transformer, with a rolling cache of keys and values.

The frames of a latent video are denoised in blocks. A block sees itself and what came before it:

    a frame k is seen by the block [a, e)  if  k < e  and  (k >= e - window  or  k < sinks)

No network is forked: attention processors are replaced, and a hook on the rotary embedding puts a block at its absolute
place. What a call may see travels through the network in place of the rotary embedding, so that a block that is
computed again for gradient checkpointing sees what it saw the first time. Keys are cached after rotation (arXiv
2412.07772, 2506.08009); a `KVCache` is a value, nothing is ever written into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from reelign.errors import ReelignError

CAUSAL = "causal.json"
"""The file of an artifact that says that it is causal, and how."""
THETA = 10_000.0
"""Base of Wan's rotary frequencies; diffusers does not keep it."""


class CausalConfig(BaseModel):
    """How a causal model sees the past; all numbers are latent frames."""

    model_config = ConfigDict(extra="forbid")
    block: int = Field(default=3, ge=1, description="Latent frames that are denoised together.")
    window: int | None = Field(
        default=None, ge=1, description="Latent frames that a block sees, its own among them; all if empty."
    )
    sinks: int = Field(default=0, ge=0, description="First latent frames that stay in sight beside the window.")

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


@dataclass(frozen=True)
class KVCache:
    """Keys, after rotation, and values of the frames before a block.

    Attributes:
        end: frames so far, the cached ones and the forgotten ones; the next block begins here.
        frames: absolute indices of the cached frames, in order.
        layers: (keys, values) of each layer, (B, frames * tokens, heads, width).
    """

    end: int = 0
    frames: tuple[int, ...] = ()
    layers: tuple[tuple[Tensor, Tensor], ...] = ()

    def extended(self, layers: list[tuple[Tensor, Tensor]], config: CausalConfig) -> KVCache:
        """With a new block of `config.block` frames, and without the frames that the block after it does not see."""
        frames = (*self.frames, *range(self.end, self.end + config.block))
        end = self.end + config.block
        seen = set(config.seen(end + config.block))
        keep = [place for place, frame in enumerate(frames) if frame in seen]
        old = self.layers or [(k[:, :0], v[:, :0]) for k, v in layers]
        kept = tuple(
            (_frames(torch.cat([old_k, k], 1), keep, len(frames)), _frames(torch.cat([old_v, v], 1), keep, len(frames)))
            for (old_k, old_v), (k, v) in zip(old, layers, strict=True)
        )
        return KVCache(end, tuple(frames[place] for place in keep), kept)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(part.nbytes for layer in self.layers for part in layer)


TextCache = dict[int, tuple[Tensor, Tensor]]
"""Keys and values of the prompt by layer: filled by the first call, read by the calls after it."""


@dataclass
class View:
    """What one call of the network may see.

    Attributes:
        cache: the past; None where all frames are in the call, each block seeing what it would see in a rollout.
        text: keys and values of the prompt; None to compute them.
        written: (keys, values) of each layer of the call's own frames, detached; None to write nothing.
        rotary: cos and sin (1, tokens, 1, width) at the absolute place of the call's frames.
        parts: tokens of the queries, and the tokens that they see of all the keys (past and own).
    """

    cache: KVCache | None
    text: TextCache | None = None
    written: dict[int, tuple[Tensor, Tensor]] | None = None
    rotary: tuple[Tensor, Tensor] = field(init=False)
    parts: list[tuple[slice, Tensor | slice]] = field(init=False)


class CausalAttention:
    """Block-causal attention of one network.

    Attributes:
        config: what a block sees. May be given another window or other sinks at any time, never another block.
    """

    def __init__(self, network: Any, config: CausalConfig) -> None:
        """Replace the attention processors of `network`, a `WanTransformer3DModel`.

        Raises:
            ReelignError: the network is not of Wan's text-to-video kind.
        """
        if network.config.patch_size[0] != 1 or network.config.added_kv_proj_dim is not None:
            raise ReelignError("only text-to-video networks with patches of one latent frame can be made causal.")
        self.config = config
        self._view: View | None = None
        for layer, block in enumerate(network.blocks):
            block.attn1.set_processor(_SelfAttention(layer))
            block.attn2.set_processor(_CrossAttention(layer, self))
        network.rope.register_forward_hook(self._place)

    @contextmanager
    def seeing(self, view: View) -> Iterator[None]:
        """Calls of the network within this context see this and nothing else."""
        before, self._view = self._view, view
        try:
            yield
        finally:
            self._view = before

    @property
    def view(self) -> View | None:
        """What calls see now; None outside a rollout, where a call sees a whole clip block by block."""
        return self._view

    def _place(self, rope: Any, inputs: tuple[Tensor, ...], rotary: tuple[Tensor, Tensor]) -> View:
        """Hook of the rotary embedding: what this call may see, with its frames at their absolute place."""
        view = View(None) if self._view is None else View(self._view.cache, self._view.text, self._view.written)
        frames = inputs[0].shape[2]
        tokens = rotary[0].shape[1] // frames
        first = 0 if view.cache is None else view.cache.end
        cos, sin = get_1d_rotary_pos_embed(
            rope.t_dim,
            np.arange(first, first + frames),
            THETA,
            use_real=True,
            repeat_interleave_real=True,
            freqs_dtype=torch.float64,
        )
        view.rotary = tuple(  # pyright: ignore[reportAttributeAccessIssue]
            torch.cat(
                [own.to(full).repeat_interleave(tokens, 0)[None, :, None], full[..., rope.t_dim :]],
                -1,
            )
            for own, full in zip((cos, sin), rotary, strict=True)
        )
        view.parts = self._parts(view.cache, frames, tokens, inputs[0].device)
        return view

    def _parts(
        self, cache: KVCache | None, frames: int, tokens: int, device: torch.device
    ) -> list[tuple[slice, Tensor | slice]]:
        if cache is not None:
            if frames != self.config.block:
                raise ReelignError(f"a call with a cache takes a block of {self.config.block} frames, not {frames}.")
            return [(slice(None), slice(None))]
        parts: list[tuple[slice, Tensor | slice]] = []
        for first, end in self.config.blocks(frames):
            seen = self.config.seen(end)
            whole = len(seen) == end
            keys = slice(0, end * tokens) if whole else _tokens(seen, tokens, device)
            parts.append((slice(first * tokens, end * tokens), keys))
        return parts


class _SelfAttention:
    """Self-attention of a layer over what the call may see."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: View | None = None,
    ) -> Tensor:
        view = rotary_emb
        assert view is not None
        query, key, value = (
            part.unflatten(2, (attn.heads, -1))
            for part in (
                attn.norm_q(attn.to_q(hidden_states)),
                attn.norm_k(attn.to_k(hidden_states)),
                attn.to_v(hidden_states),
            )
        )
        query, key = _rotated(query, view.rotary), _rotated(key, view.rotary)
        if view.written is not None:
            view.written[self.layer] = (key.detach(), value.detach())
        if view.cache is not None and view.cache.layers:
            past_key, past_value = view.cache.layers[self.layer]
            key, value = torch.cat([past_key.to(key), key], 1), torch.cat([past_value.to(value), value], 1)
        seen = [
            dispatch_attention_fn(
                query[:, own], key[:, keys], value[:, keys], dropout_p=0.0, backend=self._attention_backend
            )
            for own, keys in view.parts
        ]
        mixed = torch.cat(seen, 1).flatten(2, 3).type_as(hidden_states)
        return attn.to_out[1](attn.to_out[0](mixed))


class _CrossAttention(WanAttnProcessor):
    """Attention to the prompt; its keys and values are computed once where no gradient is asked for."""

    def __init__(self, layer: int, owner: CausalAttention) -> None:
        super().__init__()
        self.layer, self.owner = layer, owner

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        text = self.owner.view.text if self.owner.view is not None else None
        if text is None or torch.is_grad_enabled():
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        if self.layer not in text:
            key, value = attn.norm_k(attn.to_k(encoder_hidden_states)), attn.to_v(encoder_hidden_states)
            text[self.layer] = (key.unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1)))
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        mixed = dispatch_attention_fn(query, *text[self.layer], dropout_p=0.0, backend=self._attention_backend)
        return attn.to_out[1](attn.to_out[0](mixed.flatten(2, 3).type_as(hidden_states)))


def _rotated(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of neighbouring channels (arXiv 2104.09864); x is (B, tokens, heads, width)."""
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x)


def _frames(values: Tensor, keep: list[int], frames: int) -> Tensor:
    """Some frames of (B, frames * tokens, ...)."""
    if len(keep) == frames:
        return values
    return values.unflatten(1, (frames, -1))[:, keep].flatten(1, 2)


def _tokens(frames: list[int], tokens: int, device: torch.device) -> Tensor:
    """Indices of the tokens of some frames."""
    first = torch.tensor(frames, device=device)[:, None] * tokens
    return (first + torch.arange(tokens, device=device)).flatten()
