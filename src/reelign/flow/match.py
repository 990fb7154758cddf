"""Distribution matching distillation: the gradient that moves what a student makes towards what its teacher would make.

Two networks look at the student's clip x under noise: the teacher (the real score) and the critic, which is trained on
the student's own clips (the fake score). The difference of their predictions is the gradient of the divergence between
both distributions (arXiv 2311.18828, equation 7; normalised as in its equation 8):

    g = (x0_fake - x0_real) / mean |x - x0_real|
"""

from __future__ import annotations

import torch
from torch import Tensor

from reelign.flow.grid import shift_sigma

LOWEST, HIGHEST = 0.02, 0.98
"""Noise levels outside say nothing: without noise both scores agree, without signal they see no clip."""


def matching_gradient(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """The gradient for each clip, the shape of `x` (B, ...): zero where both scores predict the same.

    Args:
        x: the student's clips.
        real, fake: what teacher and critic predict from the same noisy clips.
    """
    size = (x - real).abs().flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
    return (fake - real) / size.clamp_min(torch.finfo(x.dtype).eps)


def matching_loss(x: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to `x` is `gradient` over the number of elements of `x`."""
    return 0.5 * (x - (x - gradient).detach()).square().mean()


def matching_levels(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels at which the scores are compared, (count,): uniform, shifted, kept away from both ends."""
    return shift_sigma(torch.rand(count, generator=generator), shift).clamp(LOWEST, HIGHEST)
