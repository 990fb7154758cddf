"""Invariants (a) to (f), (h) and (i) of the method, in float64."""

import math
from itertools import pairwise

import pytest
import torch

from reelign.flow.band import to_band, within
from reelign.flow.grid import shift_sigma, sigma_grid
from reelign.flow.path import to_eps, to_x0
from reelign.flow.step import NoiseLaw, gradient_scale, kl, noise_level, ode_step, sde_step

GRID = sigma_grid(20, 3.0, "euler")
LAWS = [
    NoiseLaw("flow", 0.7),
    NoiseLaw("dance", 0.3),
    NoiseLaw("linear"),
    NoiseLaw("truncated", 0.45),
    NoiseLaw("flow", 0.7, band=0.5),
    NoiseLaw("dance", 0.3, band=0.3),
    NoiseLaw("cps", 0.8),
    NoiseLaw("cps", 0.8, band=0.5),
]
SDE_LAWS = [law for law in LAWS if law.name != "cps"]
STEPS = [0, 1, 5, 12, 18]


def names(law: NoiseLaw) -> str:
    return f"{law.name} {law.band:g}"


def setting(step: int, seed: int = 0, batch: int = 2) -> tuple[torch.Tensor, ...]:
    """x, velocity, noise (B, 3, 4, 5) and the levels (B,) of a step of the grid."""
    generator = torch.Generator().manual_seed(seed)
    x, velocity, noise = (torch.randn(batch, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    return x, velocity, noise, GRID[step].expand(batch), GRID[step + 1].expand(batch)


@pytest.mark.parametrize("step", STEPS)
def test_a_without_noise_the_sde_is_the_ode(step):
    x, velocity, noise, sigma, sigma_next = setting(step)
    found = sde_step(x, velocity, sigma, sigma_next, NoiseLaw("dance", 1e-9), GRID, noise=noise)
    assert torch.allclose(found.x_next, ode_step(x, velocity, sigma, sigma_next), atol=1e-8)


@pytest.mark.parametrize("law", LAWS, ids=names)
def test_b_the_sde_keeps_the_marginals_of_the_ode(law):
    """Data N(m, s^2) has the marginals N((1 - sigma) m, (1 - sigma)^2 s^2 + sigma^2), and a velocity in closed form.

    The discretisation error shrinks with the step, so the grid is fine and the tolerance a few standard errors.
    """
    mean, spread, particles = 1.5, 0.5, 40_000
    grid = sigma_grid(400, 1.0, "euler")
    if law.name == "cps":
        law = NoiseLaw("cps", 0.1, law.band)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(particles // 20, 4, 5, generator=generator, dtype=torch.float64)
    x = (1 - grid[0]) * mean + ((1 - grid[0]) ** 2 * spread**2 + grid[0] ** 2).sqrt() * x
    for sigma, sigma_next in pairwise(grid[:-1]):
        variance = (1 - sigma) ** 2 * spread**2 + sigma**2
        data = mean + (1 - sigma) * spread**2 / variance * (x - (1 - sigma) * mean)
        velocity = (x - data) / sigma
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        levels = (sigma.expand(len(x)), sigma_next.expand(len(x)))
        x = sde_step(x, velocity, *levels, law, grid, noise=noise).x_next
        if abs(float(sigma_next) - 0.5) < 1e-3 or sigma_next == grid[-2]:
            wanted = ((1 - sigma_next) ** 2 * spread**2 + sigma_next**2).sqrt()
            assert abs(float(x.mean() - (1 - sigma_next) * mean)) < 0.02
            assert abs(float(x.std() / wanted) - 1) < 0.03


@pytest.mark.parametrize("law", [NoiseLaw("flow", 0.7, band=0.5), NoiseLaw("cps", 0.1, band=0.5)], ids=names)
def test_b_noise_in_a_band_keeps_the_marginals_of_data_that_mix_it_with_the_rest(law):
    """Data N(0, C) where C couples the band to its complement: the marginals have (1 - sigma)^2 C + sigma^2.

    All is linear here: a step of the unit vectors tells what becomes of any covariance, and nothing has to be drawn.
    """
    grid, side = sigma_grid(400, 1.0, "euler"), 3
    generator = torch.Generator().manual_seed(5)
    mix = torch.randn(side**2, side**2, generator=generator, dtype=torch.float64) / side
    unit, none = torch.eye(side**2, dtype=torch.float64), torch.zeros(side**2, side**2, dtype=torch.float64)

    def covariance(sigma: torch.Tensor) -> torch.Tensor:
        return (1 - sigma) ** 2 * mix @ mix.T + sigma**2 * unit

    found = covariance(grid[0])
    for sigma, sigma_next in pairwise(grid[:-1]):
        x, noise = torch.cat([unit, none]), torch.cat([none, unit])
        data = (1 - sigma) * x @ torch.linalg.solve(covariance(sigma), mix @ mix.T)
        video, velocity, drawn = (value.view(-1, side, side) for value in (x, (x - data) / sigma, noise))
        levels = (sigma.expand(len(x)), sigma_next.expand(len(x)))
        moved, spread = sde_step(video, velocity, *levels, law, grid, noise=drawn).x_next.flatten(1).split(side**2)
        found = moved.T @ found @ moved + spread.T @ spread
    wanted = covariance(grid[-2])
    assert float((found - wanted).norm() / wanted.norm()) < 0.012


def test_a_band_moves_nothing_outside_it_and_has_a_density_of_its_own_size():
    x, velocity, noise, sigma, sigma_next = setting(4)
    law = NoiseLaw("flow", 0.7, band=0.5)
    first, second = (sde_step(x, velocity, sigma, sigma_next, law, GRID, noise=n) for n in (noise, -noise))
    moved = first.x_next - second.x_next
    assert torch.allclose(within(moved, 0.5), moved, atol=1e-12)
    assert float(moved.abs().max()) > 0.1
    assert first.mean.shape == (2, 3, 2, 3)  # of 4 rows and 5 columns
    white = sde_step(x, velocity, sigma, sigma_next, NoiseLaw("flow", 0.7), GRID, noise=noise)
    assert torch.equal(to_band(x, 1.0), x)
    assert not torch.allclose(white.logp, first.logp)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("law", LAWS, ids=names)
def test_c_the_gradient_of_the_log_probability_is_minus_lambda_e_over_d(law, step):
    x, velocity, noise, sigma, sigma_next = setting(step)
    drawn = sde_step(x, velocity, sigma, sigma_next, law, GRID, noise=noise)
    leaf = velocity.clone().requires_grad_()
    logp = sde_step(x, leaf, sigma, sigma_next, law, GRID, x_next=drawn.x_next).logp
    (gradient,) = torch.autograd.grad(logp.sum(), leaf)
    scale = gradient_scale(sigma, sigma_next, law, GRID).view(-1, 1, 1, 1)
    dimensions = to_band(x[0], law.band).numel()
    assert torch.allclose(gradient, -scale * within(noise, law.band) / dimensions, rtol=1e-9, atol=1e-12)


def test_d_the_ten_constants_of_the_linear_law():
    """q = 1 / lambda of the first ten of 20 steps at shift 3.

    The published constants come from the grid of earlier diffusers, which ran from 0.999 to 0 before the shift; the
    grid that diffusers ships today starts 1e-6 below 1 and ends a step above 0, so it is written out here.
    """
    grid = shift_sigma(torch.linspace(0.999, 0.0, 21, dtype=torch.float64), 3.0)
    wanted = [7.4770, 7.0414, 6.6112, 6.1867, 5.7682, 5.3559, 4.9502, 4.5513, 4.1596, 3.7754]
    found = 1 / gradient_scale(grid[:10], grid[1:11], NoiseLaw("linear"), grid)
    assert [round(float(q), 4) for q in found] == wanted
    assert [int(1000 * level) for level in grid[:10]] == [999, 982, 963, 944, 922, 899, 874, 847, 817, 785]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("law", SDE_LAWS, ids=names)
def test_e_the_divergence_is_half_lambda_squared_times_the_velocities_distance(law, step):
    x, velocity, noise, sigma, sigma_next = setting(step)
    other = velocity + 0.1 * torch.randn_like(velocity)
    ours = sde_step(x, velocity, sigma, sigma_next, law, GRID, noise=noise)
    theirs = sde_step(x, other, sigma, sigma_next, law, GRID, noise=noise)
    scale = gradient_scale(sigma, sigma_next, law, GRID)
    wanted = scale**2 / 2 * to_band(velocity - other, law.band).square().flatten(1).mean(1)
    assert torch.allclose(kl(ours.mean, theirs.mean, ours.std), wanted, rtol=1e-9)
    normal = torch.distributions.Normal
    spread = ours.std.view(-1, 1, 1, 1)
    closed = torch.distributions.kl_divergence(normal(ours.mean, spread), normal(theirs.mean, spread))
    assert torch.allclose(closed.flatten(1).mean(1), wanted, rtol=1e-9)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("law", SDE_LAWS, ids=names)
def test_f_the_log_ratio_is_linear_and_quadratic_in_the_change_of_velocity(law, step):
    x, velocity, noise, sigma, sigma_next = setting(step)
    change = 0.05 * torch.randn_like(velocity)
    old = sde_step(x, velocity, sigma, sigma_next, law, GRID, noise=noise)
    new = sde_step(x, velocity + change, sigma, sigma_next, law, GRID, x_next=old.x_next)
    scale = gradient_scale(sigma, sigma_next, law, GRID)
    noise, change = to_band(noise, law.band), to_band(change, law.band)
    linear = (noise * change).flatten(1).mean(1)
    wanted = -scale * linear - scale**2 / 2 * change.square().flatten(1).mean(1)
    assert torch.allclose(new.logp - old.logp, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("law", SDE_LAWS, ids=names)
def test_the_log_probability_is_that_of_a_normal_distribution(law):
    x, velocity, noise, sigma, sigma_next = setting(4)
    found = sde_step(x, velocity, sigma, sigma_next, law, GRID, noise=noise)
    reached = to_band(found.x_next, law.band)
    density = torch.distributions.Normal(found.mean, found.std.view(-1, 1, 1, 1)).log_prob(reached)
    assert torch.allclose(found.logp, density.flatten(1).mean(1), rtol=1e-10)


def test_h_dance_is_the_flow_formula_at_a_constant_level():
    x, velocity, noise, sigma, sigma_next = setting(6)
    eta = 0.3
    same = NoiseLaw("flow", eta / math.sqrt(float(sigma[0]) / (1 - float(sigma[0]))))
    dance = sde_step(x, velocity, sigma, sigma_next, NoiseLaw("dance", eta), GRID, noise=noise)
    flow = sde_step(x, velocity, sigma, sigma_next, same, GRID, noise=noise)
    assert torch.allclose(dance.mean, flow.mean, atol=1e-12)
    assert torch.allclose(dance.logp, flow.logp, atol=1e-12)


@pytest.mark.parametrize("level", [0.2, 0.5, 0.8, 1.0])
def test_i_cps_keeps_the_noise_level(level):
    """Around the predicted data, the kept and the fresh noise together have spread sigma'."""
    generator = torch.Generator().manual_seed(1)
    data = torch.full((1, 200_000), 0.7, dtype=torch.float64)
    eps, fresh = (torch.randn(data.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    sigma, sigma_next = torch.tensor([0.8], dtype=torch.float64), torch.tensor([0.6], dtype=torch.float64)
    x, velocity = (1 - 0.8) * data + 0.8 * eps, eps - data
    assert torch.allclose(to_x0(x, velocity, sigma), data)
    assert torch.allclose(to_eps(x, velocity, sigma), eps)
    found = sde_step(x, velocity, sigma, sigma_next, NoiseLaw("cps", level), GRID, noise=fresh)
    part = found.x_next - (1 - sigma_next) * data
    assert abs(float(part.std()) - 0.6) < 3e-3
    kept = float((found.mean - (1 - sigma_next) * data).std())
    assert math.hypot(kept, float(found.std)) == pytest.approx(0.6, abs=3e-3)


def test_truncated_bounds_the_spread_also_in_the_drift():
    law = NoiseLaw("truncated", 0.05)
    sigma, sigma_next = GRID[:-2], GRID[1:-1]
    level = noise_level(sigma, sigma_next, law, GRID)
    spread = level * (sigma - sigma_next).sqrt()
    assert float(spread.max()) <= 0.05 + 1e-12
    x, velocity, noise, *_ = setting(0, batch=len(sigma))
    found = sde_step(x, velocity, sigma, sigma_next, law, GRID, noise=noise)
    drift = velocity + (level**2 / (2 * sigma)).view(-1, 1, 1, 1) * to_eps(x, velocity, sigma)
    assert torch.allclose(found.mean, x - (sigma - sigma_next).view(-1, 1, 1, 1) * drift)


def test_the_flow_law_is_finite_at_pure_noise():
    level = noise_level(torch.ones(1, dtype=torch.float64), GRID[1:2], NoiseLaw("flow", 0.7), GRID)
    assert float(level) == pytest.approx(0.7 * math.sqrt(1 / (1 - float(GRID[1]))))


def test_the_last_step_is_never_stochastic():
    x, velocity, noise, *_ = setting(0)
    with pytest.raises(ValueError, match="last transition"):
        sde_step(x, velocity, GRID[-2].expand(2), GRID[-1].expand(2), LAWS[0], GRID, noise=noise)


def test_a_step_is_either_drawn_or_replayed():
    x, velocity, noise, sigma, sigma_next = setting(0)
    with pytest.raises(ValueError, match="either"):
        sde_step(x, velocity, sigma, sigma_next, LAWS[0], GRID)
    with pytest.raises(ValueError, match="either"):
        sde_step(x, velocity, sigma, sigma_next, LAWS[0], GRID, noise=noise, x_next=x)


def test_cps_is_no_discretised_sde():
    with pytest.raises(ValueError, match="cps"):
        noise_level(GRID[:1], GRID[1:2], NoiseLaw("cps"), GRID)


@pytest.mark.parametrize("law", LAWS, ids=names)
def test_the_log_probability_belongs_to_the_stored_point(law):
    """x' is rounded to its storage type before it is scored: a replay of the stored bf16 point gives the same logp."""
    x, velocity, noise, sigma, sigma_next = setting(3)
    drawn = sde_step(x.bfloat16(), velocity, sigma, sigma_next, law, GRID, noise=noise)
    assert drawn.x_next.dtype == torch.bfloat16
    again = sde_step(x.bfloat16(), velocity, sigma, sigma_next, law, GRID, x_next=drawn.x_next)
    assert torch.equal(drawn.logp, again.logp)
