"""Flow-DPO and the likelihood of ties against closed forms, autograd and probabilities that must add up."""

import math

import pytest
import torch
from torch import Tensor

from reelign.flow.path import interpolate, velocity_target
from reelign.flow.preference import implicit_reward, preference_loss, preferred, tie_parameter

BETA = 3.0


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def margins(errors: Tensor, reference: Tensor) -> Tensor:
    """Margin of a batch of winners over losers from their errors, (2, P) each."""
    winner, loser = implicit_reward(errors, reference, BETA)
    return winner - loser


def strict(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


def test_the_loss_and_its_gradient_are_those_of_the_paper():
    """d/dl_w = beta/2 sigmoid(-D), d/dl_l = -beta/2 sigmoid(-D)."""
    errors, reference = numbers(2, 5).requires_grad_(), numbers(2, 5, seed=1)
    change = errors - reference
    expected = -torch.log(torch.sigmoid(-BETA / 2 * (change[0] - change[1])))
    loss = preference_loss(margins(errors, reference), strict(5))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), errors)
    doubt = torch.sigmoid(-margins(errors, reference)).detach()
    torch.testing.assert_close(gradient, BETA / 2 * torch.stack([doubt, -doubt]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [1.0, 5.0])
def test_the_gradient_of_every_likelihood_is_that_of_finite_differences(k):
    margin = numbers(6).requires_grad_()
    decided = strict(6) if k == 1 else torch.tensor([True, False, True, False, True, False])
    assert torch.autograd.gradcheck(lambda m: preference_loss(m, decided, k), margin)


def test_at_the_reference_the_loss_is_log_two_and_a_step_helps_the_winner_and_harms_the_loser():
    """Through a network: a step down the gradient lowers the winner's error and raises the loser's."""
    clips, eps = numbers(2, 4, 8), numbers(4, 8, seed=1)
    level = torch.tensor(0.4, dtype=torch.float64)
    weight = numbers(2, 8, 8, seed=2).requires_grad_()  # winner and loser are told apart, as conditions would

    def errors(own: Tensor) -> Tensor:
        predicted = torch.einsum("nbi,nij->nbj", torch.stack([interpolate(x, eps, level) for x in clips]), own)
        return (predicted - torch.stack([velocity_target(x, eps) for x in clips])).square().mean(2)

    before = errors(weight)
    loss = preference_loss(margins(before, before.detach()), strict(4))
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(2)), rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    change = errors(weight - 1e-4 * gradient).detach() - before.detach()
    assert bool((change[0].sum() < 0) & (change[1].sum() > 0))


def test_swapping_winner_and_loser_turns_the_gradient_round():
    errors = numbers(2, 3).requires_grad_()
    (one,) = torch.autograd.grad(preference_loss(margins(errors, errors.detach()), strict(3)).sum(), errors)
    swapped = margins(errors.flip(0), errors.detach().flip(0))
    (other,) = torch.autograd.grad(preference_loss(swapped, strict(3)).sum(), errors)
    torch.testing.assert_close(other, -one, rtol=1e-14, atol=0)


def test_the_mean_over_dimensions_with_beta_is_the_sum_with_beta_over_their_number():
    predicted, target, reference = numbers(2, 3, 40), numbers(2, 3, 40, seed=1), numbers(2, 3, 40, seed=2)
    own, was = (predicted - target).square(), (reference - target).square()
    mean = implicit_reward(own.mean(2), was.mean(2), BETA)
    torch.testing.assert_close(mean, implicit_reward(own.sum(2), was.sum(2), BETA / 40), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [1.5, 3.0, 5.0])
def test_better_worse_and_the_same_have_probabilities_that_add_to_one(k):
    margin = numbers(7) * 4
    better, worse = (preference_loss(m, strict(7), k) for m in (margin, -margin))
    tie = preference_loss(margin, ~strict(7), k)
    total = sum((-loss).exp() for loss in (better, worse, tie))
    torch.testing.assert_close(total, torch.ones(7, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_tie_has_no_sides_and_is_least_and_flat_where_both_rewards_are_equal():
    margin = torch.linspace(-4, 4, 17, dtype=torch.float64, requires_grad=True)
    loss = preference_loss(margin, torch.zeros(17, dtype=torch.bool), 5.0)
    torch.testing.assert_close(loss, loss.flip(0), rtol=1e-13, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), margin)
    assert float(gradient[8]) == 0
    assert bool((gradient[:8] < 0).all() and (gradient[9:] > 0).all())


def test_without_ties_it_is_the_loss_of_the_paper_and_a_tie_is_refused():
    margin = numbers(4)
    torch.testing.assert_close(preference_loss(margin, strict(4), tie_parameter(0.0)), -torch.sigmoid(margin).log())
    with pytest.raises(ValueError, match="allows no ties"):
        preference_loss(margin, torch.tensor([True, True, True, False]), 1.0)


@pytest.mark.parametrize("ties", [1, 3, 9])
def test_k_is_the_likeliest_at_the_reference(ties):
    decided, margin = torch.arange(12) >= ties, torch.zeros(12, dtype=torch.float64)
    best = tie_parameter(ties / 12)
    losses = [float(preference_loss(margin, decided, best * factor).sum()) for factor in (0.99, 1.0, 1.01)]
    assert losses[1] < min(losses[0], losses[2])
    torch.testing.assert_close((-preference_loss(margin, decided, best)).exp()[0].item(), ties / 12)


def test_large_margins_stay_finite():
    margin = torch.tensor([-1e6, 1e6])
    for decided in (strict(2), ~strict(2)):
        assert bool(preference_loss(margin, decided, 3.0).isfinite().all())


def test_the_accuracy_counts_winners_with_more_reward_and_is_a_coin_at_the_reference():
    assert preferred(torch.tensor([2.0, 1e-9, -1.0, 0.0])).tolist() == [1.0, 1.0, 0.0, 0.5]
    assert float(preferred(margins(numbers(2, 4), numbers(2, 4))).mean()) == 0.5
