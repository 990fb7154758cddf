"""What a run with reinforcement learning costs in network evaluations, counted from its recipe before it starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reelign.doctor.finding import Finding, any_failed
from reelign.doctor.memory import parameters, tokens
from reelign.evaluate.battery import BatteryConfig
from reelign.models.base import VideoModel
from reelign.recipe import Recipe
from reelign.sampling.sample import SampleConfig
from reelign.stages.enhance_recipe import RewardTraining
from reelign.stages.rlhf import RlhfConfig, training_sampler
from reelign.train.parallel import World

CPU_RATE, CPU_PATIENCE = 5e10, 120.0
"""Operations a second that two cores reach, and the seconds beyond which a CPU is spared a rehearsal."""
COUNTED = 20_000
"""Clips whose stochastic steps are drawn; a longer run is as its beginning."""


@dataclass(frozen=True)
class Evaluations:
    """Network evaluations of all ranks together, if the stage neither stops early nor drops a group.

    Attributes:
        rollout: forwards that sample the clips that are learned from.
        replay: forwards with a backward pass.
        judged: forwards that sample the clips of validations and batteries.
    """

    rollout: int
    replay: int
    judged: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.rollout + self.replay + self.judged


def count(recipe: Recipe, config: RlhfConfig, ranks: int) -> Evaluations:
    """The evaluations of a whole run, without those of supervised fine-tuning: exact up to `COUNTED` clips.

    Raises:
        ReelignError: no step of the grid can be stochastic.
    """
    share, every = config.prompts_per_update // ranks, config.prompts_per_update
    updates = max(1, min(config.updates, COUNTED // (every * config.group_size)))
    parts = [
        _rank(recipe, config, update, range(first, first + share))
        for update in range(updates)
        for first in range(update * every, (update + 1) * every, share)
    ]
    battery, stages = recipe.battery, 1 + (recipe.sft is not None) + 1
    validations = 1 + -(-config.updates // config.validate_every)
    clips = validations * battery.validation_count + stages * battery.count
    return Evaluations(
        rollout=sum(rollout for rollout, _ in parts) * config.updates // updates,
        replay=sum(replay for _, replay in parts) * config.updates // updates,
        judged=clips * recipe.sampler.evaluations,
    )


def clips_at_most(grpo: RewardTraining) -> int:
    """Clips that prompt enhancement renders, if it never meets a rewrite again."""
    return grpo.steps * grpo.prompts_per_step * grpo.group_size * grpo.clips


def operations(size: BatteryConfig, model: VideoModel) -> float:
    """Floating-point operations of one network evaluation: matrix products of all weights, and attention."""
    seen, networks = tokens(size, model), model.denoisers().values()
    config = next(iter(networks)).config
    width = config.num_attention_heads * config.attention_head_dim
    weights = parameters(model) / len(networks)
    return 2.0 * weights * seen + 4.0 * seen**2 * width * config.num_layers


def rounded(number: int) -> str:
    """To three digits."""
    return f"{round(number, 3 - len(str(number))) if number > 999 else number:,}"


def _rank(recipe: Recipe, config: RlhfConfig, update: int, positions: range) -> tuple[int, int]:
    """Rollout and replay of one rank in one update; its rows are those of `Trainer.chunks`."""
    algorithm, group = config.algorithm, config.group_size
    branches = group if algorithm.branches else 1
    rows = [(position, clip) for position in positions for clip in range(group // branches)]
    keys = [(recipe.seed, position, *([] if algorithm.iso_temporal else [clip])) for position, clip in rows]
    sampler = training_sampler(recipe.sampler, algorithm)
    steps = algorithm.stochastic_steps(sampler.steps, update, keys)
    parts = steps.split(max(1, config.micro_batch // branches))
    rollout = sum(_sampled(part, branches, sampler, algorithm.guidance == "both") for part in parts)
    if algorithm.objective == "nft":
        return rollout, len(rows) * algorithm.nft_levels
    learned = config.select / group if config.select is not None and branches == 1 else 1.0
    guided = algorithm.guidance == "both" and sampler.guidance_scale != 1
    return rollout, round(int(steps.sum()) * learned) * (2 if guided else 1)


def _sampled(steps: Tensor, branches: int, sampler: SampleConfig, guided_steps: bool) -> int:
    """Evaluations of rows that are sampled together, as `sample` makes them; `steps` is bool (rows, steps)."""
    before = steps.cumsum(1) - steps.long()
    rows = torch.where(before > 0, branches, 1).sum(0)
    guided = sampler.guided
    if not guided_steps:
        guided = guided & ~steps.all(0)
    return int((rows * (1 + guided.long())).sum())


def not_rehearsed(memory: Finding, seconds: float, world: World) -> str:
    """Why a stage is not rehearsed, as a clause; empty where it is. All ranks decide alike.

    Args:
        memory: what was found of the stage's memory.
        seconds: that its rehearsal takes on a CPU; 0 on a GPU.
        world: the ranks.
    """
    if not any_failed([memory], world) and seconds <= CPU_PATIENCE:
        return ""
    return f"a CPU would need about {seconds / 3600:.1f} hours for it" if memory.passed else "it would not fit"
