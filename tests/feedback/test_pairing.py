from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reelign.errors import ReelignError
from reelign.feedback.pairing import Candidate, choose, count_repeats, longest, plan

GOLD = ("gold-0", "gold-1", "gold-2")


def grid(prompts: int, entrants: int) -> list[Candidate]:
    duels = [(str(a), str(b)) for a in range(entrants) for b in range(a + 1, entrants)]
    return [Candidate(f"{prompt}/{a}{b}", f"prompt {prompt}", (a, b)) for prompt in range(prompts) for a, b in duels]


def spread(values, names) -> int:
    counts = Counter(dict.fromkeys(names, 0))
    counts.update(values)
    return max(counts.values()) - min(counts.values())


@st.composite
def lists(draw):
    """A pool, a list of any length that can be made of it, and what both were made with."""
    pool = grid(draw(st.integers(1, 9)), draw(st.integers(2, 4)))
    gold, repeats = GOLD[: draw(st.integers(0, 3))], draw(st.sampled_from([0.0, 0.1, 0.3, 0.5]))
    quota = draw(st.integers(len(gold) + 1, longest(len(pool), len(gold), repeats)))
    planned = plan(pool, gold, quota, repeats, np.random.default_rng(draw(st.integers(0, 2**32))))
    return {pair.id: pair for pair in pool}, gold, quota, repeats, planned


@given(lists())
@settings(max_examples=150)
def test_a_list_has_its_length_and_shows_no_pair_twice_but_repeats(drawn):
    pool, gold, quota, repeats, planned = drawn
    kinds = Counter(one.kind for one in planned)
    assert len(planned) == quota
    assert kinds["gold"] == len(gold)
    assert kinds["repeat"] == count_repeats(quota, len(gold), repeats)
    assert abs(kinds["repeat"] - repeats * (quota - len(gold))) <= 1
    plain = [one.pair for one in planned if one.kind == "plain"]
    again = [one.pair for one in planned if one.kind == "repeat"]
    assert len(set(plain)) == len(plain)
    assert len(set(again)) == len(again)
    assert set(again) <= set(plain) <= set(pool)
    assert sorted(one.pair for one in planned if one.kind == "gold") == sorted(gold)


@given(lists())
@settings(max_examples=150)
def test_a_repeat_comes_later_never_next_and_with_the_sides_changed(drawn):
    planned = drawn[-1]
    for place, one in enumerate(planned):
        if one.kind == "repeat":
            [first] = [other for other in range(place) if planned[other].pair == one.pair]
            assert place - first >= 2
            assert {planned[first].left, one.left} == {"a", "b"}


@given(lists())
@settings(max_examples=150)
def test_a_list_is_balanced_over_prompts_entrants_and_sides(drawn):
    pool, _, _, _, planned = drawn
    plain = [(pool[one.pair], one.left) for one in planned if one.kind == "plain"]
    assert spread([pair.prompt for pair, _ in plain], [pair.prompt for pair in pool.values()]) <= 1
    assert spread([pair.duel for pair, _ in plain], [pair.duel for pair in pool.values()]) <= 1
    for duel in {pair.duel for pair, _ in plain}:
        assert spread([left for pair, left in plain if pair.duel == duel], "ab") <= 1
    assert spread([one.left for one in planned if one.kind == "gold"], "ab") <= 1


@given(st.integers(1, 9), st.integers(2, 4), st.data())
@settings(max_examples=60)
def test_raters_together_cover_all_pairs_evenly(prompts, entrants, data):
    """Balance of the single rater comes first; it costs the whole at most one more."""
    pool, coverage = grid(prompts, entrants), Counter()
    for _ in range(5):
        count = data.draw(st.integers(1, len(pool)))
        coverage.update(pair.id for pair in choose(pool, count, np.random.default_rng(count), coverage))
        assert spread([pair for pair, times in coverage.items() for _ in range(times)], [pair.id for pair in pool]) <= 2


def test_repeats_keep_their_distance_where_the_list_is_long_enough():
    planned = plan(grid(20, 3), GOLD, 60, 0.1, np.random.default_rng(0))
    places = [index for index, one in enumerate(planned) if one.kind == "repeat"]
    assert len(places) == 6
    for place in places:
        first = next(index for index, one in enumerate(planned) if one.pair == planned[place].pair)
        assert place - first > 4


def test_the_pairs_that_are_least_sure_are_asked_first():
    pool = grid(10, 2)
    unsure = {pair.id: float(number) for number, pair in enumerate(pool)}
    planned = plan(pool, (), 3, 0.0, np.random.default_rng(0), priority=unsure)
    assert [one.pair for one in planned] == ["9/01", "8/01", "7/01"]


def test_what_a_rater_has_seen_does_not_come_again():
    pool = grid(10, 2)
    first = plan(pool, (), 6, 0.0, np.random.default_rng(0))
    second = plan(pool, (), 4, 0.0, np.random.default_rng(1), seen={one.pair for one in first})
    assert {one.pair for one in first} | {one.pair for one in second} == {pair.id for pair in pool}


def test_the_same_seed_gives_the_same_list():
    first, second = (plan(grid(6, 3), GOLD, 15, 0.2, np.random.default_rng(7)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("quota", [3, 21, 400])
def test_a_list_that_cannot_be_made_says_what_can(quota):
    with pytest.raises(ReelignError, match=r"of the 15 pairs that a rater has not seen\. Ask for 4 to 20\."):
        plan(grid(5, 3), GOLD, quota, 0.1, np.random.default_rng(0))
