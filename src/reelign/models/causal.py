"""Block-causal attention for diffusers' Wan transformer, over a rolling cache of keys and values.

No network is forked: attention processors are replaced, and a hook on the rotary embedding puts a block at its absolute
place. What a call may see travels through the network in place of the rotary embedding, so that a block that is
computed again for gradient checkpointing sees what it saw the first time. A hook hands each layer its own share of it,
tensors and nothing that tells layers apart, so that what is compiled for one layer is right for all.

Keys are cached after rotation (arXiv 2412.07772, 2506.08009). The backward passes of all blocks of a rollout share the
tensors of what is cached.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from reelign.errors import ReelignError
from reelign.models.kv_cache import CausalConfig, KVCache, Pair, TextCache

THETA = 10_000.0
"""Base of Wan's rotary frequencies; diffusers does not keep it."""


@dataclass(frozen=True)
class Place:
    """Where the frames of a call are.

    Attributes:
        turn: cos and sin (1, tokens, 1, width / 2, 2) of the angles by which pairs of channels turn.
        parts: tokens of the queries, and the tokens that they see of all the call's keys; None where all see all, the
            past too.
    """

    turn: Tensor
    parts: list[tuple[slice, Tensor | slice]] | None


@dataclass
class View:
    """What calls of the network may see, all of them on the same frames.

    Attributes:
        cache: the past; None where all frames are in the call, each block seeing what it would see in a rollout.
        text: keys and values of the prompt; None to compute them.
        written: (keys, values) of each layer of the call's own frames, detached; None to write nothing.
        place: where the call's frames are; the first call finds it, for all that see this.
    """

    cache: KVCache | None
    text: TextCache | None = None
    written: dict[int, Pair] | None = None
    place: Place | None = None


@dataclass
class LayerView:
    """What one layer may see in a call.

    Attributes:
        place: of the `View`.
        keys, values: the past, part by part; nothing at the beginning and where all frames are in the call.
        shared: whether the backward pass shall keep the past in its parts, which other blocks of the rollout share.
        written: of the `View`.
        made: keys and values of the call's own frames, detached, once they are computed.
    """

    place: Place
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
        network.rope.register_forward_hook(self._look)
        network.condition_embedder.text_embedder.register_forward_pre_hook(self._listen)

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
        own = LayerView(view.place, written=view.written)
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

    def _listen(self, embedder: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Hook of the prompt's embedding: nothing is embedded where all layers have their keys and values of it."""
        asked = self._views.get(get_ident())
        if torch.is_grad_enabled() or asked is None or asked.text is None:
            return inputs
        heard = len(asked.text) == len(self._network.blocks)
        return (inputs[0][:, :0],) if heard else inputs

    def _look(self, rope: Any, inputs: tuple[Tensor, ...], rotary: tuple[Tensor, Tensor]) -> View:
        """Hook of the rotary embedding: what this call may see, with its frames at their absolute place."""
        view = self._views.get(get_ident()) or View(None)
        if view.place is None:
            view.place = self._place(rope, inputs[0], rotary, view.cache)
        return view

    def _place(self, rope: Any, latents: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None) -> Place:
        """Of `latents` (B, C, frames, h, w) that follow the past; `rotary` is theirs at the beginning of a clip."""
        frames = latents.shape[2]
        tokens = rotary[0].shape[1] // frames
        first = 0 if cache is None else cache.end
        along = get_1d_rotary_pos_embed(
            rope.t_dim,
            np.arange(first, first + frames),
            THETA,
            use_real=True,
            repeat_interleave_real=True,
            freqs_dtype=torch.float64,
        )
        waves = [
            torch.cat([own.to(full).repeat_interleave(tokens, 0)[None, :, None], full[..., rope.t_dim :]], -1)[..., ::2]
            for own, full in zip(along, rotary, strict=True)
        ]
        turn = torch.stack(waves, -1)
        parts = self._parts(cache, frames, tokens, latents.device)
        return Place(turn.to(torch.promote_types(turn.dtype, torch.float32)), parts)

    def _parts(
        self, cache: KVCache | None, frames: int, tokens: int, device: torch.device
    ) -> list[tuple[slice, Tensor | slice]] | None:
        if cache is not None:
            if frames != self.config.block:
                raise ReelignError(f"a call with a cache takes a block of {self.config.block} frames, not {frames}.")
            return None
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
        query, key = _rotated(query, view.place.turn), _rotated(key, view.place.turn)
        view.made = (key.detach(), value.detach())
        keeping = nullcontext()
        if view.keys:
            keys = [*(past.to(key) for past in view.keys), key]
            values = [*(past.to(value) for past in view.values), value]
            key, value = torch.cat(keys, 1), torch.cat(values, 1)
            keeping = _kept_in_parts((key, keys), (value, values)) if view.shared else keeping
        parts = view.place.parts
        with keeping:
            if parts is None:
                mixed = self._attention(query, key, value)
            else:
                mixed = torch.cat([self._attention(query[:, own], key[:, at], value[:, at]) for own, at in parts], 1)
        return attn.to_out[1](attn.to_out[0](mixed.flatten(2, 3).type_as(hidden_states)))

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dispatch_attention_fn(query, key, value, dropout_p=0.0, backend=self._attention_backend)


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


def _rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate pairs of neighbouring channels (arXiv 2104.09864); x is (B, tokens, heads, width), `turn` of a `Place`.

    A pair is a complex number, and turning it one product: an eighth of the time that the real products take on a CPU
    for a block of the miniature. Compiled code is made of the real ones, for inductor has none for complex numbers.
    """
    pairs = x.to(turn.dtype).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        (even, odd), (cos, sin) = pairs.unbind(-1), turn.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn))
    return turned.flatten(-2).type_as(x)


def _tokens(frames: list[int], tokens: int, device: torch.device) -> Tensor:
    """Indices of the tokens of some frames."""
    first = torch.tensor(frames, device=device)[:, None] * tokens
    return (first + torch.arange(tokens, device=device)).flatten()
