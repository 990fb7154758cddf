"""What distillation costs in network evaluations, counted from the recipe before it starts.

With a batch of B and n updates of the critic, an update of a student of k steps takes in the mean

    B ((n + 1) ((k + 1) / 2 + c) + n + 1 + t)

evaluations and B (n + 1) backward passes: clips are left at a random step, a causal student remembers its blocks
(c = 1, else 0), and a teacher takes t = 2 with guidance, 1 without. One of the student that takes guidance over
takes B ((k + 1) / 2 + t) and B. One of first weights takes B (1 + r) and B: all blocks but the last, a share r of the
clip, are remembered; causal consistency predicts twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from reelign.models.base import VideoModel
from reelign.models.kv_cache import CausalConfig
from reelign.recipe import Recipe
from reelign.sampling.sample import clip_evaluations
from reelign.stages.causal_init import BETWEEN, evaluations
from reelign.stages.distill_recipe import (
    CAUSAL,
    DistillConfig,
    InitialiseConfig,
    MatchConfig,
    StudentConfig,
    UnguidedConfig,
)


@dataclass(frozen=True)
class Spent:
    """Network evaluations of a part, all ranks together, if it does not stop early.

    Attributes:
        forward: of training, those with a backward pass among them.
        backward: backward passes.
        judged: of validations, which every rank samples whole.
    """

    forward: int
    backward: int
    judged: int

    def work(self, checkpointing: bool) -> int:
        """Of training, in forward passes: a backward pass is worth two, and three when it computes again."""
        return self.forward + self.backward * (3 if checkpointing else 2)


def count(recipe: Recipe, config: DistillConfig, model: VideoModel) -> dict[str, Spent]:
    """What each part costs."""
    battery = recipe.battery
    frames = model.latent_shape(battery.frames, battery.height, battery.width)[1]
    found = {}
    for name, part in config.parts.items():
        looks = -(-part.updates // part.validate_every)
        if isinstance(part, MatchConfig):
            looks += 1  # before the first update
        update = an_update(name, part, recipe, config, frames)
        ways = part.trajectories * way(recipe, config) if isinstance(part, InitialiseConfig) else 0
        made = clip_evaluations(config.sampler, config.causal if name in CAUSAL else None, frames)
        judged = math.ceil(looks * battery.validation_count * made)
        found[name] = Spent(part.updates * update.forward + ways, part.updates * update.backward, judged)
    first = next(iter(found))
    teacher = battery.validation_count * recipe.sampler.evaluations
    found[first] = Spent(found[first].forward, found[first].backward, found[first].judged + teacher)
    return found


def an_update(name: str, part: StudentConfig, recipe: Recipe, config: DistillConfig, frames: int) -> Spent:
    """One update of a part, of clips of so many latent frames."""
    if isinstance(part, MatchConfig):
        return matched(config, part, name in CAUSAL, config.guidance(recipe.sampler).guidance_scale)
    if isinstance(part, InitialiseConfig):
        assert config.causal is not None
        return initialised(config.causal, part, frames)
    assert isinstance(part, UnguidedConfig)
    teacher = config.absorbed(recipe.sampler).evaluations / config.steps
    return Spent(round(part.batch_size * ((config.steps + 1) / 2 + teacher)), part.batch_size, 0)


def matched(config: DistillConfig, part: MatchConfig, causal: bool, guidance: float) -> Spent:
    """One update of a matching part, in the mean over the steps at which clips are left."""
    turns = part.critic_updates + 1
    made = turns * ((config.steps + 1) / 2 + causal)
    scored = part.critic_updates + 1 + (1 if guidance == 1 else 2)
    return Spent(round(part.batch_size * (made + scored)), part.batch_size * turns, 0)


def initialised(causal: CausalConfig, part: InitialiseConfig, frames: int) -> Spent:
    """One update of the first weights of a causal student."""
    return Spent(round(part.batch_size * evaluations(part, causal, frames)), part.batch_size, 0)


def way(recipe: Recipe, config: DistillConfig) -> int:
    """Evaluations of one trajectory that first weights are fitted to."""
    assert config.initialise is not None
    if config.initialise.teacher == "few_step":
        return config.steps
    return config.steps * BETWEEN * (1 if config.guidance(recipe.sampler).guidance_scale == 1 else 2)
