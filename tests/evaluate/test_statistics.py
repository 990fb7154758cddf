"""Intervals mean what they say: they cover the truth as often as promised, and repeat exactly."""

import numpy as np
import pytest

from reelign.evaluate.statistics import bootstrap_mean


def coverage(clusters: int, per_cluster: int, between: float, use_clusters: bool, runs: int = 400) -> float:
    """Share of simulated experiments (true mean 0) whose interval holds the truth."""
    generator = np.random.default_rng(1)
    names = np.repeat(np.arange(clusters), per_cluster).tolist()
    hits = 0
    for _ in range(runs):
        shared = np.repeat(between * generator.standard_normal(clusters), per_cluster)
        values = (shared + generator.standard_normal(clusters * per_cluster)).tolist()
        found = bootstrap_mean(values, names if use_clusters else None, resamples=1000)
        hits += found.low <= 0 <= found.high
    return hits / runs


# 400 runs estimate a coverage of 0.95 with a standard error of 0.011: four of them are allowed.
@pytest.mark.parametrize("clusters", [8, 20, 60])
def test_the_interval_holds_the_truth_in_95_of_100_experiments_for_few_and_for_many_prompts(clusters: int) -> None:
    assert coverage(clusters, per_cluster=3, between=1.0, use_clusters=True) == pytest.approx(0.95, abs=0.045)


def test_ignoring_that_clips_share_a_prompt_would_promise_too_much() -> None:
    assert coverage(20, per_cluster=4, between=2.0, use_clusters=False) < 0.8


def test_verdicts_of_minus_one_zero_and_one_are_covered_as_well() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        values = generator.choice([-1, 0, 1], p=[0.15, 0.35, 0.5], size=48).tolist()
        found = bootstrap_mean(values, resamples=1000)
        hits += found.low <= 0.35 <= found.high
    assert hits / 400 == pytest.approx(0.95, abs=0.045)


def test_the_width_is_students_for_a_large_sample() -> None:
    values = np.random.default_rng(3).standard_normal(400)
    found = bootstrap_mean(values.tolist(), resamples=20_000)
    # 1.966 is Student's 97.5 % quantile with 399 degrees of freedom; the resampling noise of a quantile is about 1 %.
    assert (found.high - found.low) / 2 == pytest.approx(1.966 * values.std(ddof=1) / 20, rel=0.03)


def test_the_value_is_the_mean_of_all_clips_also_where_prompts_have_different_numbers() -> None:
    found = bootstrap_mean([0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"])
    assert found.value == 0.25
    assert found.n == 4
    assert found.low == 0.0
    assert found.high == 1.0


def test_the_same_values_give_the_same_interval_and_another_seed_gives_another() -> None:
    values = np.random.default_rng(4).random(30).tolist()
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_one_prompt_alone_has_no_spread() -> None:
    found = bootstrap_mean([0.2, 0.4], ["a", "a"])
    assert (found.low, found.high) == (found.value, found.value)


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [float("inf")]])
def test_a_missing_value_is_an_error_and_never_a_number(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite values"):
        bootstrap_mean(values)


def test_a_prompt_is_needed_for_each_value() -> None:
    with pytest.raises(ValueError, match="one cluster for each value"):
        bootstrap_mean([0.1, 0.2], ["a"])
