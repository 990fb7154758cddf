"""Net GSB: what counts, which way round, and for how many prompts it speaks."""

import pytest

from reelign.errors import ReelignError
from reelign.feedback.comparison import compared_models, counts, net_gsb
from verdicts import vote, votes_of


def test_the_second_model_is_measured_against_the_first_whatever_the_order_in_the_pair():
    for_tuned = [vote("bad", f"{n}", models=("base", "tuned")) for n in range(3)]
    for_tuned += [vote("good", f"{n}", models=("tuned", "base")) for n in range(3, 6)]
    for_base = [vote("good", "6")]
    votes = [*for_tuned, *for_base, vote("same", "7")]
    assert net_gsb(votes, "base", "tuned")["overall"].value == (6 - 1) / 8
    assert net_gsb(votes, "tuned", "base")["overall"].value == -(6 - 1) / 8
    found = counts(votes, "base", "tuned", "overall")
    assert (found.good, found.same, found.bad, found.votes) == (6, 1, 1, 8)


def test_gold_pairs_and_hidden_repeats_do_not_count():
    votes = [vote("bad", "1"), vote("good", "2", kind="gold", expected="good"), vote("good", "1", kind="repeat")]
    found = net_gsb(votes, "base", "tuned")["overall"]
    assert (found.value, found.n) == (1, 1)


def test_only_axes_with_votes_on_the_two_models_are_reported():
    votes = [vote(axis="motion"), vote(axis="visual", models=("tuned", "aligned"))]
    assert list(net_gsb(votes, "base", "tuned")) == ["motion"]


def test_more_raters_of_the_same_prompts_who_repeat_each_other_narrow_no_interval():
    once, often = "+\n-\n0\n+\n" * 10, "+++++\n-----\n00000\n+++++\n" * 10
    one, five = (net_gsb(votes_of(table), "base", "tuned")["overall"] for table in (once, often))
    assert five.n == 5 * one.n
    assert (five.low, five.high) == pytest.approx((one.low, one.high))


def test_two_models_without_a_vote_are_refused_with_those_that_have_some():
    with pytest.raises(ReelignError, match=r"no plain vote compares 'base' with 'aligned'.*base and tuned"):
        net_gsb([vote()], "base", "aligned")


def test_a_model_is_not_compared_with_itself():
    assert compared_models([vote(models=("unknown", "unknown"))]) == []
