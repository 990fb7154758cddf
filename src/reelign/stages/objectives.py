"""What one backward pass of RLHF is about, and its loss: the clipped surrogate at stored transitions, or DiffusionNFT.

Losses are one number a clip and step; the caller divides their sum by the number that all ranks train on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reelign.flow.path import interpolate, velocity_target
from reelign.flow.policy import guard_weights, guarded_ratio, ratio, rectified, surrogate, velocity_kl
from reelign.flow.step import gradient_scale, kl
from reelign.models.base import Conditions, VideoModel
from reelign.sampling.sample import SampleConfig, replay
from reelign.sampling.stochastic import Transition
from reelign.stages.algorithm import Algorithm
from reelign.stages.rollout import Rollout, rows_taken
from reelign.train.parallel import World


@dataclass(frozen=True)
class Lesson:
    """Some rows of one stochastic transition with what their clips are worth.

    Attributes:
        transition: the rows; each has `transition.branches` clips.
        conditions, negative: of the rows.
        advantages: (clips,), 0 where a clip is not learned from.
        learned: bool (clips,).
        weights: (clips,) of the temporal gradient rectification; 1 without.
    """

    transition: Transition
    conditions: Conditions
    negative: Conditions
    advantages: Tensor
    learned: Tensor
    weights: Tensor


@dataclass
class Told:
    """What an update tells besides its losses: largest |ratio - 1|, clips beyond the bound, network evaluations."""

    ratio_drift: float = 0.0
    clipped: int = 0
    nfe: int = 0


def lessons(
    rollouts: Sequence[Rollout], advantages: Tensor, algorithm: Algorithm, sampler: SampleConfig, world: World
) -> list[Lesson]:
    """All transitions of an update that are learned from, weighted over all ranks.

    A rank keeps a row of every transition even if it learns from none: all ranks must take as many forwards.

    Args:
        rollouts: of this rank.
        advantages: (clips of this rank,), nan where a clip is not learned from.
        algorithm: which weight.
        sampler: whose grid the transitions were made on.
        world: the ranks, over which the weights have mean 1.
    """
    found, start = [], 0
    for rollout in rollouts:
        values = advantages[start : start + len(rollout.latents)].to(rollout.latents)
        start += len(rollout.latents)
        for transition in rollout.transitions:
            mine = values.view(-1, transition.branches)[transition.rows.to(values.device)]
            keep = (~mine.isnan()).any(1).nonzero().flatten().cpu()
            keep = keep if len(keep) else torch.zeros(1, dtype=torch.long)
            part, conditions, negative = rows_taken(transition, rollout, keep)
            worth = mine[keep.to(mine.device)].flatten()
            found.append(Lesson(part, conditions, negative, worth.nan_to_num(), ~worth.isnan(), torch.ones_like(worth)))
    if algorithm.weight == "none":
        return found
    learned = torch.cat([lesson.learned for lesson in found])
    if algorithm.weight == "rectified":
        scales = torch.cat([_loudness(lesson.transition, algorithm, sampler) for lesson in found])
        weights = rectified(scales, learned, world.sum)
    else:
        steps = [lesson.transition for lesson in found]
        dt = torch.cat([(t.sigma - t.sigma_next).repeat_interleave(t.branches) for t in steps])
        weights = guard_weights(dt, learned, world.sum)
    parts = weights.split([len(lesson.learned) for lesson in found])
    return [replace(lesson, weights=part) for lesson, part in zip(found, parts, strict=True)]


def _loudness(transition: Transition, algorithm: Algorithm, sampler: SampleConfig) -> Tensor:
    """lambda of each clip's step, (clips,)."""
    grid = sampler.grid.to(transition.x)
    scales = gradient_scale(transition.sigma, transition.sigma_next, algorithm.noise_law, grid)
    return scales.repeat_interleave(transition.branches)


def trajectory_loss(
    model: VideoModel,
    reference: VideoModel | None,
    lesson: Lesson,
    algorithm: Algorithm,
    sampler: SampleConfig,
    told: Told,
) -> Tensor:
    """Clipped surrogate of a lesson's clips, plus the divergence from the reference; (clips,), 0 where not learned."""
    t, law = lesson.transition, algorithm.noise_law
    step = replay(model, lesson.conditions, t, sampler, law, lesson.negative)
    guarded = algorithm.weight == "guard"
    r = guarded_ratio(step, t.logp, t.mean) if guarded else ratio(step.logp, t.logp)
    loss = lesson.weights * surrogate(r, lesson.advantages, algorithm.clip_range)
    if reference is not None:
        with torch.no_grad():
            was = replay(reference, lesson.conditions, t, sampler, law, lesson.negative)
        apart = kl(step.mean, was.mean, step.std)
        if algorithm.kl_space == "velocity":
            apart = velocity_kl(apart, _loudness(t, algorithm, sampler))
        loss = loss + algorithm.kl * apart
    drift = ((r.detach() - 1).abs() * lesson.learned).max()
    told.ratio_drift = max(told.ratio_drift, float(drift))
    told.clipped += int((((r.detach() - 1).abs() > algorithm.clip_range) & lesson.learned).sum())
    told.nfe += len(t.rows) * (2 if sampler.guidance_scale != 1 else 1)
    return loss * lesson.learned


def forward_process_loss(
    model: VideoModel,
    rollout: Rollout,
    advantages: Tensor,
    levels: Tensor,
    noise: Tensor,
    algorithm: Algorithm,
    told: Told,
) -> Tensor:
    """DiffusionNFT (arXiv 2509.16117, section 3) on the sampled clips, (clips,); 0 where the advantage is nan.

        r = clip(A / bound, -1, 1) / 2 + 1/2,   v+- = (1 -+ b) v_old +- b v
        loss = r |v+ - u|^2 + (1 - r) |v- - u|^2,   u = eps - x0

    Each rollout is learned from once, so the old policy's velocity is the current one without its gradient.

    Args:
        model: the policy.
        rollout: clips and their conditions.
        advantages: (clips,).
        levels: noise levels (clips,).
        noise: eps, the shape of the latents.
        algorithm: bound and b.
        told: receives what the loss tells.
    """
    clean, learned = rollout.latents, ~advantages.isnan()
    velocity = model.velocity(interpolate(clean, noise, levels), levels, rollout.conditions)
    old, target, beta = velocity.detach(), velocity_target(clean, noise), algorithm.nft_beta
    optimal = advantages.nan_to_num().div(algorithm.advantage_bound).clamp(-1, 1) / 2 + 0.5
    towards, away = (1 - beta) * old + beta * velocity, (1 + beta) * old - beta * velocity
    errors = [(v - target).square().flatten(1).mean(1) for v in (towards, away)]
    told.nfe += len(clean)
    return (optimal * errors[0] + (1 - optimal) * errors[1]) * learned
