"""The straight path between data and noise, and the three ways to say what a network predicts.

    x = (1 - sigma) x0 + sigma eps,   v = dx/dsigma = eps - x0,   x0 = x - sigma v,   eps = x + (1 - sigma) v

`sigma` is a float, or a tensor (B,) for a batch: it is broadcast over the remaining dimensions.
"""

from __future__ import annotations

from torch import Tensor


def interpolate(x0: Tensor, eps: Tensor, sigma: Tensor | float) -> Tensor:
    """The point at noise level `sigma` between data and noise; all of one shape (B, ...)."""
    sigma = expand(sigma, x0)
    return (1 - sigma) * x0 + sigma * eps


def velocity_target(x0: Tensor, eps: Tensor) -> Tensor:
    """What the network is trained to predict: `eps - x0`."""
    return eps - x0


def to_x0(x: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """The data that a velocity at (x, sigma) implies."""
    return x - expand(sigma, x) * velocity


def to_eps(x: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """The noise that a velocity at (x, sigma) implies."""
    return x + (1 - expand(sigma, x)) * velocity


def expand(sigma: Tensor | float, like: Tensor) -> Tensor | float:
    """`sigma` (B,) with as many dimensions as `like` (B, ...); a float stays a float."""
    if isinstance(sigma, Tensor) and sigma.ndim == 1:
        return sigma.view(-1, *[1] * (like.ndim - 1))
    return sigma
