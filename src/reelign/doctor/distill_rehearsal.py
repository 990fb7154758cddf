"""A rehearsal of distillation: one update of each part, by the stage's own trainers in a folder that is thrown away.

Every part begins with the weights of the recipe's model: what the part before it would leave does not exist yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from reelign.doctor.distill_cost import Spent
from reelign.doctor.distill_memory import rows_of
from reelign.doctor.finding import Finding, look, on_all_ranks
from reelign.doctor.gradient import reached
from reelign.doctor.rehearsal import context_in, equal_ranks, now, shared_folder, within_memory
from reelign.errors import ReelignError
from reelign.models.base import Conditions, VideoModel
from reelign.models.causal import View
from reelign.models.kv_cache import KVCache, TextCache
from reelign.recipe import Recipe
from reelign.sampling.noise import generator, initial_noise
from reelign.sampling.sample import SampleConfig, remembered
from reelign.stages.causal_init import Initialisation
from reelign.stages.context import StageContext
from reelign.stages.distill import Matching, models_of, part_context, trainer_of
from reelign.stages.distill_recipe import DistillConfig, InitialiseConfig, MatchConfig
from reelign.stages.trainee import trained
from reelign.stages.unguided import Unguided
from reelign.train.parallel import World

APART = {"float32": 1e-4, "bfloat16": 5e-2}
"""How far, relative to its size, a velocity may differ between two orders of the same sums."""
ALIKE = {"float32": 1e-5, "bfloat16": 2e-2}
"""How far teacher and critic may lie apart while they are the same network."""
ADVICE = "Lower the micro_batch of this part, turn on its gradient_checkpointing, or use its method=lora or more ranks."
Trainer = Unguided | Matching | Initialisation


def rehearsed(
    recipe: Recipe, config: DistillConfig, world: World, cost: Callable[[dict[str, float]], str]
) -> Iterator[Finding]:
    """The findings of a rehearsal.

    Args:
        recipe, config: what is rehearsed.
        world: all ranks rehearse.
        cost: says what the run costs, given for each part the measured seconds of one forward pass of one clip.
    """
    small, seconds = shortened(config, world), {}
    with shared_folder(recipe, world) as folder, within_memory(ADVICE):
        context = context_in(folder / "distill", recipe, world)
        base, teacher = on_all_ranks(world, lambda: models_of(context, small))
        yield Finding("distill.rehearsal", True, _who(recipe, small))
        for name in small.parts:
            trainer = on_all_ranks(world, lambda part=name: rehearsing(part, base, teacher, small, context))
            if isinstance(trainer, Matching) and config.teacher is None:
                yield look(f"distill.{name}.start", lambda own=trainer: at_rest(own))
            spent = 0.0

            def update(own: Trainer = trainer, part: str = name) -> str:
                nonlocal spent
                sentence, spent = _updated(own, part)
                return sentence

            yield look(f"distill.{name}.update", update)
            yield look(f"distill.{name}.gradient", lambda own=trainer, part=name: _gradient(own, part))
            yield look(f"distill.{name}.ranks", lambda own=trainer: _ranks(own))
            if name == "self_forcing":
                yield look("distill.cache", lambda own=trainer: _cache(own))
            seconds[name] = spent
            del trainer, update  # before the next one is made
    yield Finding("distill.cost", True, cost(seconds))


def shortened(config: DistillConfig, world: World) -> DistillConfig:
    """The recipe with one micro-batch a rank, one update of the critic, and no more trajectories than that takes."""
    changed = {}
    for name, part in config.parts.items():
        rows = rows_of(part)
        changes = {"batch_size": rows * world.size, "micro_batch": rows, "track": []}
        if isinstance(part, MatchConfig):
            changes["critic_updates"] = 1
        if isinstance(part, InitialiseConfig):
            changes["trajectories"] = rows * world.size
        changed[name] = part.model_copy(update=changes)
    return config.model_copy(update=changed)


def rehearsing(
    part: str, base: VideoModel, teacher: VideoModel, config: DistillConfig, context: StageContext
) -> Trainer:
    """The stage's trainer of a part, whose student begins as the parent."""
    return trainer_of(part, base, teacher, config, part_context(context, part, base.name))


def at_rest(trainer: Matching) -> str:
    """Where there is nothing to follow: critic and teacher are one network, and the teacher is not guided.

    Raises:
        ReelignError: the student would be moved all the same.
    """
    guided, trainer.guidance = trainer.guidance, SampleConfig(guidance_scale=1.0)
    distance, _ = trainer.student_step()
    trainer.guidance = guided
    for parameter in trainer.trainee.parameters.values():
        parameter.grad = None
    if not distance <= ALIKE[trainer.context.dtype]:
        raise ReelignError(
            f"critic and unguided teacher are the same network and yet {distance:.1e} of the student's distance apart: "
            "the student would follow that error. Look for what differs between them (dropout, adapters, kernels that "
            "are not deterministic) before anything is trained."
        )
    return f"the student is not moved while the critic is the unguided teacher: they are {distance:.1e} apart."


