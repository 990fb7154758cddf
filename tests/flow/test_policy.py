"""Advantages, the surrogate, rectification and GRPO-Guard: closed forms in float64, gradients by autograd."""

import pytest
import torch

from reelign.flow.grid import sigma_grid
from reelign.flow.policy import (
    best_and_worst,
    group_advantages,
    guard_weights,
    guarded_ratio,
    ratio,
    rectified,
    surrogate,
    velocity_kl,
)
from reelign.flow.step import NoiseLaw, gradient_scale, kl, sde_step

GRID = sigma_grid(20, 3.0, "euler")
SDE_LAWS = [NoiseLaw("flow", 0.7), NoiseLaw("dance", 0.3), NoiseLaw("linear"), NoiseLaw("truncated", 0.45)]
LAWS = [*SDE_LAWS, NoiseLaw("cps", 0.8)]


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_an_advantage_is_the_distance_to_the_groups_mean_in_its_own_spread():
    found = group_advantages({"r": rows([0, 1, 2, 5], [10, 10, 14, 14])}, {"r": 1.0})
    for got, values in zip(found.values.double(), ([0, 1, 2, 5], [10, 10, 14, 14]), strict=True):
        wanted = rows(*values)
        assert torch.allclose(got, (wanted - wanted.mean()) / wanted.std(correction=0), atol=1e-6)
    assert found.kept.tolist() == [True, True]
    assert found.zero_spread == {"r": 0.0}


def test_each_reward_is_normalised_before_it_is_weighed():
    small, large = rows([0.1, 0.2, 0.4], [0.3, 0.2, 0.1]), rows([5, 900, 2], [3, 3, 4])
    weights = {"small": 2.0, "large": 1.0}
    found = group_advantages({"small": small, "large": large}, weights)
    rescaled = group_advantages({"small": small * 1e-3 - 7, "large": large * 50}, weights)
    assert torch.allclose(found.values, rescaled.values, atol=1e-5)
    one, other = (group_advantages({"r": values}, {"r": 1.0}).values for values in (small, large))
    assert torch.allclose(found.values, 2 * one + other, atol=1e-6)
    negative = group_advantages({"r": small}, {"r": -1.0}).values
    assert torch.allclose(negative, -one)


@pytest.mark.parametrize(
    ("denominator", "units"), [("group", (1.0, 4.0)), ("batch", (8.5**0.5,) * 2), ("max_group", (4.0, 4.0))]
)
def test_what_a_deviation_is_measured_in(denominator, units):
    values = rows([1, -1, 1, -1], [4, -4, 4, -4])
    found = group_advantages({"r": values}, {"r": 1.0}, denominator)
    assert torch.allclose(found.values.double(), values / rows(*units)[:, None], atol=1e-6)


@pytest.mark.parametrize("denominator", ["group", "batch", "max_group"])
def test_a_group_without_spread_is_dropped_and_counted_and_changes_no_other(denominator):
    flat, alive = [0.1 + 0.2] * 3, [1.0, 2.0, 6.0]
    found = group_advantages({"r": rows(flat, alive, flat)}, {"r": 1.0}, denominator)
    alone = group_advantages({"r": rows(alive)}, {"r": 1.0}, denominator)
    assert found.kept.tolist() == [False, True, False]
    assert found.zero_spread["r"] == pytest.approx(2 / 3)
    assert found.values[0].abs().sum() == 0
    assert torch.equal(found.values[1:2], alone.values)


def test_a_group_lives_when_one_of_its_rewards_does_and_the_others_add_nothing():
    found = group_advantages({"a": rows([1, 1, 1]), "b": rows([1, 2, 3])}, {"a": 5.0, "b": 1.0})
    assert found.kept.tolist() == [True]
    assert found.zero_spread == {"a": 1.0, "b": 0.0}
    assert torch.equal(found.values, group_advantages({"b": rows([1, 2, 3])}, {"b": 1.0}).values)
    ignored = group_advantages({"a": rows([1, 1, 1]), "b": rows([1, 2, 3])}, {"a": 1.0, "b": 0.0})
    assert ignored.kept.tolist() == [False]


def test_an_outlier_is_clipped_and_counted():
    found = group_advantages({"r": rows([0.0] * 63 + [1.0])}, {"r": 1.0}, bound=2.0)
    assert float(found.values.max()) == 2.0
    assert found.clipped == pytest.approx(1 / 64)


def test_a_reward_without_weight_has_no_say():
    values = {"a": rows([1, 2, 3]), "b": rows([9, 1, 5])}
    assert torch.equal(
        group_advantages(values, {"a": 1.0}).values, group_advantages({"a": values["a"]}, {"a": 1.0}).values
    )


