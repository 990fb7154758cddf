"""What distillation needs of memory and disk: teacher, student and critic at once, and the past of a causal student.

A causal student that learns block after block keeps, for the backward passes, the keys and values of all blocks but the
last. Those of a block are kept once, however many blocks saw it, also when it has left the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reelign.doctor.memory import (
    GIB,
    activation_bytes,
    fitting,
    free_disk,
    free_memory,
    frozen_bytes,
    parameters,
    planned_ranks,
    rendering_bytes,
    stages_bytes,
    state_bytes,
    tokens,
    trained_parameters,
    width_of,
)
from reelign.models.base import VideoModel
from reelign.recipe import Recipe
from reelign.stages.distill_recipe import CAUSAL, DistillConfig, InitialiseConfig, MatchConfig, StudentConfig
from reelign.stages.student import chunks_of
from reelign.train.parallel import World


@dataclass(frozen=True)
class Need:
    """Bytes of a rank while a part trains.

    Attributes:
        weights: parent, teacher, student and critic, with text encoder and autoencoder.
        states: gradients, moments, masters and averages of student and critic.
        activations: of one micro-batch.
        past: keys and values that are kept for the backward pass.
        rendering: to sample and decode the clips of a validation.
        rows: clips of a micro-batch.
    """

    weights: float
    states: float
    activations: float
    past: float
    rendering: float
    rows: int

    @property
    def total(self) -> float:
        """At the worst moment."""
        return self.weights + self.states + max(self.activations + self.past, self.rendering)


def distill_memory(recipe: Recipe, config: DistillConfig, model: VideoModel, teacher: float) -> str:
    """The part that needs most, against what is free; `teacher` is what another model takes, in bytes."""
    needs = {name: need_of(name, part, recipe, config, model, teacher) for name, part in config.parts.items()}
    name = max(needs, key=lambda part: needs[part].total)
    need, have, part = needs[name], free_memory(), config.parts[name]
    kept = f", {need.past / GIB:.1f} the past that its blocks saw" if need.past else ""
    critic = ", critic" if isinstance(part, MatchConfig) else ""
    sentence = (
        f"about {need.total / GIB:.1f} GiB a rank in {name}: {need.weights / GIB:.1f} weights (parent, teacher, "
        f"student{critic} and what they share), {need.states / GIB:.1f} training "
        f"state, and then {need.activations / GIB:.1f} activations of {need.rows} clips{kept}, or "
        f"{need.rendering / GIB:.1f} to validate; {have / GIB:.1f} GiB free."
    )
    turn = "" if part.gradient_checkpointing else f"turn on distill.{name}.gradient_checkpointing, "
    lora = "" if part.method == "lora" else f"use distill.{name}.method=lora or "
    return fitting(sentence, need.total, have, f"Lower distill.{name}.micro_batch, {turn}{lora}more ranks.")


def need_of(
    name: str,
    part: StudentConfig,
    recipe: Recipe,
    config: DistillConfig,
    model: VideoModel,
    teacher: float,
) -> Need:
    """Of one part; `teacher` as above."""
    ranks, width, size = planned_ranks(), width_of(recipe.dtype), recipe.battery
    own, matching = parameters(model) * width, isinstance(part, MatchConfig)
    weights = own + frozen_bytes(model) + own / ranks * (2 if matching else 1)  # the parent itself is not sharded
    weights += teacher
    if isinstance(part, InitialiseConfig) and part.teacher == "few_step":
        weights += own  # the few-step student that makes the trajectories is not sharded either
    learned = state_bytes(model, part, width)
    states = learned / ranks
    if matching:
        states += (learned - 4 * trained_parameters(model, part)) / ranks  # a critic has no average
    rows = rows_of(part)
    seen = rows * tokens(size, model)
    activations = seen * activation_bytes(model, width, part.gradient_checkpointing)
    past = 0.0
    frames = model.latent_shape(size.frames, size.height, size.width)[1]
    if name in CAUSAL and config.causal is not None:
        past = rows * past_bytes(recipe, model, frames - config.causal.block)
    return Need(weights, states, activations, past, rendering_bytes(size, model, size.batch_size, width), rows)


def rows_of(part: StudentConfig) -> int:
    """Clips of a micro-batch on a rank, by the stage's own rule."""
    world = World(0, planned_ranks(), torch.device("cpu"), None)
    return part.batch_size // world.size // chunks_of(part, world)


def past_bytes(recipe: Recipe, model: VideoModel, frames: int) -> float:
    """Keys and values of so many latent frames of one clip, in all layers."""
    size, config = recipe.battery, next(iter(model.denoisers().values())).config
    whole = model.latent_shape(size.frames, size.height, size.width)[1]
    width = config.num_attention_heads * config.attention_head_dim * width_of(recipe.dtype)
    return 2.0 * config.num_layers * width * tokens(size, model) / whole * frames


def trajectory_bytes(recipe: Recipe, config: DistillConfig, model: VideoModel) -> int:
    """Of all trajectories: states of half precision."""
    if config.initialise is None:
        return 0
    size = recipe.battery
    channels, frames, height, width = model.latent_shape(size.frames, size.height, size.width)
    return config.initialise.trajectories * (config.steps + 1) * channels * frames * height * width * 2


def distill_disk(recipe: Recipe, config: DistillConfig, model: VideoModel) -> str:
    """Three checkpoints and an artifact of each part, and the trajectories, beside what the stages before it write."""
    before, (place, free) = stages_bytes(recipe, model), free_disk(recipe)
    parts, ways = config.parts, trajectory_bytes(recipe, config, model)
    kept = 0
    for part in parts.values():
        each = 28 if isinstance(part, MatchConfig) else 16  # masters, moments, average; of the critic no average
        kept += 3 * each * trained_parameters(model, part)
        kept += parameters(model) * width_of(recipe.dtype) + frozen_bytes(model) if part.method == "full" else 0
    need = before + kept + ways
    sentence = (
        f"about {need / GIB:.1f} GiB needed in {place}: {kept / GIB:.1f} checkpoints and models of {len(parts)} parts, "
        f"{ways / GIB:.1f} trajectories, {before / GIB:.1f} of other stages; {free / GIB:.1f} GiB free."
    )
    advice = "Free some space, lower distill.initialise.trajectories or set runs=/another/disk."
    return fitting(sentence, need, free, advice)
