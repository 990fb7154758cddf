"""What a run needs of memory and disk: weights, training state, activations by a rule of thumb for each token."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig
from reelign.models.adapter import Coverage, attach_lora
from reelign.models.base import VideoModel
from reelign.recipe import Recipe
from reelign.stages.rlhf import RlhfConfig, training_sampler
from reelign.stages.sft import SftConfig
from reelign.stages.trainee import TraineeConfig

GIB = 2**30
LIVE_VALUES = 34
"""Values of the width that a block holds for each token while it computes."""
DECODER_FRAMES, DECODER_VALUES, DECODER_WIDTH = 4, 6, 96
"""Wan's autoencoder decodes clip by clip, four frames at a time; its last block holds about six values of its width a
pixel."""


def planned_ranks() -> int:
    """The ranks that torchrun started, or would start."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def free_memory() -> int:
    """Bytes that are free on the device, once what nobody uses any more has been given back."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def parameters(model: VideoModel) -> int:
    """Weights of all denoisers."""
    return sum(p.numel() for network in model.denoisers().values() for p in network.parameters())


def tokens(size: BatteryConfig, model: VideoModel) -> int:
    """Of a clip, as the denoiser sees it."""
    _, frames, height, width = model.latent_shape(size.frames, size.height, size.width)
    return frames * height * width // 4


def latent(size: BatteryConfig, model: VideoModel) -> str:
    """What a clip becomes.

    Raises:
        ReelignError: the size does not fit the autoencoder.
    """
    shape = model.latent_shape(size.frames, size.height, size.width)
    return f"{size.frames} x {size.height} x {size.width} is a latent of {' x '.join(map(str, shape))}"


@contextmanager
def adapted(model: VideoModel, config: TraineeConfig) -> Iterator[Coverage]:
    """Within this context the model carries the adapters of a stage; afterwards it is as it was."""
    coverage = attach_lora(model, config.lora)
    try:
        yield coverage
    finally:
        cast(Any, model.pipeline).unload_lora_weights()


def trained_parameters(model: VideoModel, config: TraineeConfig) -> int:
    """Weights that a stage trains."""
    if config.method == "full":
        return parameters(model)
    with adapted(model, config):
        networks = model.denoisers().values()
        return sum(p.numel() for net in networks for name, p in net.named_parameters() if ".lora_" in name)


def sft_memory(recipe: Recipe, config: SftConfig, model: VideoModel) -> str:
    """Weights, training state and the activations of one batch."""
    ranks, width = planned_ranks(), width_of(recipe.dtype)
    weights = parameters(model) * width / ranks
    states = state_bytes(model, config, width) / ranks
    batch = tokens(recipe.battery, model) * config.batch_size // (ranks * config.accumulate)
    activations = batch * activation_bytes(model, width, config.gradient_checkpointing)
    need, have = weights + states + activations, free_memory()
    sentence = (
        f"about {need / GIB:.1f} GiB a rank: {weights / GIB:.1f} weights, {states / GIB:.1f} "
        f"training state, {activations / GIB:.1f} activations; {have / GIB:.1f} GiB free."
    )
    advice = "Lower sft.batch_size or raise sft.accumulate, turn on sft.gradient_checkpointing, use sft.method=lora or "
    return fitting(sentence, need, have, f"{advice}more ranks.")


def rlhf_memory(recipe: Recipe, config: RlhfConfig, model: VideoModel) -> str:
    """Weights, training state, what an update stores, and the larger of rollout and update."""
    ranks, width, algorithm = planned_ranks(), width_of(recipe.dtype), config.algorithm
    weights = parameters(model) * width / ranks + frozen_bytes(model) * (2 if algorithm.kl else 1)
    weights += parameters(model) * width if algorithm.kl else 0  # the reference is not sharded
    states = state_bytes(model, config, width) / ranks
    branches = config.group_size if algorithm.branches else 1
    rows = config.prompts_per_update * config.group_size // (ranks * branches)
    rows = min(rows, max(1, config.micro_batch // branches))
    clips = rows * branches
    rollout = rendering_bytes(recipe.battery, model, clips, width)
    guided = recipe.sampler.guidance_scale != 1 and algorithm.guidance == "both" and algorithm.objective == "grpo"
    learned = rows * tokens(recipe.battery, model) * (2 if guided else 1)
    update = learned * activation_bytes(model, width, config.gradient_checkpointing)
    stored = _stored_bytes(recipe, config, model) / ranks
    need, have = weights + states + stored + max(rollout, update), free_memory()
    sentence = (
        f"about {need / GIB:.1f} GiB a rank: {weights / GIB:.1f} weights with text encoder and autoencoder, "
        f"{states / GIB:.1f} training state, {stored / GIB:.1f} stored steps, and then {rollout / GIB:.1f} to sample "
        f"and decode {clips} clips or {update / GIB:.1f} to learn from {rows} rows, besides what the rewards load. "
        f"{have / GIB:.1f} GiB free."
    )
    turn = "" if config.gradient_checkpointing else "turn on rlhf.gradient_checkpointing, "
    fewer = "" if algorithm.steps == "one" else "rlhf.algorithm.steps=one, "
    advice = f"Lower rlhf.micro_batch, {turn}{fewer}use rlhf.method=lora or more ranks."
    return fitting(sentence, need, have, advice)


def fitting(sentence: str, need: float, have: float, advice: str) -> str:
    """The sentence, when there is as much as is needed.

    Raises:
        ReelignError: there is less; the advice is added to the sentence.
    """
    if need > have:
        raise ReelignError(f"{sentence} {advice}")
    return sentence


def disk(recipe: Recipe, model: VideoModel | None) -> str:
    """What the stages that train the generator write."""
    need, (place, free) = stages_bytes(recipe, model), free_disk(recipe)
    sentence = f"about {need / GIB:.1f} GiB needed in {place}, {free / GIB:.1f} GiB free."
    return fitting(sentence, need, free, "Free some space or set runs=/another/disk.")


def free_disk(recipe: Recipe) -> tuple[Path, int]:
    """Where the run will lie, as far as it exists, and the bytes that are free there."""
    place = recipe.runs
    while not place.exists():
        place = place.parent
    return place, shutil.disk_usage(place).free


def stages_bytes(recipe: Recipe, model: VideoModel | None) -> int:
    """Three checkpoints of each stage that trains the generator and its artifact; a stage whose adapters match nothing
    has none.
    """
    stages = [config for config in (recipe.sft, recipe.dpo, recipe.rlhf) if config is not None]
    need = GIB // 4
    if model is not None:
        need += max(1, len(stages)) * parameters(model) * 4
        need += sum(3 * trained_parameters(model, config) * 20 for config in stages if _matches(model, config))
    return need


def _matches(model: VideoModel, config: TraineeConfig) -> bool:
    try:
        return trained_parameters(model, config) > 0
    except ReelignError:
        return False


def width_of(dtype: str) -> int:
    """Bytes of a value."""
    return 2 if dtype == "bfloat16" else 4


def state_bytes(model: VideoModel, config: TraineeConfig, width: int) -> int:
    """Gradients, two moments and the average in float32, and masters under weights of lower precision."""
    return trained_parameters(model, config) * (4 + 4 + 4 + 4 + (4 if width == 2 else 0))


def frozen_bytes(model: VideoModel) -> int:
    """Text encoder and autoencoder, whole on every rank."""
    pipeline = cast(Any, model.pipeline)
    networks = (pipeline.text_encoder, pipeline.vae)
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())


def rendering_bytes(size: BatteryConfig, model: VideoModel, clips: int, width: int) -> float:
    """To sample clips together and decode them."""
    return max(clips * tokens(size, model) * block_bytes(model, width), _decode_bytes(size, model, clips))


def block_bytes(model: VideoModel, width: int) -> float:
    """Bytes a token holds while one block computes."""
    config = next(iter(model.denoisers().values())).config
    return float(config.num_attention_heads * config.attention_head_dim * width * LIVE_VALUES)


def activation_bytes(model: VideoModel, width: int, checkpointing: bool) -> float:
    """Bytes a token keeps for the backward pass: all that a block holds, or with checkpointing one value a block."""
    blocks, block = next(iter(model.denoisers().values())).config.num_layers, block_bytes(model, width)
    return block + block * blocks / LIVE_VALUES if checkpointing else block * blocks


def _decode_bytes(size: BatteryConfig, model: VideoModel, clips: int) -> int:
    """Of clips that are decoded in float32: each video twice, and the autoencoder's last block."""
    pipeline = cast(Any, model.pipeline)
    block = DECODER_FRAMES * DECODER_VALUES * getattr(pipeline.vae.config, "base_dim", DECODER_WIDTH)
    return 4 * size.height * size.width * (2 * 3 * size.frames * clips + block)


def _stored_bytes(recipe: Recipe, config: RlhfConfig, model: VideoModel) -> float:
    """Of an update on all ranks: the samples, and where each stochastic step began, its mean and where it went."""
    battery, algorithm = recipe.battery, config.algorithm
    channels, frames, height, width = model.latent_shape(battery.frames, battery.height, battery.width)
    steps = len(algorithm.candidates(training_sampler(recipe.sampler, algorithm).steps))
    if algorithm.steps != "all":
        steps = min(steps, 1 if algorithm.steps == "one" else algorithm.window)
    clips = config.prompts_per_update * config.group_size
    begun = 1 / config.group_size if algorithm.branches else 1.0
    return 4.0 * channels * frames * height * width * clips * (1 + steps * (2 + begun))
