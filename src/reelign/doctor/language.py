"""What a language model that learns to rewrite prompts needs of memory and disk, beside the generator that renders."""

from __future__ import annotations

from typing import Any

from torch import nn

from reelign.doctor.cost import clips_at_most
from reelign.doctor.memory import (
    GIB,
    fitting,
    free_disk,
    free_memory,
    frozen_bytes,
    parameters,
    planned_ranks,
    rendering_bytes,
    stages_bytes,
    width_of,
)
from reelign.enhancer.language_model import BATCH
from reelign.models.base import VideoModel
from reelign.recipe import Recipe
from reelign.stages.enhance_recipe import EnhanceConfig, RewardTraining, divided

LIVE_VALUES = 41
"""Values of the width that a block keeps of each token for the backward pass. Counted in the blocks of Qwen3-0.6B and
4B: 25 to 41, most with adapters in bfloat16."""


def trained_weights(model: Any, config: EnhanceConfig) -> int:
    """Weights that learn: all, or adapters on every linear layer but the head."""
    if config.method == "full":
        return model.num_parameters()
    head = model.get_output_embeddings()
    layers = [part for part in model.modules() if isinstance(part, nn.Linear) and part is not head]
    return sum(config.lora.rank * (layer.in_features + layer.out_features) for layer in layers)


def enhance_memory(
    recipe: Recipe, config: EnhanceConfig, model: Any, generator: VideoModel, question: int, answer: int
) -> str:
    """Of the larger of both steps; the ranks share rows, and every one of them holds all weights.

    Args:
        recipe: size and type of the clips.
        config: the recipe's.
        model: the language model.
        generator: what renders.
        question, answer: tokens of the longest ones.
    """
    width, grpo, have = width_of(config.dtype), config.grpo, free_memory()
    weights, learned = model.num_parameters() * width, trained_weights(model, config)
    states = learned * _state_bytes(config) + (learned * _own_width(config) if planned_ranks() > 1 else 0)
    step = config.supervised
    rows, _ = divided(step.batch_size, step.micro_batch, "enhance.supervised.batch_size", planned_ranks())
    learning = rows * (question + answer) * _activation_bytes(model, config)
    need, key = weights + states + learning, "enhance.supervised.micro_batch"
    said = f"{weights / GIB:.1f} weights of the language model, {states / GIB:.1f} training state"
    sentence = f"{said} and {learning / GIB:.1f} to learn from {rows} pairs"
    if grpo is not None:
        rewarded, more, largest = _rewarded(recipe, config, grpo, model, generator, question)
        if weights + states + rewarded > need:
            need, key, sentence = weights + states + rewarded, largest, f"{said}, {more}"
    turn = "" if config.gradient_checkpointing else "turn on enhance.gradient_checkpointing, "
    lora = "" if config.method == "lora" else "use enhance.method=lora, "
    return fitting(
        f"about {need / GIB:.1f} GiB a rank: {sentence}; {have / GIB:.1f} GiB free.",
        need,
        have,
        f"Lower {key}, {turn}{lora}or take a smaller model.",
    )


def enhance_disk(recipe: Recipe, config: EnhanceConfig, model: Any, generator: VideoModel) -> str:
    """Three checkpoints, the model after each step and as the artifact, and all clips if none is rendered twice."""
    grpo, (place, free) = config.grpo, free_disk(recipe)
    models = model.num_parameters() * width_of(config.dtype) * (2 if grpo is None else 3)
    models += 3 * trained_weights(model, config) * _own_width(config) * 3
    others, clips, sentence = stages_bytes(recipe, generator), 0, ""
    if grpo is not None:
        size, count = grpo.size(recipe.battery), clips_at_most(grpo)
        clips = count * size.frames * size.height * size.width * 3
        sentence = f"at most {clips / GIB:.1f} GiB for the {count:,} clips of GRPO, if no rewrite comes twice, and "
    return fitting(
        f"{sentence}about {models / GIB:.1f} GiB for the language model and its checkpoints, besides the "
        f"{others / GIB:.1f} GiB of the other stages; {free / GIB:.1f} GiB free in {place}.",
        models + clips + others,
        free,
        "Free some space, set runs=/another/disk"
        + (", or render smaller clips (enhance.grpo.frames, height and width)." if clips else "."),
    )


def _rewarded(
    recipe: Recipe, config: EnhanceConfig, grpo: RewardTraining, model: Any, generator: VideoModel, question: int
) -> tuple[float, str, str]:
    """Bytes that GRPO takes beside the language model and its state, the words for them, and which key lowers them."""
    width, ranks, rows = width_of(recipe.dtype), planned_ranks(), grpo.prompts_per_step * grpo.group_size
    fixed = parameters(generator) * width + frozen_bytes(generator)
    if grpo.kl and config.method == "full":
        fixed += model.num_parameters() * width_of(config.dtype)
    size, length = grpo.size(recipe.battery), question + config.tokens
    written = min(BATCH, rows // ranks)
    clips = min(size.batch_size, -(-rows * grpo.clips // ranks))
    learned, _ = divided(rows, grpo.micro_batch, "enhance.grpo: rewrites of a step", ranks)
    writing = written * length * _cache_bytes(model, config)
    rendering = rendering_bytes(size, generator, clips, width)
    learning = learned * length * _activation_bytes(model, config)
    largest, key = max(
        (writing, "enhance.tokens"), (rendering, "battery.batch_size"), (learning, "enhance.grpo.micro_batch")
    )
    reference = " and reference" if grpo.kl and config.method == "full" else ""
    sentence = (
        f"{fixed / GIB:.1f} the generator{reference}, and then {writing / GIB:.1f} to write {written} rewrites, "
        f"{rendering / GIB:.1f} to sample and decode {clips} clips or {learning / GIB:.1f} to learn from {learned} "
        "rewrites, besides what the rewards load"
    )
    return fixed + largest, sentence, key


def _own_width(config: EnhanceConfig) -> int:
    """Bytes of a trained weight: adapters are float32 whatever they lie on."""
    return 4 if config.method == "lora" else width_of(config.dtype)


def _state_bytes(config: EnhanceConfig) -> int:
    """Of a trained weight: gradient and two moments of its own type, and an adapter itself."""
    return _own_width(config) * (4 if config.method == "lora" else 3)


def _activation_bytes(model: Any, config: EnhanceConfig) -> float:
    """Bytes a token keeps for the backward pass; with checkpointing one value a block, and all of one block."""
    shape = model.config.get_text_config()
    block, blocks = shape.hidden_size * width_of(config.dtype) * LIVE_VALUES, shape.num_hidden_layers
    return block + block * blocks / LIVE_VALUES if config.gradient_checkpointing else block * blocks


def _cache_bytes(model: Any, config: EnhanceConfig) -> int:
    """Bytes a token keeps while an answer is written: keys and values of every block."""
    shape = model.config.get_text_config()
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return 2 * shape.num_hidden_layers * heads * width * width_of(config.dtype)
