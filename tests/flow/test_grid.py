import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from reelign.flow.grid import density_weight, sample_sigma, shift_sigma, sigma_grid


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
@pytest.mark.parametrize("steps", [1, 2, 8, 20, 50])
def test_unipc_grid_is_exactly_the_one_wan_ships(steps, shift):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(steps)
    assert torch.equal(sigma_grid(steps, shift, "unipc").float(), scheduler.sigmas)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("steps", [2, 8, 20])
def test_euler_grid_is_that_of_the_flow_match_scheduler(steps, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    assert torch.allclose(sigma_grid(steps, shift, "euler").float(), scheduler.sigmas, atol=1e-6)


def test_a_grid_falls_from_noise_to_exactly_zero():
    for spacing in ("unipc", "euler"):
        grid = sigma_grid(20, 3.0, spacing)
        assert grid.dtype == torch.float64
        assert len(grid) == 21
        assert bool((grid.diff() < 0).all())
        assert grid[0] > 0.99999
        assert grid[-1] == 0


@pytest.mark.parametrize(("steps", "shift"), [(0, 3.0), (-1, 3.0), (4, 0.0), (4, -1.0)])
def test_an_impossible_grid_is_an_error(steps, shift):
    with pytest.raises(ValueError, match="steps >= 1 and shift > 0"):
        sigma_grid(steps, shift)


def test_the_shift_keeps_both_ends_and_composes():
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = shift_sigma(sigma, 3.0)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert bool((shifted[1:-1] > sigma[1:-1]).all())
    assert torch.allclose(shift_sigma(shifted, 2.0), shift_sigma(sigma, 6.0))


def test_logit_normal_levels_have_the_quantiles_of_a_sigmoid_of_a_normal():
    drawn = sample_sigma(200_000, "logit_normal", 1.0, torch.Generator().manual_seed(0)).double()
    wanted = torch.sigmoid(
        torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    )
    assert torch.allclose(torch.quantile(drawn, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)), wanted, atol=5e-3)


def test_uniform_levels_stay_inside_and_are_flat():
    drawn = sample_sigma(200_000, "uniform", 1.0, torch.Generator().manual_seed(0))
    assert 0 < float(drawn.min()) < float(drawn.max()) < 1
    assert torch.allclose(torch.histc(drawn, 10, 0, 1) / len(drawn), torch.full((10,), 0.1), atol=4e-3)


def test_weighting_uniform_levels_equals_drawing_logit_normal_ones():
    """The mean of any function under the density is the weighted mean over uniform levels."""
    sigma = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    weight = density_weight(sigma, "logit_normal_weight")
    drawn = sample_sigma(400_000, "logit_normal", 1.0, torch.Generator().manual_seed(1)).double()
    assert abs(float(weight.mean()) - 1) < 1e-4
    for power in (1, 2, 3):
        assert abs(float((weight * sigma**power).mean() - (drawn**power).mean())) < 2e-3


def test_only_the_weighting_density_weighs():
    sigma = torch.tensor([0.1, 0.9])
    for density in ("uniform", "logit_normal"):
        assert torch.equal(density_weight(sigma, density), torch.ones(2))
