"""A rehearsal of prompt enhancement: the first prompts are rewritten, rendered and judged for real.

It is the stage's own rollout by the language model as it comes, in a folder that is thrown away. What is learned from a
rollout is not rehearsed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from reelign.doctor.cost import CPU_RATE, operations
from reelign.doctor.finding import Finding, on_all_ranks
from reelign.doctor.rehearsal import context_in, now, shared_folder, within_memory
from reelign.enhancer.enhancer import Manner
from reelign.enhancer.rewrite import Rewrite
from reelign.errors import ReelignError
from reelign.models.base import VideoModel
from reelign.recipe import Recipe
from reelign.sampling.noise import generator
from reelign.stages.enhance_recipe import EnhanceConfig, RewardTraining
from reelign.stages.rewriting import Rewriting, Rewritten
from reelign.stages.studio import Shot
from reelign.train.parallel import World

PROMPTS, REWRITES = 2, 2
"""Prompts a rank, and the language model's own rewrites of each; the user's words are rendered beside them."""
ADVICE = (
    "Lower battery.batch_size, enhance.tokens or the size of the clips (enhance.grpo.frames, height and width), or "
    "take a smaller language model."
)


@dataclass(frozen=True)
class Seconds:
    """Of a rank: for a rewrite, asked for and judged, and for a clip that is rendered."""

    rewrite: float
    clip: float

    def hours(self, grpo: RewardTraining, ranks: int) -> float:
        """Of all rollouts, if no clip is ever rendered before."""
        rewrites = grpo.steps * grpo.prompts_per_step * grpo.group_size
        return rewrites * (self.rewrite + grpo.clips * self.clip) / ranks / 3600


def seconds_on_a_cpu(
    recipe: Recipe, config: EnhanceConfig, grpo: RewardTraining, language_model: Any, renderer: VideoModel
) -> float:
    """To rehearse, roughly: rewrites are asked for twice, and some more clips are rendered to time them."""
    rewrites = PROMPTS * (REWRITES + 1)
    clips = (rewrites + PROMPTS) * grpo.clips
    render = clips * (grpo.sampler or recipe.sampler).evaluations * operations(grpo.size(recipe.battery), renderer)
    return (render + 2 * rewrites * config.tokens * 2 * language_model.num_parameters()) / CPU_RATE


def screened(
    recipe: Recipe,
    grpo: RewardTraining,
    language: tuple[Any, Any],
    manner: Manner,
    world: World,
    cost: Callable[[Seconds], str],
) -> Iterator[Finding]:
    """The findings of a rehearsal.

    Args:
        recipe: what is rehearsed.
        grpo: the recipe's.
        language: model and tokenizer; they end on this rank's device.
        manner: how they are asked and guarded.
        world: all ranks rehearse.
        cost: says what the run costs, given the measured seconds.
    """
    small = grpo.model_copy(update={"prompts_per_step": PROMPTS * world.size, "group_size": REWRITES + 1, "raw": 1})
    with shared_folder(recipe, world) as folder, within_memory(ADVICE):
        context = context_in(folder / "enhance", recipe, world)
        model, tokenizer = language[0].to(world.device), language[1]
        rewriting = on_all_ranks(world, lambda: Rewriting(model, tokenizer, manner, small, context))
        chosen = [rewriting.prompts[world.rank * PROMPTS + place] for place in range(PROMPTS)]
        rows = [prompt for prompt in chosen for _ in range(small.group_size)]

        def rollout() -> Rewritten:
            torch.manual_seed(generator("doctor", recipe.seed, world.rank).initial_seed())
            return rewriting.rollout(model, rows)

        try:
            on_all_ranks(world, lambda: rewriting.scores([Rewrite(prompt, prompt, "unchanged") for prompt in chosen]))
        except ReelignError as error:
            yield Finding("enhance.rewards", False, str(error))
            return
        found = rollout()
        yield Finding("enhance.rehearsal", True, _who(recipe, grpo, found, world))
        yield Finding("enhance.rewards", True, _means(found))
        yield Finding("enhance.cost", True, cost(_seconds(rewriting, rollout, chosen)))


def _seconds(rewriting: Rewriting, rollout: Callable[[], Rewritten], prompts: list[str]) -> Seconds:
    """Of clips that start from noises which the run has not, and of the same rollout again, when all is rendered."""
    grpo, studio, before = rewriting.grpo, rewriting.studio, rewriting.studio.rendered
    fresh = range(grpo.noises, grpo.noises + grpo.clips)
    began = now()
    studio.film([Shot(prompt, take) for prompt in prompts for take in fresh])
    rendered = now()
    rows = len(rollout().rewrites)
    share = (studio.rendered - before) / studio.world.size
    return Seconds((now() - rendered) / rows, (rendered - began) / share)


def _who(recipe: Recipe, grpo: RewardTraining, found: Rewritten, world: World) -> str:
    labels = Counter(rewrite.label for rewrite, own in zip(found.rewrites, found.learned, strict=True) if own)
    became = ", ".join(f"{count} {label}" for label, count in labels.most_common())
    where = f" on each of {world.size} ranks" if world.size > 1 else ""
    sentence = (
        f"{PROMPTS} prompts with {REWRITES} rewrites each{where}, by the language model as it comes ({became}), in "
        f"{grpo.clips} clips each by {grpo.generator or recipe.model}"
    )
    if grpo.generator is None and (recipe.sft is not None or recipe.rlhf is not None):
        return f"{sentence} itself: its parent in the run, the trained model, does not exist yet."
    return f"{sentence}."


def _means(found: Rewritten) -> str:
    """What the rewrites score, and in brackets the user's own words."""
    numbers = found.numbers
    said = [f"{name} {numbers[f'reward/{name}']:.3g} ({numbers[f'raw/{name}']:.3g})" for name in found.scores]
    return f"every score keeps its contract; means of the rewrites (of the users' own words): {', '.join(said)}."
