"""The names of Wan's weights as Wan released them, which ComfyUI reads, from the names that diffusers gives them.

The inverse of diffusers' `convert_wan_transformer_to_diffusers`, for the text-to-video networks.
"""

from __future__ import annotations

import re

from reelign.errors import ReelignError

MODULES = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
"""Outside the blocks: diffusers' name, Wan's name."""

BLOCK = {
    "scale_shift_table": "modulation",
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn1.norm_q": "self_attn.norm_q",
    "attn1.norm_k": "self_attn.norm_k",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.norm_q": "cross_attn.norm_q",
    "attn2.norm_k": "cross_attn.norm_k",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
"""Inside a block; Wan counts the norm before cross-attention third, diffusers second."""

EXPERTS = {"transformer": "high_noise", "transformer_2": "low_noise"}
"""What ComfyUI's users call the two networks of Wan 2.2."""


def original_name(key: str) -> str:
    """Wan's name of a weight, or of an adapter's weight such as `blocks.0.attn1.to_q.lora_A.weight`.

    Raises:
        ReelignError: Wan's text-to-video network has no such weight.
    """
    block, rest = _split_block(key)
    for theirs, original in (BLOCK if block else MODULES).items():
        if rest == theirs or rest.startswith(f"{theirs}."):
            return block + original + rest[len(theirs) :]
    raise ReelignError(f"the weight {key} has no name in Wan's own text-to-video network; use --format diffusers.")


def comfyui_file(model: str, part: str | None, lora: bool = False) -> str:
    """Name of a file for ComfyUI, whose menus show nothing else; `part` is given when there are two experts."""
    return model + ("_lora" if lora else "") + (f"_{EXPERTS[part]}" if part else "") + ".safetensors"


def _split_block(key: str) -> tuple[str, str]:
    """`blocks.3.` and what follows it; the first is empty outside the blocks."""
    found = re.match(r"blocks\.\d+\.", key)
    return (found.group(), key[found.end() :]) if found else ("", key)
