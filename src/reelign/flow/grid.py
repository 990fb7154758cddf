"""Grids of noise levels for sampling, and densities of noise levels for training.

`sigma` is the share of noise, in [0, 1]; `x_sigma = (1 - sigma) x0 + sigma eps`. A grid runs from 1 (noise) to 0
(data). The static shift `sigma <- m sigma / (1 + (m - 1) sigma)` moves a grid towards noise (arXiv 2403.03206,
section 5.3.2).
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
from torch import Tensor

Spacing = Literal["unipc", "euler"]
Density = Literal["uniform", "logit_normal", "logit_normal_weight"]
Level = TypeVar("Level", Tensor, float)

TRAIN_STEPS = 1000
FIRST_LEVEL_GAP = 1e-6
"""UniPC starts this far below 1, where its log signal-to-noise ratio is finite."""


def sigma_grid(steps: int, shift: float = 1.0, spacing: Spacing = "unipc") -> Tensor:
    """Noise levels of a sampler, float64 (steps + 1,), falling from about 1 to exactly 0.

    Args:
        steps: number of transitions, at least 1.
        shift: static shift m; 1 leaves the grid as it is.
        spacing: "unipc" is the grid that Wan ships, diffusers' `UniPCMultistepScheduler` with `use_flow_sigmas`;
            "euler" that of `FlowMatchEulerDiscreteScheduler`, whose smallest level the shift reaches twice.

    Raises:
        ValueError: `steps` is below 1 or `shift` is not positive.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"a grid needs steps >= 1 and shift > 0, got {steps} and {shift}")
    if spacing == "unipc":
        levels = shift_sigma(torch.linspace(1, 1 / TRAIN_STEPS, steps + 1, dtype=torch.float64)[:-1], shift)
        levels[0] -= FIRST_LEVEL_GAP
    else:
        lowest = shift_sigma(1 / TRAIN_STEPS, shift)
        levels = shift_sigma(torch.linspace(1, lowest, steps, dtype=torch.float64), shift)
    return torch.cat([levels, levels.new_zeros(1)])


def shift_sigma(sigma: Level, shift: float) -> Level:
    """`m sigma / (1 + (m - 1) sigma)`: keeps 0 and 1, moves the rest towards 1 for m > 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sample_sigma(count: int, density: Density, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels to train on, float32 (count,), in (0, 1).

    "logit_normal" draws sigmoid(N(0, 1)) (arXiv 2403.03206, section 3.1). "logit_normal_weight" draws uniformly and
    leaves the shape to `density_weight` (found more stable in arXiv 2510.22200). The shift acts on the drawn levels.
    """
    if density == "logit_normal":
        drawn = torch.sigmoid(torch.randn(count, generator=generator))
    else:
        # The ends carry no information (no noise, no signal): keep a thousandth away from both.
        drawn = torch.rand(count, generator=generator) * 0.998 + 0.001
    return shift_sigma(drawn, shift)


def density_weight(sigma: Tensor, density: Density) -> Tensor:
    """Weight of each sample's loss, same shape as `sigma`; its mean over uniform levels is 1.

    For "logit_normal_weight" it is the density of sigmoid(N(0, 1)); for the others 1.
    """
    if density != "logit_normal_weight":
        return torch.ones_like(sigma)
    logit = torch.log(sigma) - torch.log1p(-sigma)
    return torch.exp(-logit.square() / 2) / (math.sqrt(2 * math.pi) * sigma * (1 - sigma))
