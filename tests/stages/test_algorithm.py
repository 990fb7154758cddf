"""Presets are data, and they say which steps are stochastic."""

import pytest
import torch
from pydantic import ValidationError

from reelign.errors import ReelignError
from reelign.stages.algorithm import PRESETS, Algorithm

KEYS = [(0, position) for position in range(40)]


def steps(found: torch.Tensor) -> list[int]:
    return sorted({int(step) for step in found.nonzero()[:, 1]})


def test_a_preset_gives_the_defaults_and_what_is_said_wins():
    assert Algorithm() == Algorithm(preset="reelign")
    flow = Algorithm.model_validate({"preset": "flow-grpo"})
    assert (flow.steps, flow.weight, flow.shared_noise) == ("all", "none", False)
    assert Algorithm.model_validate({"preset": "flow-grpo", "weight": "rectified"}).weight == "rectified"
    assert Algorithm.model_validate(flow.model_dump()) == flow
    for name in PRESETS:
        assert Algorithm.model_validate({"preset": name}).preset == name


def test_only_a_group_that_shares_noise_and_step_branches():
    assert Algorithm().branches
    for change in ({"shared_noise": False}, {"iso_temporal": False}, {"steps": "all"}, {"objective": "nft"}):
        assert not Algorithm.model_validate(change).branches


def test_one_step_comes_from_the_noisy_half_and_groups_have_their_own():
    found = Algorithm().stochastic_steps(20, 0, KEYS)
    assert found.sum(1).tolist() == [1] * len(KEYS)
    assert set(steps(found)) <= set(range(10))
    assert len(steps(found)) > 5
    again = Algorithm().stochastic_steps(20, 7, [KEYS[3], KEYS[3], KEYS[5]])
    assert torch.equal(again, found[[3, 3, 5]])


@pytest.mark.parametrize("name", ["reelign", "flash-grpo", "flow-grpo", "dance-grpo", "mix-grpo"])
@pytest.mark.parametrize("grid", [2, 3, 20])
def test_the_last_transition_is_never_stochastic_and_there_is_always_one(name, grid):
    for first, last in ((0.0, 0.5), (0.0, 1.0), (0.9, 1.0)):
        algorithm = Algorithm.model_validate({"preset": name, "first": first, "last": last})
        for update in (0, 9, 1000):
            found = algorithm.stochastic_steps(grid, update, KEYS)
            assert not found[:, -1].any()
            assert found.any(1).all()


@pytest.mark.parametrize("name", ["reelign", "flow-grpo", "mix-grpo"])
def test_a_grid_of_one_step_is_refused_and_of_two_trains_the_first(name):
    algorithm = Algorithm.model_validate({"preset": name})
    with pytest.raises(ReelignError, match=r"a grid of 1 has none\. Raise sampler\.steps"):
        algorithm.stochastic_steps(1, 0, KEYS)
    assert algorithm.candidates(2) == range(1)
    assert steps(algorithm.stochastic_steps(2, 0, KEYS)) == [0]
    assert steps(algorithm.stochastic_steps(3, 0, KEYS)) == ([0, 1] if name == "flow-grpo" else [0])


def test_a_method_without_stochastic_steps_takes_any_grid():
    nft = Algorithm.model_validate({"preset": "diffusion-nft"})
    assert not nft.candidates(20)
    assert nft.stochastic_steps(1, 0, KEYS).shape == (len(KEYS), 1)


def test_the_window_moves_and_comes_round():
    algorithm = Algorithm.model_validate({"preset": "mix-grpo", "window": 4, "window_stays": 3})
    starts = [steps(algorithm.stochastic_steps(20, update, KEYS[:1]))[0] for update in range(24)]
    assert starts == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3 + [6] * 3 + [0] * 3
    assert len(steps(algorithm.stochastic_steps(20, 0, KEYS))) == 4


def test_all_but_the_last_and_none():
    assert steps(Algorithm(steps="all").stochastic_steps(20, 0, KEYS)) == list(range(19))
    assert not Algorithm.model_validate({"preset": "diffusion-nft"}).stochastic_steps(20, 0, KEYS).any()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"first": 0.5, "last": 0.5}, "must be below"),
        ({"weight": "guard", "law": "cps"}, "SDE law"),
        ({"kl": 0.1, "kl_space": "velocity", "law": "cps"}, "SDE law"),
        ({"kl": 0.1, "objective": "nft"}, "objective=grpo"),
        ({"preset": "grpo"}, "reelign"),
        ({"clip_rang": 1}, "clip_rang"),
    ],
)
def test_what_makes_no_sense_is_refused(values, reason):
    with pytest.raises(ValidationError, match=reason):
        Algorithm.model_validate(values)
