"""The straight path between data and noise."""

from __future__ import annotations

from torch import Tensor


def interpolate(x0: Tensor, eps: Tensor, sigma: Tensor | float) -> Tensor:
    """`(1 - sigma) x0 + sigma eps`."""
    return (1 - sigma) * x0 + sigma * eps


def velocity_target(x0: Tensor, eps: Tensor) -> Tensor:
    """`eps - x0`."""
    return eps - x0
