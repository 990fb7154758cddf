"""Policy gradients on a denoising trajectory: group advantages, the clipped surrogate, temporal gradient rectification.

A group is G clips of one prompt; its advantages are rewards against the group's own mean (GRPO, arXiv 2402.03300). For
a stochastic step the exact log-ratio of two policies is

    log r = -lambda <e, dv> - lambda^2 / 2 |dv|^2,        dv = v - v_old       (means over dimensions)

so a step's gradient is as loud as its lambda (`step.gradient_scale`). Rectification divides it away: with q = 1/lambda
and w = q / mean(q), the loss is w times the clipped surrogate, and on policy every step speaks as loudly as any other
(arXiv 2604.25427, section 3.2). GRPO-Guard (arXiv 2510.22319, equation 8) reaches the same by another ratio; its bound
is then on the policy's change in units of the step's noise, and its weight is 1/dt. The two are alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reelign.flow.step import SdeStep

Denominator = Literal["group", "batch", "max_group"]
Sum = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Advantages:
    """What each clip is worth against its group.

    Attributes:
        values: (P, G), clipped; 0 in groups that are dropped.
        kept: bool (P,): groups with spread in at least one reward.
        zero_spread: for each reward the share of groups in which all its values are equal.
        clipped: share of the kept values at the bound.
    """

    values: Tensor
    kept: Tensor
    zero_spread: dict[str, float]
    clipped: float


def group_advantages(
    rewards: Mapping[str, Tensor], weights: Mapping[str, float], denominator: Denominator = "group", bound: float = 5.0
) -> Advantages:
    """Normalise each reward within its group, then add: raw rewards of different scales are never summed.

    Args:
        rewards: by name (P, G): all groups of the batch, of all ranks.
        weights: by name; rewards without a weight are left out.
        denominator: what a deviation is measured in: the group's own standard deviation, that of the deviations in the
            whole batch, or the largest of any group (LongCat-Video, arXiv 2510.22200: small differences stay small).
        bound: advantages are clipped to +-bound.

    Raises:
        ValueError: no weights, a group of one, or shapes that differ.
    """
    shapes = {tuple(rewards[name].shape) for name in weights}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2:
        raise ValueError(f"group_advantages needs rewards of one shape (prompts, group), got {shapes or dict(weights)}")
    if shape[1] < 2:
        raise ValueError("a group of one clip has no advantage: everything is its own mean. Use a group of 2 or more.")
    total = torch.zeros(shape, dtype=torch.float64)
    kept = torch.zeros(shape[0], dtype=torch.bool)
    zero_spread = {}
    for name, weight in weights.items():
        values = rewards[name].double().cpu()
        spread = values.amax(1) > values.amin(1)
        zero_spread[name] = float(1 - spread.double().mean())
        deviation = torch.where(spread[:, None], values - values.mean(1, keepdim=True), 0.0)
        total += weight * deviation / _unit(deviation, spread, denominator)
        kept |= spread & (weight != 0)
    values = total.clamp(-bound, bound).float()
    at_bound = (total[kept].abs() >= bound).double().mean() if kept.any() else torch.zeros(())
    return Advantages(values, kept, zero_spread, float(at_bound))


def _unit(deviation: Tensor, spread: Tensor, denominator: Denominator) -> Tensor:
    """What deviations (P, G) are divided by, (P, 1); 1 where there is nothing to divide."""
    own = deviation.square().mean(1).sqrt()
    if denominator == "batch" and spread.any():
        own = own[spread].square().mean().sqrt().expand_as(own)
    elif denominator == "max_group" and spread.any():
        own = own.max().expand_as(own)
    return torch.where(spread, own, 1.0)[:, None]


def best_and_worst(advantages: Tensor, count: int) -> Tensor:
    """Indices (P, count) of the best and the worst clips of each group, half of each; training on the extremes only
    saves the backward passes of clips that say little (arXiv 2505.07818, section 3.3)."""
    if count % 2 or not 2 <= count <= advantages.shape[1]:
        raise ValueError(f"best_and_worst needs an even count from 2 to {advantages.shape[1]}, got {count}")
    order = advantages.argsort(dim=1, descending=True, stable=True)
    return torch.cat([order[:, : count // 2], order[:, order.shape[1] - count // 2 :]], dim=1)


def surrogate(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """`max(-A r, -A clip(r, 1 - c, 1 + c))`, the shape of `ratio`.

    Raises:
        ValueError: the advantages would make the result larger than the ratio: then one clip's advantage would be
            applied to another clip's steps.
    """
    if torch.broadcast_shapes(ratio.shape, advantages.shape) != ratio.shape:
        raise ValueError(f"advantages {tuple(advantages.shape)} do not broadcast into ratios {tuple(ratio.shape)}")
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range))


def ratio(logp: Tensor, old_logp: Tensor) -> Tensor:
    """Probability ratio of a transition under the current and the rollout's policy, (B,)."""
    return (logp - old_logp).exp()


def guarded_ratio(step: SdeStep, old_logp: Tensor, old_mean: Tensor) -> Tensor:
    """GRPO-Guard's ratio (B,): without the negative bias |dmu|^2 / 2s^2 and in units of the step's spread s.

        log r' = s (log r + |dmu|^2 / (2 s^2))

    Its clip range is on another scale than that of `ratio`.
    """
    bias = (step.mean - old_mean).square().flatten(1).mean(1) / (2 * step.std.square())
    return (step.std * (step.logp - old_logp + bias)).exp()


def rectified(gradient_scales: Tensor, learned: Tensor, over_ranks: Sum = lambda value: value) -> Tensor:
    """Weights 1/lambda, with mean 1 over everything that is learned from; same shape.

    Args:
        gradient_scales: lambda of every trained step of the whole accumulation window: with a mean over less, one part
            of the window would count for more than another.
        learned: bool, same shape: which steps the mean is over.
        over_ranks: sums a value over all ranks; with a mean over one rank, ranks would count differently.
    """
    return _mean_one(1 / gradient_scales, learned, over_ranks)


def guard_weights(dt: Tensor, learned: Tensor, over_ranks: Sum = lambda value: value) -> Tensor:
    """GRPO-Guard's weights 1/dt, with mean 1 as in `rectified`."""
    return _mean_one(1 / dt, learned, over_ranks)


def _mean_one(values: Tensor, learned: Tensor, over_ranks: Sum) -> Tensor:
    mean = over_ranks((values * learned).sum()) / over_ranks(learned.sum().to(values)).clamp(min=1)
    return values / torch.where(mean > 0, mean, 1.0)


def velocity_kl(divergence: Tensor, gradient_scales: Tensor) -> Tensor:
    """`|v - v_ref|^2` from the KL divergence of an SDE step, (B,): equally strict at every noise level.

    The divergence is `lambda^2 / 2 |v - v_ref|^2` (not so for cps, whose lambda is that of another density).
    """
    return 2 * divergence / gradient_scales.square()
