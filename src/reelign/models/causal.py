"""Block-causal attention for diffusers' Wan transformer, with a rolling cache of keys and values.

The frames of a latent video are denoised in blocks. A block sees itself and what came before it:

    a frame k is seen by the block [a, e)  if  k < e  and  (k >= e - window  or  k < sinks)

No network is forked: attention processors are replaced, and a hook on the rotary embedding puts a block at its absolute
place. What a call may see travels through the network in place of the rotary embedding, so that a block that is
computed again for gradient checkpointing sees what it saw the first time. A hook hands each layer its own share of it,
tensors and nothing that tells layers apart, so that what is compiled for one layer is right for all.

Keys are cached after rotation (arXiv 2412.07772, 2506.08009). A `KVCache` is a value, nothing is ever written into it;
one that is longer shares the tensors of the one before, and so do the backward passes of all blocks of a rollout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import get_ident
from typing import Any, Literal, Self

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
    written: dict[int, Pair] | None = None
    rotary: tuple[Tensor, Tensor] = field(init=False)
    parts: list[tuple[slice, Tensor | slice]] = field(init=False)


@dataclass
class LayerView:
    """What one layer may see in a call.

    Attributes:
        rotary, parts: as of the `View`.
        keys, values: the past, part by part; nothing at the beginning and where all frames are in the call.
        shared: whether the backward pass shall keep the past in its parts, which other blocks of the rollout share.
        written: of the `View`.
        made: keys and values of the call's own frames, detached, once they are computed.
    """

    rotary: tuple[Tensor, Tensor]
    parts: list[tuple[slice, Tensor | slice]]
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    shared: bool = False
    written: dict[int, Pair] | None = None
    made: Pair | None = None


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
        self._network = network
        self._views: dict[int, View] = {}
        for layer, block in enumerate(network.blocks):
            block.attn1.set_processor(_SelfAttention())
            block.attn2.set_processor(_CrossAttention())
            block.register_forward_pre_hook(partial(self._enter, layer))
            block.register_forward_hook(partial(self._leave, layer))
        network.rope.register_forward_hook(self._place)

    @contextmanager
    def seeing(self, view: View) -> Iterator[None]:
        """Calls of the network within this context, by the thread that entered it, see this and nothing else."""
        thread = get_ident()
        before = self._views.get(thread)
        self._views[thread] = view
        try:
            yield
        finally:
            del self._views[thread]
            if before is not None:
                self._views[thread] = before

    def _enter(self, layer: int, block: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hook of a block: what this layer may see, and in place of the prompt its keys and values, which are computed
        once where no gradient is asked for."""
        hidden, prompt, levels, view = inputs
        own = LayerView(view.rotary, view.parts, written=view.written)
        if view.cache is not None:
            own.keys, own.values = view.cache.layer(layer)
            own.shared = torch.is_grad_enabled() and not self._network.gradient_checkpointing
        if view.text is not None and not torch.is_grad_enabled():
            if layer not in view.text:
                view.text[layer] = _keys_and_values(block.attn2, prompt)
            prompt = view.text[layer]
        return hidden, prompt, levels, own

    def _leave(self, layer: int, block: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Hook of a block: the keys and values that it made are written down where that was asked for."""
        own = inputs[3]
        if own.written is not None:
            own.written[layer] = own.made

    def _place(self, rope: Any, inputs: tuple[Tensor, ...], rotary: tuple[Tensor, Tensor]) -> View:
        """Hook of the rotary embedding: what this call may see, with its frames at their absolute place."""
        asked = self._views.get(get_ident())
        view = View(None) if asked is None else View(asked.cache, asked.text, asked.written)
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

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: LayerView | None = None,
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
        view.made = (key.detach(), value.detach())
        keeping = nullcontext()
        if view.keys:
            parts = [*(past.to(key) for past in view.keys), key], [*(past.to(value) for past in view.values), value]
            key, value = torch.cat(parts[0], 1), torch.cat(parts[1], 1)
            keeping = _kept_in_parts((key, parts[0]), (value, parts[1])) if view.shared else keeping
        with keeping:
            seen = [
                dispatch_attention_fn(
                    query[:, own], key[:, keys], value[:, keys], dropout_p=0.0, backend=self._attention_backend
                )
                for own, keys in view.parts
            ]
        mixed = torch.cat(seen, 1).flatten(2, 3).type_as(hidden_states)
        return attn.to_out[1](attn.to_out[0](mixed))


class _CrossAttention(WanAttnProcessor):
    """Attention to the prompt, or to keys and values of it that were computed before."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | Pair | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        if not isinstance(encoder_hidden_states, tuple):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        mixed = dispatch_attention_fn(query, *encoder_hidden_states, dropout_p=0.0, backend=self._attention_backend)
        return attn.to_out[1](attn.to_out[0](mixed.flatten(2, 3).type_as(hidden_states)))


def _keys_and_values(attn: Any, prompt: Tensor) -> Pair:
    """Of the prompt (B, L, D), for the cross-attention `attn`."""
    key, value = attn.norm_k(attn.to_k(prompt)), attn.to_v(prompt)
    return key.unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1))


@contextmanager
def _kept_in_parts(*joined: tuple[Tensor, list[Tensor]]) -> Iterator[None]:
    """What is saved for the backward pass of a tensor that was joined from parts, along its tokens, are the parts.

    The backward pass joins them again. So a rollout keeps every block of the past once, not once for each block that
    saw it. Under gradient checkpointing this is left to the recomputation, which has hooks of its own.
    """
    found = {whole.untyped_storage().data_ptr(): [part.detach() for part in parts] for whole, parts in joined}

    def pack(saved: Tensor) -> Any:
        parts = found.get(saved.untyped_storage().data_ptr())
        return saved if parts is None else (parts, saved.size(), saved.stride(), saved.storage_offset())

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        parts, size, stride, offset = kept
        return torch.cat(parts, 1).as_strided(size, stride, offset)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _rotated(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of neighbouring channels (arXiv 2104.09864); x is (B, tokens, heads, width)."""
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x)


def _tokens(frames: list[int], tokens: int, device: torch.device) -> Tensor:
    """Indices of the tokens of some frames."""
    first = torch.tensor(frames, device=device)[:, None] * tokens
    return (first + torch.arange(tokens, device=device)).flatten()
