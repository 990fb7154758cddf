"""Who sees which pair, when, and which clip on the left: pure scheduling, without a database.

`choose` picks the pairs of one rater. Its choice is the cheapest of all choices of that size, where the k-th pair of
one prompt costs k, so does the k-th of one duel (two entrants), and what others see already costs a little: that is
the convex transportation problem (Ahuja, Magnanti & Orlin 1993, section 14.3), a linear programme whose vertices are
whole numbers. Over a full grid of prompts and duels, a rater's pairs are spread evenly over both to within one.

`arrange` puts them in order, with gold pairs sprinkled in and some pairs repeated later with the sides changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from reelign.errors import ReelignError
from reelign.feedback.vote import Kind, Side

GAP = 4
"""Showings between a pair and its hidden repeat, where the list is long enough; at least one in any case."""
MOST = 9.0
"""By how much a pair counts as shown more often than the rarest, at most."""


@dataclass(frozen=True)
class Candidate:
    """A pair that may be shown.

    Attributes:
        id: of the pair.
        prompt: what both clips should show.
        duel: whose clips they are, in the pair's order.
    """

    id: str
    prompt: str
    duel: tuple[str, str]


@dataclass(frozen=True)
class Planned:
    """One showing of a rater's list."""

    pair: str
    left: Side
    kind: Kind


def plan(
    pool: Sequence[Candidate],
    gold: Sequence[str],
    quota: int,
    repeats: float,
    generator: np.random.Generator,
    coverage: Mapping[str, float] | None = None,
    seen: Collection[str] = (),
    priority: Mapping[str, float] | None = None,
) -> list[Planned]:
    """The list of one rater.

    Args:
        pool: all plain pairs.
        gold: pairs whose answer is known, all of which are shown.
        quota: length of the list, gold and repeats among it.
        repeats: share of the list that are hidden repeats.
        generator: everything that is random.
        coverage: how often each pair has been given to anybody.
        seen: pairs that this rater was given before.
        priority: what is worth asking, pair by pair (for example how unsure its outcome is): pairs of a higher value
            are chosen first and shown first. Without it the rarest come first, in random order.

    Raises:
        ReelignError: there are fewer pairs than the quota asks for.
    """
    fresh = [pair for pair in pool if pair.id not in seen]
    plain, again = parts(quota, len(fresh), len(gold), repeats)
    chosen = choose(fresh, plain, generator, coverage or {}, priority)
    return arrange(chosen, gold, again, generator, priority)


def parts(quota: int, pool: int, gold: int, repeats: float) -> tuple[int, int]:
    """How many plain pairs and how many repeats make up a list.

    Raises:
        ReelignError: there are fewer pairs than the quota asks for.
    """
    again = count_repeats(quota, gold, repeats)
    plain = quota - gold - again
    if plain < 1 or plain > pool:
        raise ReelignError(
            f"a list of {quota} showings cannot be made: it would have {gold} gold pairs, {again} repeats and {plain} "
            f"of the {pool} pairs that a rater has not seen. Ask for {gold + 1} to {longest(pool, gold, repeats)}."
        )
    return plain, again


def count_repeats(quota: int, gold: int, share: float) -> int:
    """How many of a list's showings are repeats: the share of what is not gold, and each of another pair."""
    asked = quota - gold
    return max(0, min(round(share * asked), (asked - 1) // 2))


def longest(pool: int, gold: int, repeats: float) -> int:
    """Length of the longest list that can be made of so many plain and gold pairs."""
    length = pool + gold
    while length + 1 - gold - count_repeats(length + 1, gold, repeats) <= pool:
        length += 1
    return length


def choose(
    pool: Sequence[Candidate],
    count: int,
    generator: np.random.Generator,
    coverage: Mapping[str, float],
    priority: Mapping[str, float] | None = None,
) -> list[Candidate]:
    """The pairs of one rater: balanced over prompts and duels first, then the rarest or those of highest priority."""
    if priority is None:
        values = np.array([coverage.get(pair.id, 0.0) for pair in pool])
        wish = np.minimum(values - values.min(), MOST)
    else:
        values = np.array([-priority.get(pair.id, 0.0) for pair in pool])
        wish = MOST * (values - values.min()) / max(float(np.ptp(values)), 1e-12)
    wish = wish + generator.random(len(pool)) / (2 * count)
    groups = [[pair.prompt for pair in pool], [pair.duel for pair in pool]]
    taken = _cheapest(wish, groups, count, heavy=(MOST + 1) * (count + 1))
    return [pool[int(index)] for index in generator.permutation(taken)]


def arrange(
    chosen: Sequence[Candidate],
    gold: Sequence[str],
    repeats: int,
    generator: np.random.Generator,
    priority: Mapping[str, float] | None = None,
) -> list[Planned]:
    """Order and sides of a list."""
    if priority is not None:
        chosen = sorted(chosen, key=lambda pair: -priority.get(pair.id, 0.0))
    lefts = _sides([pair.duel for pair in chosen], generator)
    listed = [Planned(pair.id, left, "plain") for pair, left in zip(chosen, lefts, strict=True)]
    for name, left in zip(gold, _sides(["gold"] * len(gold), generator), strict=True):
        listed.insert(int(generator.integers(len(listed) + 1)), Planned(name, left, "gold"))
    gap = GAP if len(chosen) >= repeats + GAP else 1
    places = [place for place, one in enumerate(listed) if one.kind == "plain" and place + gap < len(listed)]
    again = [listed[int(place)] for place in generator.permutation(places)[:repeats]]
    for one in again:
        place = int(generator.integers(listed.index(one) + 1 + gap, len(listed) + 1))
        listed.insert(place, Planned(one.pair, "b" if one.left == "a" else "a", "repeat"))
    return listed


def _sides(groups: Sequence[Hashable], generator: np.random.Generator) -> list[Side]:
    """Left sides: within each group half of them A, half B, and the odd one by chance."""
    sides: list[Side] = ["a"] * len(groups)
    for group in dict.fromkeys(groups):
        members = [index for index, name in enumerate(groups) if name == group]
        first = int(generator.integers(2))
        for turn, index in enumerate(generator.permutation(members)):
            sides[int(index)] = "a" if (turn + first) % 2 else "b"
    return sides


def _cheapest(wish: np.ndarray, groups: Sequence[Sequence[Hashable]], count: int, heavy: float) -> np.ndarray:
    """Indices of `count` items that cost least, where the k-th item of a group costs `heavy` * k more.

    The variables are the items, and for each group one slot for its first, second, .. item; a group has as many slots
    filled as items chosen.
    """
    costs, rows, columns, signs, row = [wish], [], [], [], 0
    column = len(wish)
    for names in groups:
        for group, size in Counter(names).items():
            slots = min(size, count)
            members = [index for index, name in enumerate(names) if name == group]
            rows += [row] * (size + slots)
            columns += [*members, *range(column, column + slots)]
            signs += [1.0] * size + [-1.0] * slots
            costs.append(heavy * np.arange(1.0, slots + 1))
            column, row = column + slots, row + 1
    rows += [row] * len(wish)
    columns += range(len(wish))
    signs += [1.0] * len(wish)
    matrix = coo_array((signs, (rows, columns)), shape=(row + 1, column)).tocsr()
    target = np.zeros(row + 1)
    target[-1] = count
    found = linprog(np.concatenate(costs), A_eq=matrix, b_eq=target, bounds=(0, 1), method="highs-ds")
    if not found.success:
        raise RuntimeError(f"the choice of {count} of {len(wish)} pairs was not found: {found.message}")
    return np.flatnonzero(found.x[: len(wish)] > 0.5)
