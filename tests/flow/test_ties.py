"""Bradley-Terry with ties: probabilities that sum to one, and their likelihood against autograd and closed form."""

import math

import pytest
import torch

from reelign.flow.ties import moderated, probabilities, tie_nll

D = torch.linspace(-4, 4, 17, dtype=torch.float64)


@pytest.mark.parametrize("k", [1.5, 2.0, 5.0])
def test_the_three_verdicts_have_probabilities_that_sum_to_one_and_the_likelihood_is_their_logarithm(k):
    p = probabilities(D, k)
    assert torch.allclose(p.sum(-1), torch.ones_like(D))
    for column, worth in ((0, 1), (1, 0), (2, -1)):
        nll = tie_nll(D, torch.full_like(D, worth), k)
        assert torch.allclose(nll, -p[:, column].log(), atol=1e-12)


def test_equal_clips_tie_as_often_as_k_says_and_the_two_sides_are_alike():
    p = probabilities(torch.zeros(1, dtype=torch.float64), 5.0)[0]
    assert p.tolist() == pytest.approx([1 / 6, 4 / 6, 1 / 6])
    assert torch.allclose(probabilities(D, 2.0), probabilities(-D, 2.0).flip(-1))


@pytest.mark.parametrize("worth", [1, 0, -1])
def test_the_gradient_is_that_of_the_closed_form(worth):
    d = D.clone().requires_grad_()
    tie_nll(d, torch.full_like(D, worth), 3.0).sum().backward()
    a, b = torch.sigmoid(D - math.log(3)), torch.sigmoid(-D - math.log(3))
    wanted = {1: -(1 - a), 0: a - b, -1: 1 - b}[worth]
    assert torch.allclose(d.grad, wanted, atol=1e-12)


def test_a_tie_pulls_the_two_together_and_not_at_all_where_they_are_equal():
    d = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    tie_nll(d, torch.zeros(3, dtype=torch.float64), 2.0).sum().backward()
    assert d.grad.sign().tolist() == [-1, 0, 1]


def test_a_difference_that_is_hardly_known_is_shrunk_to_the_mean_of_the_logistic():
    mean, deviation = 1.3, 1.7
    draws = mean + deviation * torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shrunk = moderated(torch.tensor(mean, dtype=torch.float64), torch.tensor(deviation**2, dtype=torch.float64))
    assert float(torch.sigmoid(shrunk)) == pytest.approx(float(torch.sigmoid(draws).mean()), abs=0.01)
    assert float(moderated(torch.tensor(mean), torch.tensor(0.0))) == pytest.approx(mean)


def test_k_of_one_has_no_ties_and_is_refused():
    with pytest.raises(ValueError, match="k > 1"):
        tie_nll(D, D, 1.0)
