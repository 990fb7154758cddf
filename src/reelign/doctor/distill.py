"""Checks of distillation: what can be read off the recipe, and what a rehearsal of one update of each part shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from reelign.doctor.cost import CPU_RATE, not_rehearsed, operations, rounded
from reelign.doctor.distill_cost import Spent, an_update, count, way
from reelign.doctor.distill_memory import distill_disk, distill_memory, past_bytes, rows_of, trajectory_bytes
from reelign.doctor.distill_rehearsal import rehearsed, shortened
from reelign.doctor.finding import Finding, any_failed, look, obtain
from reelign.doctor.memory import GIB, frozen_bytes, parameters, planned_ranks, width_of
from reelign.doctor.prompts import counted, unread
from reelign.doctor.rehearsal import context_in
from reelign.doctor.sft import lora_coverage
from reelign.errors import ReelignError
from reelign.models.base import VideoModel
from reelign.models.kv_cache import CausalConfig
from reelign.recipe import Recipe
from reelign.stages.distill import load_teacher
from reelign.stages.distill_recipe import DistillConfig, InitialiseConfig, MatchConfig
from reelign.train.parallel import World

LONG_FORCING = 1000
"""Updates of self-forcing after which motion is known to fade."""


def examine_distill(recipe: Recipe, config: DistillConfig, model: VideoModel, world: World) -> Iterator[Finding]:
    """The findings of a recipe's `distill:`; every rank looks."""
    teacher_bytes, teacher = obtain("distill.teacher", lambda: _teacher(recipe, config, model))
    read = [look("distill.prompts", lambda: _prompts(config, model)), teacher]
    read.append(look("distill.steps", lambda: _steps(config)))
    if config.causal is not None:
        read.append(look("distill.causal", lambda own=config.causal: _causal(recipe, own, model)))
    read.append(look("distill.budget", lambda: _budget(config, model)))
    if config.initialise is not None:
        read.append(look("distill.trajectories", lambda: _trajectories(recipe, config, model)))
    for name, part in config.parts.items():
        if part.method == "lora":
            read.append(look(f"distill.{name}.lora", lambda own=part: lora_coverage(model, own)))
    yield from read
    if any_failed(read, world) or teacher_bytes is None:
        yield Finding("distill.rehearsal", True, "left out until the lines above pass.")
        return
    memory = look("distill.memory", lambda: distill_memory(recipe, config, model, teacher_bytes))
    yield memory
    yield look("distill.disk", lambda: distill_disk(recipe, config, model))
    cost = count(recipe, config, model)
    needed = _seconds_on_a_cpu(recipe, config, model) if world.device.type == "cpu" else 0.0
    if why := not_rehearsed(memory, needed, world):
        yield Finding("distill.rehearsal", True, f"left out: {why}. Losses, gradients and cache are not looked at.")
        yield Finding("distill.cost", True, _cost(recipe, config, cost))
        return
    try:
        yield from rehearsed(recipe, config, world, lambda seconds: _cost(recipe, config, cost, seconds))
    except ReelignError as error:
        yield Finding("distill.rehearsal", False, str(error))


def _seconds_on_a_cpu(recipe: Recipe, config: DistillConfig, model: VideoModel) -> float:
    """To rehearse, roughly: a matching part takes an update, one look at rest, and with adapters a second update."""
    small, work = shortened(config, World(0, 1, torch.device("cpu"), None)), 0.0
    frames = model.latent_shape(recipe.battery.frames, recipe.battery.height, recipe.battery.width)[1]
    for name, part in small.parts.items():
        updates = 2 if part.method == "lora" else 1
        if isinstance(part, MatchConfig):
            updates += 1  # the look at rest
        if isinstance(part, InitialiseConfig):
            work += part.trajectories * way(recipe, small)
        work += updates * an_update(name, part, recipe, small, frames).work(part.gradient_checkpointing)
    return work * operations(recipe.battery, model) / CPU_RATE


def _prompts(config: DistillConfig, model: VideoModel) -> str:
    """How many prompts there are, what was dropped of the lists, and what the text encoder will not read."""
    kept, said = counted(config.prompts)
    said += unread(kept, model)
    for name, part in config.parts.items():
        if len(kept) < part.batch_size:
            said.append(f"fewer than distill.{name}.batch_size={part.batch_size}: an update has some of them twice")
    return "; ".join(said) + "."


def _teacher(recipe: Recipe, config: DistillConfig, model: VideoModel) -> tuple[float, str]:
    """What another teacher takes of a rank's memory, and whether parent and teacher are what distillation needs."""
    if model.causal is not None or model.own_sampler is not None:
        raise ReelignError(f"{recipe.model} is distilled already: name the model that it was made from.")
    scale, who, memory = config.guidance(recipe.sampler).guidance_scale, "the run's own model", 0.0
    if config.teacher is not None:
        alone = World(0, 1, torch.device("cpu"), None)
        teacher = load_teacher(config.teacher, model, context_in(Path(), recipe, alone))
        who = f"{config.teacher}, {parameters(teacher) / 1e6:.1f} M weights"
        memory = parameters(teacher) * width_of(recipe.dtype) / planned_ranks() + frozen_bytes(teacher)
    if config.unguided is not None:
        taken = f"the student takes over guidance of {config.absorbed(recipe.sampler).guidance_scale:g}"
        matching = any(isinstance(part, MatchConfig) for part in config.parts.values())
        scores = "without guidance" if scale == 1 else f"guided at {scale:g}"
        return memory, f"{who}; {taken}{f', and is then matched with scores {scores}' if matching else ''}."
    if scale == 1:
        return memory, f"{who}, without guidance: the student will be what it is without guidance, in fewer steps."
    return memory, f"{who}, guided at {scale:g}; the student needs no guidance."


