"""One step of the sampler: the ODE, the SDE with its noise laws, log-probability, gradient scale and divergence.

With `dt = sigma - sigma_next > 0`, noise level `g(sigma)` and `s = g sqrt(dt)` (arXiv 2505.05470, section 4.2):

    ODE    x' = x - dt v
    SDE    mu = x - dt [v + g^2 / (2 sigma) (x + (1 - sigma) v)],   x' = mu + s e,   e ~ N(0, 1)
    logp   mean over dimensions of  -(x' - mu)^2 / (2 s^2) - log s - log(2 pi) / 2

| law       | g(sigma)                                                    | source |
|-----------|-------------------------------------------------------------|--------|
| flow      | a sqrt(sigma / (1 - sigma)), the grid's second level at 1   | Flow-GRPO, arXiv 2505.05470 |
| dance     | a                                                           | DanceGRPO, arXiv 2505.07818 |
| linear    | the grid's last level + (second - last) sigma               | Flash-GRPO |
| truncated | flow with a = 1 and s at most `level`, also in the drift    | LongCat-Video, arXiv 2510.22200 |
| cps       | keeps the noise level: mu = (1 - sigma') x0 + rho eps       | arXiv 2509.05952 |

With a band of low frequencies (`flow.band`; P projects on it) only that part is random: the diffusion is g^2 P, so the
drift needs the correction `P eps` alone, and the marginals stay those of the ODE. Log-densities, means and divergences
are then of the band's coordinates.

Levels are Python floats or float tensors (B,): a batch may hold a different step for each sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reelign.flow.band import to_band, within
from reelign.flow.path import expand, to_eps, to_x0

LawName = Literal["flow", "dance", "linear", "truncated", "cps"]


@dataclass(frozen=True)
class NoiseLaw:
    """How much noise a stochastic step adds.

    Attributes:
        name: a row of the table above.
        level: `a` of flow and dance, the bound tau of truncated, the level in [0, 1] of cps; unused by linear.
        band: share of the frequencies along height and along width that are random, in (0, 1].
    """

    name: LawName
    level: float = 0.7
    band: float = 1.0


@dataclass(frozen=True)
class SdeStep:
    """A stochastic transition.

    Attributes:
        x_next: where it went, (B, ...), in the storage type of x.
        mean: mu in coordinates of the band, float32 or float64, (B, ...).
        std: s, (B,).
        logp: mean log-density over the dimensions of the band, (B,).
    """

    x_next: Tensor
    mean: Tensor
    std: Tensor
    logp: Tensor


def ode_step(x: Tensor, velocity: Tensor, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
    """Euler step of the probability-flow ODE, same shape as `x`."""
    return x - expand(sigma - sigma_next, x) * velocity


def sde_step(
    x: Tensor,
    velocity: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    law: NoiseLaw,
    grid: Tensor,
    noise: Tensor | None = None,
    x_next: Tensor | None = None,
) -> SdeStep:
    """A stochastic transition, drawn with `noise` or scored at a stored `x_next`.

    Args:
        x: (B, ...) at level `sigma`.
        velocity: predicted v, same shape; gradients flow through it.
        sigma, sigma_next: (B,), `sigma > sigma_next > 0`.
        law: how much noise.
        grid: the sampler's levels (steps + 1,), falling.
        noise: standard normal, same shape; give this to sample.
        x_next: stored result; give this to replay.

    Raises:
        ValueError: both or none of `noise` and `x_next` are given, or a transition ends at 0, where the density of a
            deterministic end has no meaning.
    """
    if (noise is None) == (x_next is None):
        raise ValueError("give either noise (to sample) or x_next (to replay)")
    if bool((sigma_next <= 0).any()):
        raise ValueError("the last transition of a grid must not be stochastic")
    exact = torch.promote_types(x.dtype, torch.float32)
    mean, std = _moments(x.to(exact), velocity.to(exact), sigma.to(exact), sigma_next.to(exact), law, grid.to(exact))
    if x_next is None:
        assert noise is not None
        # Round to the storage type first: the log-density must belong to the point that is stored.
        x_next = (mean + expand(std, mean) * within(noise.to(exact), law.band)).to(x.dtype)
    mean, reached = to_band(mean, law.band), to_band(x_next.to(exact), law.band)
    return SdeStep(x_next, mean, std, _log_density(reached, mean, std, law))


def gradient_scale(sigma: Tensor, sigma_next: Tensor, law: NoiseLaw, grid: Tensor) -> Tensor:
    """lambda in `d logp / d v = -lambda e / D`, (B,), D the dimensions of the band: how loudly a step speaks.

    For the SDE laws `sqrt(dt) / g + g sqrt(dt) (1 - sigma) / (2 sigma)`. The public log-density of cps is not
    normalised; its lambda is `2 s ((1 - sigma') sigma - rho (1 - sigma))`, 2 s^2 times that of the normalised one.
    """
    if law.name == "cps":
        keep, std = _cps(sigma_next, law)
        return 2 * std * ((1 - sigma_next) * sigma - keep * (1 - sigma))
    level, dt = noise_level(sigma, sigma_next, law, grid), sigma - sigma_next
    return dt.sqrt() / level + level * dt.sqrt() * (1 - sigma) / (2 * sigma)


def kl(mean: Tensor, reference_mean: Tensor, std: Tensor) -> Tensor:
    """KL divergence of two transitions with the same spread, mean over dimensions, (B,)."""
    return ((mean - reference_mean).square() / (2 * expand(std, mean) ** 2)).flatten(1).mean(1)


def noise_level(sigma: Tensor, sigma_next: Tensor, law: NoiseLaw, grid: Tensor) -> Tensor:
    """g(sigma) of an SDE law, (B,).

    Raises:
        ValueError: for cps, which is no discretised SDE.
    """
    second, last = grid[1].to(sigma), grid[-1].to(sigma)
    if law.name == "dance":
        return torch.full_like(sigma, law.level)
    if law.name == "linear":
        return last + (second - last) * sigma
    if law.name in ("flow", "truncated"):
        at_top = sigma >= 1 - 1e-5
        below = torch.where(at_top, second, sigma)
        level = (law.level if law.name == "flow" else 1.0) * torch.sqrt(sigma / (1 - below))
        if law.name == "truncated":
            level = torch.minimum(level, law.level / (sigma - sigma_next).sqrt())
        return level
    raise ValueError(f"the law {law.name} has no noise level of an SDE")


def _moments(
    x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, law: NoiseLaw, grid: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (B, ...), in the latent's own coordinates, and spread (B,) of the transition."""
    if law.name == "cps":
        keep, std = _cps(sigma_next, law)
        data, noise = to_x0(x, velocity, sigma), to_eps(x, velocity, sigma)
        fresh = within(noise, law.band)
        return expand(1 - sigma_next, x) * data + expand(keep, x) * fresh + expand(sigma_next, x) * (noise - fresh), std
    level, dt = noise_level(sigma, sigma_next, law, grid), sigma - sigma_next
    drift = velocity + expand(level.square() / (2 * sigma), x) * within(to_eps(x, velocity, sigma), law.band)
    return x - expand(dt, x) * drift, level * dt.sqrt()


def _cps(sigma_next: Tensor, law: NoiseLaw) -> tuple[Tensor, Tensor]:
    """Share of the old noise that is kept and spread of the new: together they have the length `sigma_next`."""
    angle = law.level * math.pi / 2
    return sigma_next * math.cos(angle), sigma_next * math.sin(angle)


def _log_density(x_next: Tensor, mean: Tensor, std: Tensor, law: NoiseLaw) -> Tensor:
    square = (x_next - mean).square().flatten(1).mean(1)
    if law.name == "cps":
        return -square
    return -square / (2 * std.square()) - std.log() - math.log(2 * math.pi) / 2
