"""The number of pairs that power asks for is the one that finds the difference in 80 of 100 studies."""

import numpy as np
import pytest

from reelign.errors import ReelignError
from reelign.feedback.comparison import net_gsb
from reelign.feedback.power import design_effect, power, votes_needed
from verdicts import vote, votes_of


def test_independent_votes_need_the_textbook_number():
    """(1.96 + 0.8416)^2 (1 - 0.4 - 0.01) / 0.01 = 463.1; a share of 40 % ties."""
    assert votes_needed(10, ties=0.4) == pytest.approx(463.1, abs=0.1)
    assert votes_needed(20, ties=0.4, effect=2) == pytest.approx(2 * 7.849 * 0.56 / 0.04, rel=1e-3)


@pytest.mark.parametrize("points", [10, 20])
def test_studies_of_that_size_see_the_difference_in_about_80_of_100(points):
    """400 studies: a standard error of 0.02, three of them are allowed."""
    generator = np.random.default_rng(4)
    number, g = round(votes_needed(points, ties=0.3)), points / 100
    seen = 0
    for _ in range(400):
        worths = generator.choice([1, 0, -1], p=[(0.7 + g) / 2, 0.3, (0.7 - g) / 2], size=number)
        mean, spread = worths.mean(), worths.std() / np.sqrt(number)
        seen += mean - 1.96 * spread > 0
    assert seen / 400 == pytest.approx(0.8, abs=0.06)


def test_a_study_goes_on_with_as_many_votes_a_pair_as_it_began_with():
    """A third of ties, five raters who repeat each other: five votes are one, and pairs are asked for, not votes."""
    found = power(votes_of("+++++\n-----\n00000\n" * 10), "base", "tuned", "overall")
    assert found.pairs == 30
    assert found.ties == pytest.approx(1 / 3)
    assert found.design_effect == pytest.approx(5 * 30 / 29)
    assert found.pairs + found.more_pairs == pytest.approx(votes_needed(10, 1 / 3) * 30 / 29, abs=1)
    assert found.words == f"{found.more_pairs} more pairs to see 10 points"


def test_a_large_study_has_enough():
    found = power(votes_of("+\n-\n0\n" * 400), "base", "tuned", "overall")
    assert (found.more_pairs, found.words) == (0, "enough pairs to see 10 points")
    assert net_gsb(votes_of("+\n-\n0\n" * 400), "base", "tuned")["overall"].high < 0.1


def test_votes_that_cannot_say_give_no_number():
    for votes in ([vote("same", f"{n}") for n in range(5)], [vote("good"), vote("bad", rater="bob")]):
        found = power(votes, "base", "tuned", "overall")
        assert found.more_pairs is None
        assert "cannot say" in found.words
    assert design_effect(np.array([1.0, 1.0]), ["a", "b"]) is None


def test_impossible_questions_are_refused():
    with pytest.raises(ReelignError, match="between 0 and 100"):
        votes_needed(100, 0.3)
    with pytest.raises(ReelignError, match="no plain vote"):
        power([vote()], "base", "tuned", "motion")