def _steps(config: DistillConfig) -> str:
    """The student's grid."""
    levels = ", ".join(f"{float(level):.3f}" for level in config.sampler.grid[:-1])
    return f"the student takes {config.steps} steps at the levels {levels}."


def _causal(recipe: Recipe, causal: CausalConfig, model: VideoModel) -> str:
    """Blocks, window and sinks against the clip, and what a stream holds."""
    if len(model.denoisers()) > 1:
        raise ReelignError(
            f"{recipe.model} has two experts, and a causal student has one network: leave out distill.causal, or start "
            "from a model with one."
        )
    size = recipe.battery
    frames = model.latent_shape(size.frames, size.height, size.width)[1]
    try:
        blocks = causal.blocks(frames)
    except ReelignError as error:
        raise ReelignError(f"distill.causal.block: {error}") from None
    if causal.window == causal.block and not causal.sinks and len(blocks) > 1:
        raise ReelignError(
            f"distill.causal.window={causal.window} holds the block itself and nothing of the past: set it to "
            f"{2 * causal.block} or more, or leave it empty."
        )
    held = max(len(causal.seen(end)) for _, end in blocks) - causal.block
    cache = past_bytes(recipe, model, held) / GIB
    plural = "s" if causal.block > 1 else ""
    said = [
        f"{len(blocks)} blocks of {causal.block} latent frame{plural}; the last one sees {held} frames of the past, "
        f"whose keys and values take {cache:.2g} GiB a stream"
    ]
    if causal.window is None:
        said.append("without a window a stream has an end, and needs more memory the longer it is")
    elif causal.window >= frames:
        said.append(
            f"no clip of training is longer than distill.causal.window={causal.window}, so what a longer stream "
            "forgets is never trained"
        )
    if causal.sinks:
        said.append(f"{causal.sinks} sinks stay in sight; they can stall motion, so watch its alarms")
    return "; ".join(said) + "."


def _budget(config: DistillConfig, model: VideoModel) -> str:
    """How the updates are divided over ranks and micro-batches, by the stage's own rule."""
    ranks, said = planned_ranks(), []
    if ranks > 1 and len(model.denoisers()) > 1:
        raise ReelignError(f"a model with two experts is distilled on one rank, not on {ranks}.")
    for name, part in config.parts.items():
        if part.batch_size % ranks:
            raise ReelignError(
                f"distill.{name}.batch_size={part.batch_size} does not divide over {ranks} ranks: use "
                f"{max(1, part.batch_size // ranks) * ranks}."
            )
        rows = rows_of(part)
        passes = part.batch_size // ranks // rows
        sentence = (
            f"{name}: {part.updates} updates of {part.batch_size} clips, {ranks} ranks x {passes} passes x {rows}"
        )
        if isinstance(part, MatchConfig):
            sentence += f", {part.critic_updates} of the critic for each"
        said.append(sentence)
    forcing = config.self_forcing
    if forcing is not None and forcing.updates > LONG_FORCING:
        said.append(f"beyond {LONG_FORCING} updates self-forcing is known to lose motion, which its alarms watch")
    return "; ".join(said) + "."


def _trajectories(recipe: Recipe, config: DistillConfig, model: VideoModel) -> str:
    """What the first causal weights are fitted to."""
    part = config.initialise
    assert part is not None
    whose = {
        "few_step": "the few-step student's",
        "ode": "of the teacher's ODE, whose end follows from frames that the student does not see: expect blur",
        "consistency": "of the teacher's ODE, for consistency along it",
    }[part.teacher]
    often = part.updates * part.batch_size / part.trajectories
    size = trajectory_bytes(recipe, config, model) / GIB
    return f"{part.trajectories} trajectories, {size:.2g} GiB, {whose}; each is seen {often:.3g} times."


def _cost(
    recipe: Recipe, config: DistillConfig, cost: dict[str, Spent], seconds: dict[str, float] | None = None
) -> str:
    """What the whole stage will have cost."""
    forward, backward, judged = (
        sum(getattr(spent, key) for spent in cost.values()) for key in ("forward", "backward", "judged")
    )
    time = ""
    if seconds is not None and all(seconds.values()):
        parts = config.parts
        own = {
            name: seconds[name] * (spent.work(parts[name].gradient_checkpointing) / planned_ranks() + spent.judged)
            for name, spent in cost.items()
        }
        each = ", ".join(f"{name} {spent / 3600:.2g}" for name, spent in own.items())
        time = f" and {sum(own.values()) / 3600:.2g} hours here ({each})"
    before = [name for name in ("sft", "rlhf") if getattr(recipe, name) is not None]
    left_out = f"; {' and '.join(before)} left out" if before else ""
    return (
        f"about {rounded(forward)} network evaluations to train, {rounded(backward)} of them with a backward pass, and "
        f"{rounded(judged)} for validations{time}; batteries and the report's comparisons come on top{left_out}."
    )
