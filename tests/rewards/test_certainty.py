"""The last layer's Laplace approximation, against autograd and closed form, and which pairs it asks about."""

import pytest
import torch

from reelign.errors import ReelignError
from reelign.feedback.active import most_telling
from reelign.flow.ties import probabilities, tie_nll
from reelign.rewards.certainty import PRIOR, Certainty, curvature

AXES = ("visual", "motion")


def drawn(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, len(AXES), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def after(features: torch.Tensor) -> Certainty:
    given = torch.ones(features.shape[:2], dtype=torch.bool)
    return Certainty.of(AXES, features, torch.zeros(features.shape[:2], dtype=torch.float64), given, 2.0)


def test_the_curvature_is_the_expected_second_derivative_of_a_votes_likelihood():
    for value in (-2.0, 0.0, 0.7):
        d = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        wanted = 0.0
        for p, worth in zip(probabilities(d.detach(), 3.0), (1, 0, -1), strict=True):
            loss = tie_nll(d, torch.tensor(worth), 3.0)
            [slope] = torch.autograd.grad(loss, d, create_graph=True)
            [bend] = torch.autograd.grad(slope, d)
            wanted += float(p * bend)
        assert float(curvature(d.detach(), 3.0)) == pytest.approx(wanted, abs=1e-12)


def test_before_any_vote_on_an_axis_a_usual_pair_has_the_prior_variance():
    features = drawn(4000)
    given = torch.zeros(features.shape[:2], dtype=torch.bool)
    found = Certainty.of(AXES, features, torch.zeros(features.shape[:2]), given, 2.0)
    variance = ((features[:, 0] @ torch.linalg.inv(found.precision["visual"])) * features[:, 0]).sum(1)
    assert float(variance.mean()) == pytest.approx(PRIOR, rel=0.01)


def test_it_is_written_and_read_and_a_missing_file_is_named(tmp_path):
    found = after(drawn(20))
    found.save(tmp_path)
    again = Certainty.load(tmp_path, 2.0)
    assert all(torch.allclose(again.precision[axis], found.precision[axis], rtol=1e-6) for axis in AXES)
    with pytest.raises(ReelignError, match=r"certainty\.safetensors"):
        Certainty.load(tmp_path / "nowhere", 2.0)


def test_the_pair_that_votes_left_open_is_asked_about_first():
    known = drawn(200)
    known[..., 5] = 0  # no vote so far tells anything of the last feature
    asked = drawn(10, seed=1)
    asked[..., 5] = 0
    asked[7, :, 5] = 3.0
    chosen = most_telling(asked, torch.zeros(10, 2, dtype=torch.float64), after(known), AXES, 10)
    assert next(iter(chosen)) == 7
    assert list(chosen.values()) == sorted(chosen.values(), reverse=True)


def test_the_same_question_is_not_asked_twice_while_others_are_open():
    asked = drawn(6, seed=2)
    asked[1] = asked[0]
    asked *= torch.tensor([3.3, 3.3, 3.0, 3.0, 3.0, 3.0]).view(-1, 1, 1) / asked.norm(dim=-1, keepdim=True)
    chosen = list(most_telling(asked, torch.zeros(6, 2, dtype=torch.float64), after(drawn(20)), AXES, 6))
    assert chosen[0] in (0, 1)
    assert chosen[1] not in (0, 1)


def test_choosing_one_by_one_is_what_adding_the_votes_would_give():
    asked, start = drawn(8, seed=4), after(drawn(30))
    zeros = torch.zeros(8, 2, dtype=torch.float64)
    chosen = most_telling(asked, zeros, start, AXES, 2)
    first = next(iter(chosen))
    h = float(curvature(torch.zeros(1, dtype=torch.float64), 2.0))
    grown = {
        axis: start.precision[axis] + h * torch.outer(asked[first, n], asked[first, n]) for n, axis in enumerate(AXES)
    }
    others = [place for place in range(8) if place != first]
    again = most_telling(asked[others], zeros[others], Certainty(grown, 2.0), AXES, 1)
    [(place, gain)] = again.items()
    assert others[place] == list(chosen)[1]
    assert gain == pytest.approx(list(chosen.values())[1])


def test_a_pair_whose_outcome_is_certain_tells_little():
    asked = drawn(1, seed=5).expand(2, -1, -1).clone()
    differences = torch.tensor([[8.0, 8.0], [0.5, 0.5]], dtype=torch.float64)
    assert next(iter(most_telling(asked, differences, after(drawn(30)), AXES, 2))) == 1
