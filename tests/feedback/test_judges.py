"""The agreement of a judge with people is neither flattered by its threshold nor by clips that it did not score."""

import numpy as np
import pytest

from reelign.errors import ReelignError
from reelign.feedback.judges import best_threshold, judge_agreement, rater_ceiling
from reelign.feedback.simulate import RaterConfig, ScoredPair, expected_accuracy, simulated_votes
from reelign.feedback.vote import Shown
from verdicts import votes_of


def scored(gaps):
    """Scores of both clips of each prompt, A ahead by its gap."""
    found = {f"base/prompt {n}.mp4": {"overall": 0.5 + gap} for n, gap in enumerate(gaps)}
    return found | {f"tuned/prompt {n}.mp4": {"overall": 0.5} for n in range(len(gaps))}


def test_without_ties_only_decided_votes_count_and_a_difference_of_nothing_is_wrong():
    found = judge_agreement(votes_of("+\n-\n0\n+\n-"), "overall", scored([0.2, 0.1, 0.3, 0.0, -0.4]))
    assert found.without_ties.value == 2 / 4
    assert (found.without_ties.n, found.votes, found.unscored) == (4, 5, 0)


def test_the_threshold_is_the_best_of_all_that_there_are():
    generator = np.random.default_rng(0)
    for _ in range(20):
        gaps, worths = generator.normal(0, 1, 40).round(1), generator.choice([-1, 0, 1], 40)
        right = {
            threshold: (np.where(np.abs(gaps) <= threshold, 0, np.sign(gaps)) == worths).sum()
            for threshold in (0, *np.abs(gaps))
        }
        best = max(right.values())
        assert best_threshold(gaps, worths) == min(threshold for threshold in right if right[threshold] == best)


def test_a_judge_that_ties_where_people_tie_is_right_everywhere():
    gaps = [0.3, -0.3, 0.01, 0.4, -0.5, 0.02, -0.01, 0.35]
    found = judge_agreement(votes_of("+\n-\n0\n+\n-\n0\n0\n+"), "overall", scored(gaps))
    assert found.threshold == pytest.approx(0.02)
    assert found.with_ties.value == pytest.approx(1, abs=1 / 8)


def test_noise_is_not_flattered_by_a_threshold_fitted_to_it():
    """Three verdicts equally often, scores of nothing: a third is right. 2000 votes: a standard error of 0.011."""
    generator = np.random.default_rng(1)
    table = "\n".join(generator.choice(list("+0-"), 2000))
    found = judge_agreement(votes_of(table), "overall", scored(generator.normal(0, 1, 2000)))
    assert found.with_ties.value == pytest.approx(1 / 3, abs=0.04)
    assert found.without_ties.low < 0.5 < found.without_ties.high


def test_votes_on_clips_without_a_score_are_counted_and_left_out():
    scores = scored([0.2, 0.1, 0.3])
    del scores["tuned/prompt 1.mp4"]
    found = judge_agreement(votes_of("+\n-\n+"), "overall", scores)
    assert (found.without_ties.value, found.votes, found.unscored) == (1, 2, 1)


def test_a_judge_without_the_axis_says_nothing_and_a_failed_score_is_refused():
    assert judge_agreement(votes_of("+\n-", axis="motion"), "motion", scored([0.2, 0.1])) is None
    with pytest.raises(ReelignError, match=r"base/prompt 1.mp4 on the axis overall is nan"):
        judge_agreement(votes_of("+\n-"), "overall", scored([0.2, float("nan")]))


def test_the_ceiling_is_each_vote_against_the_majority_of_the_others():
    """(+ + -): each + sees one + and one -, so a tie of the others; - sees ++. Then (- - -): all three agree."""
    found = rater_ceiling(votes_of("++-\n---"), "overall")
    assert found.with_ties.value == 3 / 6
    assert (found.without_ties.value, found.without_ties.n) == (3 / 4, 4)
    assert rater_ceiling(votes_of("+\n-"), "overall") is None


def test_a_judge_that_knows_the_gold_scores_reaches_the_expected_accuracy_of_simulated_votes():
    """1500 votes: a standard error of 0.013 at most, three of them are allowed."""
    generator = np.random.default_rng(2)
    pairs = [
        ScoredPair(
            str(n), f"{n}", Shown("base", f"a{n}"), Shown("tuned", f"b{n}"), {"overall": float(gap)}, {"overall": 0.0}
        )
        for n, gap in enumerate(generator.normal(0, 0.25, 500))
    ]
    config = RaterConfig(temperature=0.1, k=3, lapse=0.1)
    scores = {side.clip: dict(found) for p in pairs for side, found in ((p.a, p.scores_a), (p.b, p.scores_b))}
    found = judge_agreement(simulated_votes(pairs, 3, config, seed=5), "overall", scores)
    ceiling = expected_accuracy(pairs, config)["overall"]
    assert found.without_ties.value == pytest.approx(ceiling.without_ties, abs=0.04)
    assert found.with_ties.value == pytest.approx(ceiling.with_ties, abs=0.04)
    assert 0.6 < ceiling.with_ties < ceiling.without_ties < 1
