import pytest
import torch

from reelign.flow.match import HIGHEST, LOWEST, matching_gradient, matching_levels, matching_loss


def clips(seed: int) -> torch.Tensor:
    return torch.randn(3, 2, 4, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_l_the_gradient_is_zero_where_the_critic_predicts_what_the_teacher_predicts():
    x, real = clips(0), clips(1)
    assert torch.equal(matching_gradient(x, real, real), torch.zeros_like(x))


def test_the_gradient_is_the_difference_in_units_of_the_teachers_correction_of_each_clip():
    x, real, fake = clips(0), clips(1), clips(2)
    found = matching_gradient(x, real, fake)
    for row in range(3):
        size = (x[row] - real[row]).abs().mean()
        torch.testing.assert_close(found[row], (fake[row] - real[row]) / size)


def test_the_gradient_of_the_loss_is_what_was_asked_for():
    x, gradient = clips(0).requires_grad_(True), clips(3)
    matching_loss(x, gradient).backward()
    torch.testing.assert_close(x.grad, gradient / x.numel())


def test_a_clip_that_is_what_the_teacher_predicts_gives_no_nan():
    x = clips(0)
    assert torch.isfinite(matching_gradient(x, x, x)).all()


def test_following_the_gradient_matches_a_gaussian():
    """A student that is one number, both scores in closed form: it ends at the teacher's mean."""
    teacher, student = torch.tensor(2.0, dtype=torch.float64), torch.zeros((), dtype=torch.float64, requires_grad=True)
    random = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD([student], lr=0.05)
    for _ in range(300):
        x = student + 0.1 * torch.randn(64, 16, generator=random, dtype=torch.float64)
        levels = matching_levels(64, 1.0, random).double()[:, None]
        seen = (1 - levels) * x.detach() + levels * torch.randn(64, 16, generator=random, dtype=torch.float64)

        def denoised(mean, seen=seen, levels=levels):
            spread = 0.01 * (1 - levels).square() + levels.square()
            return mean + 0.01 * (1 - levels) / spread * (seen - (1 - levels) * mean)

        loss = matching_loss(x, matching_gradient(x, denoised(teacher), denoised(student.detach())))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(student.detach()) == pytest.approx(2.0, abs=0.1)


def test_levels_stay_away_from_the_ends_and_a_shift_moves_them_to_the_noise():
    plain, shifted = (matching_levels(4000, shift, torch.Generator().manual_seed(1)) for shift in (1.0, 5.0))
    assert plain.min() >= LOWEST
    assert shifted.max() <= HIGHEST
    assert float(plain.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(shifted.median()) == pytest.approx(5 * 0.5 / (1 + 4 * 0.5), abs=0.02)
