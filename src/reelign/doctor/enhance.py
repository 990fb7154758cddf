"""Checks of prompt enhancement: the language model, what it is taught, and what a rehearsal of its rollout shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from reelign.doctor.cost import clips_at_most, not_rehearsed, rounded
from reelign.doctor.finding import Finding, any_failed, look, obtain
from reelign.doctor.language import enhance_disk, enhance_memory, trained_weights
from reelign.doctor.learned import unnamed
from reelign.doctor.memory import latent, planned_ranks
from reelign.doctor.prompts import counted, unread
from reelign.doctor.screening import Seconds, screened, seconds_on_a_cpu
from reelign.doctor.taught import Language, Taught, pairs_line, tokens_line
from reelign.enhancer.language_model import load_language_model
from reelign.errors import ReelignError
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from reelign.recipe import Recipe
from reelign.stages.enhance import trl_library
from reelign.stages.enhance_recipe import EnhanceConfig, RewardTraining, divided
from reelign.train.parallel import World

LEAST_MOVED = 0.5
"""Share of the weights that a step must move."""


def examine_enhance(recipe: Recipe, config: EnhanceConfig, model: VideoModel, world: World) -> Iterator[Finding]:
    """The findings of a recipe's `enhance:`; every rank looks."""
    grpo, renderer, lengths = config.grpo, model, None
    language, loaded = obtain("enhance.language_model", lambda: _language_model(config))
    taught, pairs = obtain("enhance.pairs", lambda: pairs_line(config, language))
    read = [loaded, look("enhance.trl", _trl), pairs, look("enhance.budget", lambda: _budget(config))]
    if language is not None and config.method == "full" and config.dtype == "bfloat16":
        read.append(look("enhance.precision", lambda: _precision(config, language[0])))
    if grpo is not None and grpo.generator is not None:
        found, line = obtain("enhance.generator", lambda: _generator(recipe, str(grpo.generator)))
        renderer = found or model
        read.append(line)
    if language is not None and taught is not None:
        lengths, line = obtain("enhance.tokens", lambda: tokens_line(config, language, taught, renderer))
        read.append(line)
    if grpo is not None:
        read.append(look("enhance.prompts", lambda: _prompts(grpo, taught, renderer)))
        read.append(look("enhance.clips", lambda: _clips(recipe, grpo, renderer)))
        read += unnamed("enhance.grpo.rewards", grpo.rewards)
    yield from read
    if any_failed(read, world) or language is None or taught is None or lengths is None:
        yield Finding("enhance.rehearsal", True, "left out until the lines above pass.")
        return
    memory = look(
        "enhance.memory",
        lambda: enhance_memory(recipe, config, language[0], renderer, lengths.question, lengths.answer),
    )
    yield memory
    yield look("enhance.disk", lambda: enhance_disk(recipe, config, language[0], renderer))
    if grpo is None:
        return
    on_cpu = world.device.type == "cpu"
    needed = seconds_on_a_cpu(recipe, config, grpo, language[0], renderer) if on_cpu else 0.0
    if why := not_rehearsed(memory, needed, world):
        yield Finding("enhance.rehearsal", True, f"left out: {why}. Rewrites and rewards are not looked at.")
        yield Finding("enhance.cost", True, _cost(recipe, grpo))
        return
    try:
        yield from screened(recipe, grpo, language, taught.manner, world, lambda seconds: _cost(recipe, grpo, seconds))
    except ReelignError as error:
        yield Finding("enhance.rehearsal", False, str(error))


def _language_model(config: EnhanceConfig) -> tuple[Language, str]:
    model, tokenizer = load_language_model(config.language_model, config.dtype)
    learned = trained_weights(model, config)
    what = "all of them learn" if config.method == "full" else f"adapters of {learned / 1e6:.1f} M learn"
    sentence = (
        f"{config.language_model} loads: {model.num_parameters() / 1e6:.1f} M weights and a chat template; {what}."
    )
    return (model, tokenizer), sentence


def _trl() -> str:
    return f"trl {trl_library().__version__}."


