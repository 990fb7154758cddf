"""Krippendorff's alpha is evalica's and the book's, and the same whichever clip is called A."""

import evalica
import numpy as np
import pandas as pd
import pytest

from reelign.errors import ReelignError
from reelign.feedback.agreement import rater_agreement, shared_units
from reelign.feedback.vote import turned
from verdicts import vote, votes_of


def tables():
    generator = np.random.default_rng(3)
    for _ in range(5):
        rows = generator.choice(list("+++0- "), size=(30, 4))
        yield "\n".join("".join(row) for row in rows)


def evalicas(votes, distance="ordinal"):
    raters = sorted({v.rater for v in votes})
    table = pd.DataFrame(index=raters, columns=sorted({v.pair for v in votes}), dtype=float)
    for v in votes:
        table.loc[v.rater, v.pair] = v.worth
    return evalica.alpha(table, distance).alpha


@pytest.mark.parametrize("table", list(tables()))
def test_alpha_is_evalicas(table):
    votes = votes_of(table)
    assert rater_agreement(votes, "overall").alpha.value == pytest.approx(evalicas(votes), abs=1e-9)


def test_alpha_of_two_raters_worked_by_hand():
    """Units (+ +), (+ -), (- -): n+ = n- = 3, observed 2 of 6 values, expected 2 * 3 * 3 / 5 of 6, 1 - 2 / 3.6."""
    assert rater_agreement(votes_of("++\n+-\n--"), "overall").alpha.value == pytest.approx(1 - 2 / 3.6)


def test_agreement_is_one_and_its_interval_too():
    found = rater_agreement(votes_of("+++\n---\n000\n+++"), "overall")
    assert (found.alpha.value, found.alpha.low, found.alpha.high, found.alpha.n) == (1, 1, 1, 4)
    assert (found.equal.value, found.opposite.value) == (1, 0)


def test_opposite_verdicts_are_worse_than_one_of_them_with_a_tie():
    near, far = (rater_agreement(votes_of(table + "\n++\n--\n00"), "overall") for table in ("+0", "+-"))
    assert far.alpha.value < near.alpha.value < 1
    assert far.equal.value == near.equal.value == 3 / 4
    assert (near.opposite.value, far.opposite.value) == (0, 1 / 4)


def test_which_clip_is_called_a_changes_nothing():
    votes = votes_of(next(tables()))
    other = [
        vote(turned(v.verdict), v.prompt, v.rater, models=("tuned", "base")) if v.prompt.endswith("3") else v
        for v in votes
    ]
    assert rater_agreement(other, "overall") == rater_agreement(votes, "overall")


def test_pairs_with_one_rater_gold_and_repeats_do_not_enter():
    votes = [*votes_of("++\n+-\n--\n+"), vote("bad", "prompt 0", "rater-1", kind="repeat")]
    assert rater_agreement(votes, "overall").alpha.n == 3
    assert len(shared_units(votes, "overall")) == 3


def test_what_cannot_be_said_is_refused_in_words():
    with pytest.raises(ReelignError, match="two raters"):
        rater_agreement(votes_of("+\n-"), "overall")
    with pytest.raises(ReelignError, match="nothing to agree about"):
        rater_agreement(votes_of("00\n00"), "overall")
    with pytest.raises(ReelignError, match="two prompts"):
        rater_agreement(votes_of("+-"), "overall")
