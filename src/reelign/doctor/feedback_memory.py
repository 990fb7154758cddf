"""What votes, a reward's network and preference optimisation need of memory, coarsely."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from reelign.doctor.memory import (
    GIB,
    LIVE_VALUES,
    activation_bytes,
    fitting,
    free_memory,
    frozen_bytes,
    parameters,
    planned_ranks,
    rendering_bytes,
    state_bytes,
    tokens,
    width_of,
)
from reelign.errors import ReelignError
from reelign.models.base import VideoModel
from reelign.recipe import Recipe
from reelign.rewards.qwen_backbone import family_of
from reelign.rewards.vlm_network import VlmNetworkConfig
from reelign.stages.dpo import DpoConfig
from reelign.stages.reward import RewardConfig
from reelign.stages.votes import SimulatedVotes

WORDS = 400
"""Tokens that a vision-language model reads besides the clip, roughly."""
TRAINED_BYTES = 20
"""Of a trained value: itself, gradient, two moments and the average, all float32."""


def votes_memory(recipe: Recipe, source: SimulatedVotes, key: str, model: VideoModel) -> None:
    """Whether the clips of a batch of pairs fit beside the models that make them.

    Raises:
        ReelignError: they do not.
    """
    width = width_of(recipe.dtype)
    clips, models = 2 * min(source.batch_size, source.pairs), len(set(source.models))
    need = models * (parameters(model) * width + frozen_bytes(model)) + rendering_bytes(
        recipe.battery, model, clips, width
    )
    have = free_memory()
    sentence = f"about {need / GIB:.1f} GiB to sample {clips} clips at once, {have / GIB:.1f} GiB free."
    fitting(sentence, need, have, f"Lower {key}.batch_size.")


def network_memory(recipe: Recipe, config: RewardConfig, network: VlmNetworkConfig, axes: Sequence[str]) -> str:
    """The base of a vision-language model, what is trained of it, and the activations of a micro-batch.

    Raises:
        ReelignError: the base is not there, is of no known kind, or does not fit.
    """
    family_of(network.base)
    files = sorted(network.base.glob("*.safetensors"))
    if not files:
        raise ReelignError(f"reward.network.base: {network.base} holds no *.safetensors. Is the download complete?")
    place = network.base / "config.json"
    facts = json.loads(place.read_text(encoding="utf-8"))
    text = facts.get("text_config") or facts
    weights = sum(file.stat().st_size for file in files)
    clips = 2 * min(config.micro_batch, max(1, config.batch_size // planned_ranks()))
    try:
        trained = _adapters(text, network) + (_vision(facts["vision_config"]) if network.train_vision else 0)
        states, seen = trained * TRAINED_BYTES, _tokens(recipe, network, facts["vision_config"])
        blocks, width = text["num_hidden_layers"], text["hidden_size"]
    except KeyError as error:
        raise ReelignError(f"reward.network.base: {place} does not say {error}. Copy it again.") from error
    kept = 1 + blocks / LIVE_VALUES if network.gradient_checkpointing else blocks
    activations = clips * seen * width * width_of(network.dtype) * LIVE_VALUES * kept
    need, have = weights + states + activations, free_memory()
    sentence = (
        f"a {facts['model_type']} in {network.base}, with adapters and a score for {', '.join(axes)}: about "
        f"{need / GIB:.1f} GiB a rank, {weights / GIB:.1f} weights, {states / GIB:.1f} training state and "
        f"{activations / GIB:.1f} activations of {clips} clips of about {seen:.0f} tokens; {have / GIB:.1f} GiB free."
    )
    turn = "" if network.gradient_checkpointing else "turn on reward.network.gradient_checkpointing, "
    return fitting(sentence, need, have, f"Lower reward.micro_batch, {turn}or lower reward.network.most_pixels.")


def dpo_memory(recipe: Recipe, config: DpoConfig, model: VideoModel, pairs: int) -> str:
    """Weights of the model and of its frozen parent, training state, activations of a micro-batch, and latents of all
    clips in main memory."""
    ranks, width = planned_ranks(), width_of(recipe.dtype)
    copies = 1 if config.method == "lora" else 2
    weights = copies * (parameters(model) * width / ranks + frozen_bytes(model))
    states = state_bytes(model, config, width) / ranks
    clips = 2 * min(config.micro_batch, max(1, config.pairs_per_update // ranks))
    activations = clips * tokens(recipe.battery, model) * activation_bytes(model, width, config.gradient_checkpointing)
    size = recipe.battery
    channels, frames, height, side = model.latent_shape(size.frames, size.height, size.width)
    latents = 2 * pairs * 4 * channels * frames * height * side
    main = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if latents > main:
        raise ReelignError(
            f"the latents of about {pairs} pairs take {latents / GIB:.0f} GiB, and every rank holds them in main "
            f"memory ({main / GIB:.0f} GiB): give `dpo` fewer votes, or smaller clips."
        )
    need, have = weights + states + activations, free_memory()
    whose = " of model and parent" if copies == 2 else ""
    sentence = (
        f"about {need / GIB:.1f} GiB a rank: {weights / GIB:.1f} weights{whose}, "
        f"{states / GIB:.1f} training state, {activations / GIB:.1f} activations of {clips} clips; besides "
        f"{latents / GIB:.2g} GiB of latents in main memory; {have / GIB:.1f} GiB free."
    )
    turn = "" if config.gradient_checkpointing else "turn on dpo.gradient_checkpointing, "
    return fitting(sentence, need, have, f"Lower dpo.micro_batch, {turn}use dpo.method=lora or more ranks.")


def _adapters(text: dict[str, Any], network: VlmNetworkConfig) -> int:
    """Values of the adapters, by the shapes of a Qwen's layers; other targets count nothing."""
    width, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    head = text.get("head_dim") or width // heads
    queries, keys = heads * head, text["num_key_value_heads"] * head
    sums = {
        "q_proj": width + queries,
        "k_proj": width + keys,
        "v_proj": width + keys,
        "o_proj": queries + width,
        "gate_proj": width + inner,
        "up_proj": width + inner,
        "down_proj": inner + width,
    }
    return text["num_hidden_layers"] * network.lora.rank * sum(sums.get(name, 0) for name in network.lora.targets)


def _vision(vision: dict[str, Any]) -> int:
    """Weights of a vision tower, twelve squares of its width a block."""
    return 12 * vision["depth"] * (vision.get("embed_dim") or vision["hidden_size"]) ** 2


def _tokens(recipe: Recipe, network: VlmNetworkConfig, vision: dict[str, Any]) -> float:
    """Of a clip of the battery's size, and the words around it."""
    size = recipe.battery
    frames = min(size.frames, max(4, round(size.frames / size.fps * network.fps)))
    pixels = min(max(size.height * size.width, network.least_pixels), network.most_pixels)
    cell = (vision.get("patch_size", 14) * vision.get("spatial_merge_size", 2)) ** 2
    return WORDS + frames / vision.get("temporal_patch_size", 2) * pixels / cell
