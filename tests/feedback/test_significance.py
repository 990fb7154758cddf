"""The sign test counts prompts, exactly; Holm corrects as it was published."""

from math import comb

import pytest
from scipy.stats import binomtest

from reelign.feedback.significance import holm, sign_test, sign_tests
from verdicts import vote, votes_of


@pytest.mark.parametrize(("wins", "losses"), [(8, 2), (5, 5), (0, 6), (31, 14)])
def test_p_is_the_binomial_sum_over_splits_as_uneven_or_more(wins, losses):
    n = wins + losses
    tails = sum(comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(wins - losses)) / 2**n
    found = sign_test([1] * wins + [-1] * losses + [0] * 7)
    assert (found.wins, found.losses, found.ties) == (wins, losses, 7)
    assert found.p == pytest.approx(tails, rel=1e-12)
    assert found.p == binomtest(wins, n).pvalue


def test_nothing_decided_is_no_evidence():
    assert sign_test([0, 0, 0]).p == 1
    assert sign_test([]).p == 1


def test_votes_of_one_prompt_are_one_sign_that_of_their_majority():
    """B wins the first prompt by 3 to 2, the second is balanced, A wins the third."""
    found = sign_tests(votes_of("---++\n+-0\n++-"), "base", "tuned")["overall"]
    assert (found.wins, found.losses, found.ties) == (1, 1, 1)


def test_five_raters_on_one_prompt_prove_no_more_than_one():
    assert sign_tests(votes_of("-----"), "base", "tuned")["overall"].p == 1


def test_holm_multiplies_the_smallest_by_their_number_and_never_falls():
    """Worked by hand: 0.01 x 4, 0.013 x 3 is less and so raised, 0.04 x 2, 0.5 x 1."""
    found = holm({"a": 0.04, "b": 0.01, "c": 0.5, "d": 0.013})
    assert found == pytest.approx({"a": 0.08, "b": 0.04, "c": 0.5, "d": 0.04})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def test_axes_are_corrected_together():
    votes = [vote("bad", f"{n}", axis=axis) for n in range(8) for axis in ("visual", "motion")]
    votes += [vote("bad" if n % 2 else "good", f"{n}", axis="text") for n in range(8)]
    found = sign_tests(votes, "base", "tuned")
    assert found["visual"].p == pytest.approx(2 / 2**8)
    assert found["visual"].holm == pytest.approx(3 * 2 / 2**8)
    assert found["text"].holm == 1