@torch.no_grad()
def cache_error(model: VideoModel, clean: Tensor, noise: Tensor, level: float, conditions: Conditions) -> float:
    """How far the velocity of the last block, behind a cache, is from that of the full block-causal forward pass:
    root mean square, relative to the velocity's own.

    Args:
        model: causal.
        clean: the finished blocks before it, (B, C, F - block, h, w).
        noise: the last block, (B, C, block, h, w).
        level: of the last block.
        conditions: of the prompts.
    """
    assert model.causal is not None
    block, cache, text = model.causal.config.block, KVCache(), TextCache()
    levels = clean.new_zeros(len(clean), clean.shape[2] + block)
    levels[:, -block:] = level
    whole = model.velocity(torch.cat([clean, noise], 2), levels, conditions)[:, :, -block:]
    for first in range(0, clean.shape[2], block):
        cache = remembered(model, conditions, clean[:, :, first : first + block], cache, text)
    with model.causal.seeing(View(cache, text)):
        found = model.velocity(noise, levels[:, -1], conditions)
    return float((found - whole).square().mean().sqrt() / whole.square().mean().sqrt())


def _updated(trainer: Trainer, part: str) -> tuple[str, float]:
    """One update; its numbers, and the seconds of one forward pass of one clip."""
    began = now()
    numbers = trainer.one_update()
    spent = now() - began
    names = ("critic_loss", "distance", "grad_norm") if isinstance(trainer, Matching) else ("loss", "grad_norm")
    if broken := [name for name in names if not math.isfinite(numbers[name])]:
        raise ReelignError(
            f"after one update {' and '.join(f'{name} is {numbers[name]}' for name in broken)}. Lower "
            f"distill.{part}.optim.lr, or try dtype=float32 to see whether precision is the reason."
        )
    config, turns = trainer.config, 2 if isinstance(trainer, Matching) else 1
    update = Spent(round(numbers["nfe"]), turns * config.batch_size, 0)
    unit = spent * trainer.context.world.size / update.work(config.gradient_checkpointing)
    said = ", ".join(f"{name.replace('_', ' ')} {numbers[name]:.3g}" for name in names)
    return f"one update of {config.batch_size} clips in {spent:.2g} seconds: {said}.", unit


def _gradient(trainer: Trainer, part: str) -> str:
    """Which trained tensors of student and critic the update did not reach."""
    optimizers = {"student": trainer.trainee.optimizer}
    if isinstance(trainer, Matching):
        optimizers["critic"] = trainer.critic_optimizer
    return reached(optimizers, trainer.context.world, trainer.one_update, f"distill.{part}")


def _ranks(trainer: Trainer) -> str:
    weights = {f"student: {name}": value for name, value in trainer.trainee.parameters.items()}
    if isinstance(trainer, Matching):
        weights |= {f"critic: {name}": value for name, value in trained(trainer.critic).items()}
    return equal_ranks(trainer.context.world, weights)


def _cache(trainer: Trainer) -> str:
    """A rollout through the cache against the full forward pass, on the first prompt of the run."""
    student, size = trainer.student, trainer.context.battery
    assert student.causal is not None
    shape = student.latent_shape(size.frames, size.height, size.width)
    block, level = student.causal.config.block, float(trainer.sampler.grid[trainer.sampler.steps // 2])
    noise = initial_noise([(trainer.context.seed, "doctor", 0)], shape).to(student.device)
    clean = torch.randn(1, *shape, generator=generator("doctor", trainer.context.seed)).to(student.device)
    conditions = student.encode_text([trainer.prompts[0].text])
    found = cache_error(student, clean[:, :, :-block], noise[:, :, -block:], level, conditions)
    if not found <= APART[trainer.context.dtype]:
        raise ReelignError(
            f"a block behind the cache is {found:.1e} away from the full block-causal pass, more than "
            f"{APART[trainer.context.dtype]:g}: the student would learn from another past than it streams from. Try "
            "dtype=float32; if that does not help, this network's attention is not what reelign takes it for."
        )
    return f"a block behind the cache is the block of the full block-causal pass, up to {found:.1e}."


def _who(recipe: Recipe, config: DistillConfig) -> str:
    clips = ", ".join(f"{name} on {part.batch_size} clips" for name, part in config.parts.items())
    sentence = f"one update of {clips}, each from the weights of {recipe.model}"
    if recipe.sft is not None or recipe.rlhf is not None:
        return f"{sentence} itself: its parent in the run, the trained model, does not exist yet."
    return f"{sentence}."