def _budget(config: EnhanceConfig) -> str:
    """How the steps are divided over ranks and passes, by the stage's own rule."""
    ranks, step, grpo = planned_ranks(), config.supervised, config.grpo
    rows, passes = divided(step.batch_size, step.micro_batch, "enhance.supervised.batch_size", ranks)
    sentence = f"a step learns from {step.batch_size} pairs: {ranks} ranks x {passes} passes x {rows}"
    if grpo is None:
        return f"{sentence}."
    rewrites = grpo.prompts_per_step * grpo.group_size
    rows, passes = divided(rewrites, grpo.micro_batch, "enhance.grpo: rewrites of a step", ranks)
    return (
        f"{sentence}; a step of GRPO from {rewrites} rewrites, {grpo.raw} of each {grpo.group_size} the user's own "
        f"words: {ranks} ranks x {passes} passes x {rows}."
    )


@torch.no_grad()
def _precision(config: EnhanceConfig, model: Any) -> str:
    """Which weights a first step moves: bfloat16 has 8 digits, and nobody keeps what they do not hold."""
    rates = {"enhance.supervised.lr": config.supervised.lr}
    if config.grpo is not None:
        rates["enhance.grpo.lr"] = config.grpo.lr
    key = min(rates, key=lambda name: rates[name])
    moved = count = 0
    for weights in model.parameters():
        _, exponent = torch.frexp(weights.float())
        moved += int((torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent - 9) < rates[key]).sum())
        count += weights.numel()
    sentence = f"in bfloat16 a step of {key}={rates[key]:g} moves {moved / count:.1%} of the weights"
    if moved < LEAST_MOVED * count:
        raise ReelignError(
            f"{sentence}; on the others it is rounded away. Use enhance.method=lora, whose adapters are float32, or "
            "enhance.dtype=float32."
        )
    return f"{sentence}."


def _generator(recipe: Recipe, name: str) -> tuple[VideoModel, str]:
    return load_model(name, dtype=recipe.dtype, device="cpu"), f"{name} loads and renders the rewrites."


def _prompts(grpo: RewardTraining, taught: Taught | None, renderer: VideoModel) -> str:
    """How many prompts there are, and about which of them nothing is learned."""
    kept, said = counted(grpo.prompts)
    said += unread(kept, renderer)
    guard = taught.manner.build_guard(None) if taught is not None else None
    if guard is not None and (alone := sum(guard.asks(prompt) is not None for prompt in kept)):
        said.append(
            f"{alone} are longer than the captions: they are left as they are, and nothing is learned from them"
        )
    if len(kept) < grpo.prompts_per_step:
        said.append(f"fewer than enhance.grpo.prompts_per_step={grpo.prompts_per_step}: a step has some of them twice")
    return "; ".join(said) + "."


def _clips(recipe: Recipe, grpo: RewardTraining, renderer: VideoModel) -> str:
    """What a step renders."""
    sampler = grpo.sampler or recipe.sampler
    rewrites = grpo.prompts_per_step * grpo.group_size
    return (
        f"a step renders at most {rewrites} rewrites x {grpo.clips} noises, {sampler.steps} {sampler.solver} steps "
        f"each; {latent(grpo.size(recipe.battery), renderer)}."
    )


def _cost(recipe: Recipe, grpo: RewardTraining, seconds: Seconds | None = None) -> str:
    """What rollouts and batteries will have cost, if no rewrite comes twice."""
    clips = clips_at_most(grpo)
    rendering = clips * (grpo.sampler or recipe.sampler).evaluations
    batteries = 3 if recipe.battery.judge == "miniature" else 2
    if recipe.rlhf is None:  # else its own line counts them
        batteries += 1 + (recipe.sft is not None)
    judged = batteries * recipe.battery.count * recipe.sampler.evaluations
    time = "" if seconds is None else f", in {seconds.hours(grpo, planned_ranks()):.2g} hours here"
    return (
        f"GRPO renders at most {clips:,} clips with {rounded(rendering)} network evaluations{time}: what was rendered "
        f"once is never rendered again. Batteries take {rounded(judged)} more; the language model's own steps are left "
        "out."
    )
