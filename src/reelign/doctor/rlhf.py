"""Checks of reinforcement learning: what can be read off the recipe, and what a rehearsal of one update shows."""

from __future__ import annotations

from collections.abc import Iterator

from reelign.doctor.cost import CPU_RATE, Evaluations, count, not_rehearsed, operations, rounded
from reelign.doctor.feedback import expected_axes
from reelign.doctor.finding import Finding, any_failed, look
from reelign.doctor.learned import examine_learned
from reelign.doctor.memory import planned_ranks, rlhf_memory
from reelign.doctor.prompts import counted, unread
from reelign.doctor.rehearsal import GROUPS, rehearsal
from reelign.doctor.sft import lora_coverage
from reelign.doctor.update import rehearsed
from reelign.errors import ReelignError
from reelign.models.base import VideoModel
from reelign.recipe import Recipe
from reelign.stages.rlhf import RlhfConfig, training_sampler
from reelign.train.parallel import World


def examine_rlhf(recipe: Recipe, config: RlhfConfig, model: VideoModel, world: World) -> Iterator[Finding]:
    """The findings of a recipe's `rlhf:`; every rank looks."""
    read = [
        look("rlhf.prompts", lambda: _prompts(config, model)),
        look("rlhf.algorithm", lambda: _algorithm(recipe, config)),
        look("rlhf.budget", lambda: _budget(config)),
        *examine_learned(recipe, config.rewards, expected_axes(recipe)),
    ]
    if config.method == "lora":
        read.append(look("rlhf.lora", lambda: lora_coverage(model, config)))
    yield from read
    if any_failed(read, world):
        yield Finding("rehearsal", True, "left out until the lines above pass.")
        return
    memory = look("rlhf.memory", lambda: rlhf_memory(recipe, config, model))
    yield memory
    cost = count(recipe, config, planned_ranks())
    needed = _seconds_on_a_cpu(recipe, config, model) if world.device.type == "cpu" else 0.0
    if why := not_rehearsed(memory, needed, world):
        yield Finding("rehearsal", True, f"left out: {why}. Rewards, ratio and gradients are not looked at.")
        yield Finding("cost", True, _cost(recipe, cost))
        return
    try:
        with rehearsal(recipe, config, world) as trainer:
            yield Finding("rehearsal", True, _who(recipe, config, world))
            yield from rehearsed(
                trainer, config, lambda seconds: _cost(recipe, cost, seconds.hours(cost, config, planned_ranks()))
            )
    except ReelignError as error:
        yield Finding("rehearsal", False, str(error))


def _seconds_on_a_cpu(recipe: Recipe, config: RlhfConfig, model: VideoModel) -> float:
    """To sample the groups of a rehearsal, roughly."""
    groups = config.model_copy(update={"updates": 1, "prompts_per_update": GROUPS})
    return count(recipe, groups, 1).rollout * operations(recipe.battery, model) / CPU_RATE


def _prompts(config: RlhfConfig, model: VideoModel) -> str:
    """How many prompts there are, what was dropped of the lists, and what the text encoder will not read."""
    kept, said = counted(config.prompts)
    said += unread(kept, model)
    if len(kept) < config.prompts_per_update:
        said.append(
            f"fewer than rlhf.prompts_per_update={config.prompts_per_update}: an update asks for some of them twice"
        )
    return "; ".join(said) + "."


def _algorithm(recipe: Recipe, config: RlhfConfig) -> str:
    """Which steps are stochastic, and by which law."""
    algorithm, steps = config.algorithm, training_sampler(recipe.sampler, config.algorithm).steps
    may = algorithm.candidates(steps)
    if not may:
        return f"{algorithm.preset}: no step is stochastic; the loss is on noised clips."
    where = f"steps {may.start + 1} to {may.stop}" if len(may) > 1 else f"step {may.start + 1}"
    which = {
        "one": f"one step a {'group' if algorithm.iso_temporal else 'clip'}, drawn from {where} of {steps}",
        "window": f"a window of {min(algorithm.window, len(may))} steps that moves over {where} of {steps}",
        "all": f"{where} of {steps}",
    }[algorithm.steps]
    law = algorithm.law if algorithm.law == "linear" else f"{algorithm.law} at level {algorithm.noise_level:g}"
    return f"{algorithm.preset} makes stochastic: {which}; the noise law is {law}."


def _budget(config: RlhfConfig) -> str:
    """How an update is divided over ranks and micro-batches."""
    ranks, group = planned_ranks(), config.group_size
    if config.prompts_per_update % ranks:
        raise ReelignError(
            f"rlhf.prompts_per_update={config.prompts_per_update} does not divide over {ranks} ranks: use "
            f"{max(1, config.prompts_per_update // ranks) * ranks}."
        )
    share = config.prompts_per_update // ranks
    whole = config.algorithm.branches
    held = max(group, config.micro_batch // group * group) if whole else config.micro_batch
    passes = -(-share * group // held)
    sentence = f"an update is {share * group * ranks} clips: {ranks} ranks x {share} groups of {group}"
    sentence += f", in {passes} micro-batches of at most {min(held, share * group)} clips a rank"
    if whole and config.micro_batch < group:
        sentence += f"; a group that branches is held whole, beyond rlhf.micro_batch={config.micro_batch}"
    return f"{sentence}."


def _who(recipe: Recipe, config: RlhfConfig, world: World) -> str:
    groups = (
        f"{GROUPS * world.size} groups of {config.group_size} clips, sampled, judged and learned from by {recipe.model}"
    )
    parent = "model after preference optimisation" if recipe.dpo is not None else "fine-tuned model"
    if recipe.sft is not None or recipe.dpo is not None:
        return f"{groups} itself: its parent in the run, the {parent}, does not exist yet."
    return f"{groups}."


def _cost(recipe: Recipe, cost: Evaluations, hours: float | None = None) -> str:
    """What the whole run will have cost."""
    left_out = ", supervised fine-tuning left out" if recipe.sft is not None else ""
    time = "" if hours is None else f" and {hours:.2g} hours here"
    all_of_them, rollout, replay, judged = map(rounded, (cost.total, cost.rollout, cost.replay, cost.judged))
    return (
        f"about {all_of_them} network evaluations{time}{left_out}: {rollout} to sample what is learned from, "
        f"{replay} with a backward pass, {judged} for validation and batteries."
    )
