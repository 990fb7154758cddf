"""Raters who do not look are warned of, with the reason; those who look are not."""

import numpy as np
import pytest
from scipy.stats import binomtest

from reelign.feedback.raters import rater_reports
from reelign.feedback.simulate import RaterConfig, ScoredPair, SimulatedRater
from reelign.feedback.vote import Shown
from verdicts import vote

AXES = ("visual", "motion", "text")


def pairs(count, gold=False):
    generator = np.random.default_rng(5)
    for number, gaps in enumerate(generator.normal(0, 0.15, (count, 3)).tolist()):
        sides = Shown("base", f"a{number}"), Shown("tuned", f"b{number}")
        scores = dict.fromkeys(AXES, 0.5) if gold else dict(zip(AXES, gaps, strict=True))
        yield ScoredPair(f"{gold} {number}", f"{number}", *sides, scores, dict.fromkeys(AXES, 0.0))


def study_of(**raters):
    """Each rater sees 60 pairs, 15 of them again, and 15 gold pairs."""
    votes = []
    for name, config in raters.items():
        rater = SimulatedRater(f"simulated-{name}", config, 1)
        votes += [v for p in pairs(60) for v in rater.votes(p)]
        votes += [v for p in pairs(15) for v in rater.votes(p, "repeat")]
        votes += [v for p in pairs(15, gold=True) for v in rater.votes(p, "gold", "good")]
    return {report.rater.removeprefix("simulated-"): report for report in rater_reports(votes)}


def test_honest_raters_are_left_in_peace():
    found = study_of(**{f"{n}": RaterConfig() for n in range(8)})
    assert [report.warnings for report in found.values()] == [()] * 8


def test_each_fault_is_told_with_its_reason():
    honest = {f"{n}": RaterConfig() for n in range(4)}
    found = study_of(
        left=RaterConfig(left_bias=4), random=RaterConfig(lapse=1), hasty=RaterConfig(seconds=0.5), **honest
    )
    assert found["left"].warnings[0].startswith("chooses left in ")
    assert "decided pairs, though sides are drawn (corrected p = " in found["left"].warnings[0]
    assert any("finds the known answer of only" in said for said in found["random"].warnings)
    assert [said[:18] for said in found["hasty"].warnings] == ["votes within 1 s o"]
    assert not any(found[name].warnings for name in honest)


def test_who_chooses_right_is_told_so():
    found = study_of(right=RaterConfig(left_bias=-4))
    assert found["right"].warnings[0].startswith("chooses right in ")


def test_the_left_share_counts_showings_that_lean_and_has_the_exact_interval():
    """Two axes agree on left, two axes balance, one is a tie, then once right: 1 of 2."""
    votes = [vote("good", "1", axis="visual"), vote("good", "1", axis="motion")]
    votes += [vote("good", "2", axis="visual"), vote("bad", "2", axis="motion"), vote("same", "3")]
    votes += [vote("good", "4", left="b")]
    left = rater_reports(votes)[0].left
    exact = binomtest(1, 2).proportion_ci(method="exact")
    assert (left.value, left.n) == (0.5, 2)
    assert (left.low, left.high) == pytest.approx((exact.low, exact.high))


def test_the_left_share_is_not_known_where_sides_were_never_exchanged():
    assert rater_reports([vote("good", f"{n}") for n in range(30)])[0].left is None


def test_a_repeat_is_compared_in_the_order_of_the_pair_and_not_of_the_screen():
    votes = [vote("good", "1"), vote("good", "1", kind="repeat", left="b"), vote("bad", "2")]
    votes += [vote("good", "2", kind="repeat"), vote("good", "3")]
    repeats = rater_reports(votes)[0].repeats
    assert (repeats.value, repeats.n) == (0.5, 2)


def test_gold_accuracy_counts_showings_where_most_axes_are_right():
    def gold(prompt, verdicts):
        return [
            vote(verdict, prompt, kind="gold", expected="bad", axis=axis)
            for axis, verdict in zip(AXES, verdicts, strict=True)
        ]

    votes = [*gold("1", ("bad", "bad", "same")), *gold("2", ("bad", "good", "same"))]
    found = rater_reports(votes)[0].gold
    assert (found.value, found.n) == (0.5, 2)


def test_times_ties_and_amounts_are_plain_facts():
    votes = [vote("same", "1", seconds=0.4), vote("good", "2", seconds=3.0), vote("good", "3", seconds=5.0)]
    votes += [vote("good", "4", seconds=float("nan")), vote(rater="bob", seconds=float("nan"))]
    ann, bob = rater_reports(votes)
    assert (ann.rater, ann.votes, ann.showings, ann.ties, ann.seconds) == ("ann", 4, 4, 0.25, 3.0)
    assert ann.hasty.value == pytest.approx(1 / 3)
    assert (bob.seconds, bob.hasty, bob.repeats, bob.gold) == (None, None, None, None)