def test_a_group_of_one_and_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="group of one"):
        group_advantages({"r": rows([1.0], [2.0])}, {"r": 1.0})
    with pytest.raises(ValueError, match="one shape"):
        group_advantages({"a": rows([1, 2]), "b": rows([1, 2, 3])}, {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="one shape"):
        group_advantages({"a": rows([1, 2])}, {})


def test_the_best_and_the_worst_of_a_group():
    values = rows([0.3, -2, 5, 0, -1, 1], [6, 5, 4, 3, 2, 1])
    assert [set(row) for row in best_and_worst(values, 4).tolist()] == [{2, 5, 1, 4}, {0, 1, 4, 5}]
    for count in (3, 8, 0):
        with pytest.raises(ValueError, match="even count"):
            best_and_worst(values, count)


def test_advantages_never_make_the_ratio_larger():
    surrogate(torch.ones(4, 3), torch.ones(4, 1), 0.1)
    for shape in ((4, 4), (4, 1, 3), (5,)):
        with pytest.raises((ValueError, RuntimeError)):
            surrogate(torch.ones(4), torch.ones(shape), 0.1)
    with pytest.raises(ValueError, match="do not broadcast into"):
        surrogate(torch.ones(4), torch.ones(4, 4), 0.1)


def test_the_surrogate_stops_where_the_policy_has_moved_far_enough():
    r = rows(0.8, 1.0, 1.2).requires_grad_()
    for advantage, alive in ((1.0, [1, 1, 0]), (-1.0, [0, 1, 1])):
        (gradient,) = torch.autograd.grad(surrogate(r, rows(advantage), 0.1).sum(), r)
        assert gradient.tolist() == [-advantage * a for a in alive]


def setting(step: int, change: float, law: NoiseLaw):
    """A stored transition and the same under a velocity that moved: (old, new, change of v, noise, velocity leaf)."""
    generator = torch.Generator().manual_seed(step)
    x, velocity, noise, moved = (torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(4))
    levels = (GRID[step].expand(2), GRID[step + 1].expand(2))
    old = sde_step(x, velocity, *levels, law, GRID, noise=noise)
    leaf = (velocity + change * moved).requires_grad_()
    new = sde_step(x, leaf, *levels, law, GRID, x_next=old.x_next)
    return old, new, change * moved, noise, leaf


def loudness(step: int, law: NoiseLaw, guard: bool) -> torch.Tensor:
    """Gradient of the on-policy loss with respect to the velocity over the noise, one number."""
    old, new, _, noise, leaf = setting(step, 0.0, law)
    r = guarded_ratio(new, old.logp, old.mean) if guard else ratio(new.logp, old.logp)
    assert torch.allclose(r, torch.ones_like(r), atol=1e-12)
    (gradient,) = torch.autograd.grad(surrogate(r, rows(1.0), 1e-3).sum(), leaf)
    found = gradient / noise * noise[0].numel()
    assert torch.allclose(found, found.flatten()[0].expand_as(found), rtol=1e-8)
    return found.flatten()[0]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_m_rectified_every_step_is_equally_loud(law):
    steps = range(10)
    scales = gradient_scale(GRID[:10], GRID[1:11], law, GRID)
    weights = rectified(scales, torch.ones(10, dtype=torch.bool))
    assert float(weights.mean()) == pytest.approx(1.0)
    raw = torch.stack([loudness(step, law, guard=False) for step in steps])
    assert float(raw.max() / raw.min()) > 1.4
    assert torch.allclose(weights * raw, (weights * raw)[0].expand(10), rtol=1e-8)


def test_grpo_guard_with_the_flow_law_is_rectification_on_policy():
    law, dt = NoiseLaw("flow", 0.7), GRID[1:10] - GRID[2:11]
    guarded = torch.stack([loudness(step, law, guard=True) for step in range(1, 10)]) * guard_weights(
        dt, torch.ones(9, dtype=torch.bool)
    )
    assert torch.allclose(guarded, guarded[0].expand(9), rtol=1e-8)


@pytest.mark.parametrize("law", SDE_LAWS, ids=lambda law: law.name)
def test_grpo_guards_ratio_is_linear_in_the_change_and_has_no_bias(law):
    old, new, change, noise, _ = setting(4, 0.2, law)
    scale = gradient_scale(GRID[4:5], GRID[5:6], law, GRID)
    product = (noise * change).flatten(1).mean(1)
    found = guarded_ratio(new, old.logp, old.mean).log()
    assert torch.allclose(found, -old.std * scale * product, rtol=1e-9)
    plain = ratio(new.logp, old.logp).log()
    assert torch.allclose(plain, -scale * product - scale**2 / 2 * change.square().flatten(1).mean(1), rtol=1e-9)


@pytest.mark.parametrize("law", SDE_LAWS, ids=lambda law: law.name)
def test_the_velocitys_divergence_is_the_policys_without_lambda(law):
    old, new, change, _, _ = setting(4, 0.2, law)
    scale = gradient_scale(GRID[4:5], GRID[5:6], law, GRID)
    found = velocity_kl(kl(new.mean, old.mean, new.std), scale)
    assert torch.allclose(found, change.square().flatten(1).mean(1), rtol=1e-9)


def test_the_weights_have_mean_one_over_what_all_ranks_learn_from():
    scales, learned = rows(0.1, 0.2, 0.4, 0.5), torch.tensor([True, False, True, True])
    halves = [slice(0, 2), slice(2, 4)]
    q = 1 / scales
    sums = iter([(q * learned).sum(), learned.sum().double()] * 2)
    found = torch.cat([rectified(scales[half], learned[half], lambda _: next(sums)) for half in halves])
    assert torch.allclose(found, rectified(scales, learned))
    assert float(found[learned].mean()) == pytest.approx(1.0)
    assert rectified(scales, torch.zeros(4, dtype=torch.bool)).isfinite().all()
