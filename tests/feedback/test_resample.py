"""Intervals of bounded votes hold the truth also where one model nearly always wins."""

import numpy as np
import pytest

from reelign.evaluate.statistics import bootstrap_mean
from reelign.feedback.resample import bounded_mean


@pytest.mark.parametrize(("p", "prompts"), [((0.9, 0.06, 0.04), 40), ((0.45, 0.3, 0.25), 40), ((0.35, 0.3, 0.35), 25)])
def test_the_interval_holds_the_truth_in_95_of_100_studies_near_a_bound_and_far_from_it(p, prompts):
    """400 studies: a standard error of 0.011, four of them are allowed."""
    generator = np.random.default_rng(0)
    truth, names, inside, plain = p[0] - p[2], [str(n) for n in range(prompts)], 0, 0
    for _ in range(400):
        worths = generator.choice([1, 0, -1], p=p, size=prompts).tolist()
        found, without = bounded_mean(worths, names, -1, resamples=500), bootstrap_mean(worths, names, resamples=500)
        inside += found.low <= truth <= found.high
        plain += without.low <= truth <= without.high
    assert inside / 400 == pytest.approx(0.95, abs=0.044)
    assert p[0] < 0.9 or plain / 400 < 0.9


def test_votes_that_all_agree_leave_room_for_those_that_were_not_seen_and_the_estimate_stays():
    few, many = (bounded_mean([1] * n, [str(i) for i in range(n)], -1) for n in (10, 100))
    assert few.value == many.value == few.high == many.high == 1
    assert 0 < few.low < many.low < 1


def test_a_prompt_counts_once_however_many_repeat_it():
    worths, names = [1, -1, 0, 1, 1, -1] * 5, [str(n) for n in range(30)]
    once, often = bounded_mean(worths, names, -1), bounded_mean(worths * 4, names * 4, -1)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_the_interval_stays_inside_the_bounds():
    found = bounded_mean([0, 1, 1], ["a", "b", "c"], 0)
    assert 0 <= found.low <= found.value <= found.high <= 1
