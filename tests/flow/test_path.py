import torch
from hypothesis import given
from hypothesis import strategies as st

from reelign.flow.path import expand, interpolate, to_eps, to_x0, velocity_target


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(3, 2, 4, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore


@given(st.floats(0.0, 1.0), st.integers(0, 1000))
def test_data_and_noise_come_back_from_a_point_and_its_velocity(sigma, seed):
    x0, eps = batch(seed)
    x, v = interpolate(x0, eps, sigma), velocity_target(x0, eps)
    assert torch.allclose(to_x0(x, v, sigma), x0, atol=1e-12)
    assert torch.allclose(to_eps(x, v, sigma), eps, atol=1e-12)


def test_the_velocity_is_the_derivative_of_the_path():
    x0, eps = batch(0)
    derivative = torch.autograd.functional.jacobian(
        lambda sigma: interpolate(x0, eps, sigma), torch.tensor(0.3, dtype=torch.float64)
    )
    assert torch.allclose(derivative, velocity_target(x0, eps))


def test_each_sample_of_a_batch_has_its_own_level():
    x0, eps = batch(1)
    sigma = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    x = interpolate(x0, eps, sigma)
    assert torch.equal(x[0], x0[0])
    assert torch.equal(x[2], eps[2])
    assert torch.allclose(x[1], (x0[1] + eps[1]) / 2)
    assert expand(sigma, x0).shape == (3, 1, 1)
    assert expand(0.5, x0) == 0.5
