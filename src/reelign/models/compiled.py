"""torch.compile of the blocks of a network: each by itself, all by the same code, so that it is compiled once.

A block of a causal network sees a longer past with every block of the video. Compiled for one length it would be
compiled again for the next, until torch gives up at its recompile limit. So the length of the past is left open, and
the code is compiled twice: for the first block, which has no past, and for all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import maybe_mark_dynamic

from reelign.models.base import VideoModel
from reelign.models.causal import LayerView


def compile_blocks(model: VideoModel, backend: str = "inductor") -> Callable[[], None]:
    """Let the blocks of all denoisers be compiled when they are first called; each size of clip anew.

    Args:
        model: is changed in place. One that is causal is for sampling from now on, not for training.
        backend: of torch.compile.

    Returns:
        What takes it off again.
    """
    blocks = [block for network in model.denoisers().values() for block in network.blocks]
    for block in blocks:
        if model.causal is None:
            block.compile(backend=backend, dynamic=False)
        else:
            block.forward = _with_any_past(torch.compile(block.forward, backend=backend, dynamic=False))

    def restore() -> None:
        for block in blocks:
            block._compiled_call_impl = None
            block.__dict__.pop("forward", None)

    return restore


def _with_any_past(compiled: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A block between the hooks that give a layer its view and the compiled code."""

    def forward(hidden: Tensor, prompt: Any, levels: Tensor, view: LayerView) -> Tensor:
        view.keys, view.values = _open(view.keys), _open(view.values)
        return compiled(hidden, prompt, levels, view)

    return forward


def _open(past: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The past (B, tokens, heads, width) in one part, whose number of tokens is left open; nothing if there is none."""
    if not past:
        return past
    whole = past[0] if len(past) == 1 else torch.cat(past, 1)
    maybe_mark_dynamic(whole, 1)
    return (whole,)
