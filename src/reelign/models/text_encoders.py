"""Whether two models read prompts alike, so that one may be given the conditions that the other has encoded."""

from __future__ import annotations

from typing import Any, cast

from reelign.models.base import VideoModel

PROBES = ("a large red circle moves left", "Two dogs play in deep snow at night; grainy film, 1970s.")
"""Prompts that both encode."""
APART = 0.05
"""Root mean square difference, relative to the conditions, that a rounding to bfloat16 stays far below."""


def difference(own: VideoModel, other: VideoModel) -> str:
    """What `other` does otherwise than `own` with a prompt, as a clause about it; empty where they read alike.

    Networks, tokenizers and what the encoders say are compared, not files: a copy in another precision is the same
    encoder.
    """
    wide, narrow = (next(iter(model.denoisers().values())).config.text_dim for model in (other, own))
    if wide != narrow:
        return f"reads text of width {wide}, and {own.name} of {narrow}"
    found, wanted = (_tokens(model) for model in (other, own))
    if found != wanted:
        return f"has another tokenizer than {own.name}: {PROBES[0]!r} is {found[0]} to it, and not {wanted[0]}"
    found, wanted = (model.encode_text(PROBES) for model in (other, own))
    for name, value in wanted.items():
        if name not in found or found[name].shape != value.shape:
            shape = "nothing" if name not in found else tuple(found[name].shape)
            return f"encodes prompts as {shape} where {own.name} has {tuple(value.shape)}"
        apart = (found[name].float() - value.float()).square().mean().sqrt() / value.float().square().mean().sqrt()
        if not apart <= APART:
            return f"has another text encoder than {own.name}: the same prompts are {float(apart):.0%} apart"
    return ""


def _tokens(model: VideoModel) -> list[list[int]]:
    tokenizer = cast(Any, model.pipeline).tokenizer
    return [list(tokenizer(prompt).input_ids) for prompt in PROBES]
