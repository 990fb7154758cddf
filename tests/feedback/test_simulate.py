"""Simulated raters vote as the model says, always say that they are simulated, and repeat exactly."""

import math
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from reelign.errors import ReelignError
from reelign.feedback.judges import judge_agreement
from reelign.feedback.simulate import (
    RaterConfig,
    ScoredPair,
    SimulatedRater,
    expected_accuracy,
    expected_agreement,
    simulated_votes,
)
from reelign.feedback.vote import Shown


def pair(number=0, gap=0.1, **scores):
    a = scores or {"visual": 0.5 + gap, "motion": 0.5 + gap}
    sides = Shown("base", f"a{number}.mp4"), Shown("tuned", f"b{number}.mp4")
    return ScoredPair(f"pair {number}", f"prompt {number}", *sides, a, dict.fromkeys(a, 0.5))


def shares(votes):
    count = Counter(vote.verdict for vote in votes)
    return [count[verdict] / len(votes) for verdict in ("good", "same", "bad")]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_verdicts_have_the_probabilities_of_rao_and_kupper():
    """D = 0.2 / 0.2 = 1 and k = 3; 3000 votes: a standard error of 0.009, four of them are allowed."""
    config = RaterConfig(temperature=0.2, k=3)
    votes = [v for n in range(3000) for v in simulated_votes([pair(n, motion=0.7)], 1, config) if v.axis == "motion"]
    good, bad = sigmoid(1 - math.log(3)), sigmoid(-1 - math.log(3))
    assert shares(votes) == pytest.approx([good, 1 - good - bad, bad], abs=0.036)


def test_a_pull_to_the_left_and_lapses_are_what_was_asked_for():
    """Equal clips, a pull of 1 logit, no ties but by lapse: 30 % of votes are one of three at random."""
    config = RaterConfig(k=1, left_bias=1.0, lapse=0.3)
    votes = simulated_votes([pair(n, gap=0.0) for n in range(1500)], 1, config)
    for left, expected in (("a", sigmoid(1)), ("b", sigmoid(-1))):
        found = shares([vote for vote in votes if vote.left == left])
        assert found == pytest.approx([0.7 * expected + 0.1, 0.1, 0.7 * (1 - expected) + 0.1], abs=0.04)


def test_every_vote_says_that_it_is_simulated():
    votes = simulated_votes([pair()], 2, RaterConfig())
    assert {(vote.source, vote.rater) for vote in votes} == {("simulated", "simulated-1"), ("simulated", "simulated-2")}
    with pytest.raises(ReelignError, match="'ann' is simulated, and its name must start so"):
        SimulatedRater("ann", RaterConfig(), 0)


def test_a_vote_depends_on_seed_pair_and_rater_and_on_nothing_else_that_was_asked():
    pairs = [pair(n) for n in range(20)]
    votes = simulated_votes(pairs, 3, RaterConfig(), seed=7)
    assert simulated_votes(pairs, 3, RaterConfig(), seed=7) == votes
    alone = simulated_votes(pairs[11:12], 2, RaterConfig(), seed=7)
    assert [v for v in votes if v.pair == "pair 11" and v.rater != "simulated-3"] == alone
    assert simulated_votes(pairs, 3, RaterConfig(), seed=8) != votes
    assert {vote.left for vote in votes} == {"a", "b"}


def test_overall_is_the_mean_of_the_other_axes_unless_it_is_given():
    assert pair(visual=0.9, motion=0.7).gaps["overall"] == pytest.approx(0.3)
    assert pair(visual=0.9, overall=0.2).gaps["overall"] == pytest.approx(-0.3)


def test_a_hidden_repeat_is_answered_anew_and_a_gold_pair_keeps_its_answer():
    rater = SimulatedRater("simulated-1", RaterConfig(), 0)
    first, again = ([v.verdict for n in range(50) for v in rater.votes(pair(n), kind)] for kind in ("plain", "repeat"))
    assert first != again
    gold = rater.votes(pair(), "gold", "good", left="b")
    assert {(vote.kind, vote.expected, vote.left) for vote in gold} == {("gold", "good", "b")}


def test_the_noise_ceiling_is_the_likeliest_verdict_of_each_pair():
    """D = 0 and D = 2 at k = 2: ties 1/3 and the share of good is sigmoid(2 - log 2)."""
    config = RaterConfig(temperature=0.1, k=2)
    pairs = [pair(0, visual=0.5), pair(1, visual=0.7)]
    good, bad = sigmoid(2 - math.log(2)), sigmoid(-2 - math.log(2))
    found = expected_accuracy(pairs, config)["visual"]
    assert found.with_ties == pytest.approx((1 / 3 + good) / 2)
    assert found.without_ties == pytest.approx((1 / 3 + good) / (2 / 3 + good + bad))


def test_expected_agreement_is_what_many_raters_say_of_a_judge_and_the_ceiling_of_one_that_knows():
    pairs = [pair(number, gap) for number, gap in enumerate((-0.3, -0.05, 0.0, 0.1, 0.25))]
    config, source = RaterConfig(), np.random.default_rng(0)
    gold, noisy = {}, {}
    for one in pairs:
        for side, scores in ((one.a, one.scores_a), (one.b, one.scores_b)):
            mean = {"overall": float(np.mean(list(scores.values()))), **scores}
            gold[side.clip] = mean
            noisy[side.clip] = {axis: value + 0.2 * source.standard_normal() for axis, value in mean.items()}
    found, votes = expected_agreement(pairs, noisy, config), simulated_votes(pairs, 2000, config)
    knowing, ceiling = (
        expected_agreement(pairs[:2] + pairs[3:], gold, config),
        expected_accuracy(pairs[:2] + pairs[3:], config),
    )
    for axis in ("visual", "motion", "overall"):
        told = judge_agreement(votes, axis, noisy)
        assert told.without_ties.value == pytest.approx(found[axis], abs=0.02)
        assert knowing[axis] == pytest.approx(ceiling[axis].without_ties)


@pytest.mark.parametrize(
    ("scores", "said"),
    [({"sharpness": 0.5}, "finite numbers for visual"), ({"visual": float("nan")}, "finite"), ({}, "finite")],
)
def test_scores_that_cannot_be_used_are_refused(scores, said):
    sides = Shown("base", "a"), Shown("tuned", "b")
    with pytest.raises(ReelignError, match=said):
        simulated_votes([ScoredPair("p", "x", *sides, scores, scores)], 1, RaterConfig())
    with pytest.raises(ReelignError, match="not scored on the same axes"):
        simulated_votes([ScoredPair("p", "x", *sides, {"visual": 0.5}, {"motion": 0.5})], 1, RaterConfig())


def test_configurations_outside_the_model_are_refused():
    for wrong in ({"temperature": 0}, {"k": 0.5}, {"lapse": 1.1}, {"bias": 1}):
        with pytest.raises(ValidationError):
            RaterConfig(**wrong)
    with pytest.raises(ReelignError, match="a rater at least"):
        simulated_votes([pair()], 0, RaterConfig())


def test_times_are_those_of_a_person_and_the_same_on_all_axes_of_a_showing():
    votes = simulated_votes([pair(n) for n in range(200)], 1, RaterConfig(seconds=4))
    assert np.median([vote.seconds for vote in votes]) == pytest.approx(4, rel=0.1)
    assert len({(vote.pair, vote.seconds) for vote in votes}) == 200
