"""Captions word by word: adjectives and adverbs that may go, synonyms, articles. Never more words than there were."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from reelign.data.caption_words import (
    ADJECTIVES,
    COPULAS,
    CUTS,
    DECORATION,
    FUNCTION_WORDS,
    LIT,
    LOOKS,
    NAMES_OF_THINGS,
    NEGATIONS,
    NOT_ADVERBS,
)

DECORATION_LOSS, LOOK_LOSS, ADVERB_LOSS, SYNONYM = 0.85, 0.3, 0.65, 0.25
"""Probability that such a word goes, and that a word with synonyms is replaced by one."""
LONGEST_PHRASE = 4
"""Most words of a key of the synonyms."""

TOKEN = re.compile(r"""(?:"[^"]*"|“[^“”]*”|‘[^‘’]*’(?!\w)|(?<![\w'])'[^']*'(?!\w)|\([^()]*\)|\S)+""")
"""A word with its punctuation; a quotation or an aside in brackets belongs to one word, with all of its own."""
QUOTED = re.compile(r"[\"“”‘(]|^'")
PART_END = re.compile(r"[.!?…,;:][\"”’')]*$")
VOWEL = re.compile(r"(?!uni|us[aei]|eu|one\b|once\b)[aeiou]|hour|hono|heir")
MARKS = string.punctuation + "“”‘’…–—"
PARTICIPLES = ("ed", "ing", "lit", "like", "style", "tech", "old", "clear", "art", "energy", "quality")
"""Ends of words such as "snow-covered" or "high-tech", which describe."""
BEFORE_WHAT_STAYS = NEGATIONS | {"and", "or", "as", "very", "so", "too", "more", "most"}

Tokens = list[str]


def word_of(token: str) -> str:
    """The word in lower case without its punctuation; none for quotations, which no rule may touch."""
    return "" if QUOTED.search(token) else token.strip(MARKS).lower()


def words_of(tokens: Sequence[str]) -> list[str]:
    """The word of each token."""
    return [word_of(token) for token in tokens]


def thinned(tokens: Tokens, generator: np.random.Generator) -> Tokens:
    """Without some adjectives and adverbs, but never without any word."""
    kept: Tokens = []
    words = [*words_of(tokens), "", ""]
    conjunction = -1
    for place, token in enumerate(tokens):
        word, following, second = words[place : place + 3]
        before = word_of(kept[-1]) if kept else ""
        loss = _loss(token, first=not kept)
        if place == conjunction:
            continue
        if not loss or generator.random() >= loss or before in BEFORE_WHAT_STAYS or before.endswith("ly"):
            kept.append(token)
        elif word not in LOOKS and following == "and" and second and _loss(tokens[place + 2], first=False):
            conjunction = place + 1  # the "and" of "warm and inviting" goes with the first
        elif word in ADJECTIVES:
            if not _is_attribute(token, kept, tokens[place + 1 :]):
                kept.append(token)
        elif following in LIT | {"and"}:
            kept.append(token)
        elif kept and not PART_END.search(kept[-1]):
            kept[-1] += token[len(token.rstrip(MARKS)) :]
    return kept or tokens


def _loss(token: str, first: bool) -> float:
    word = word_of(token)
    if word in ADJECTIVES:
        return DECORATION_LOSS if word in DECORATION else LOOK_LOSS
    is_adverb = word.endswith("ly") and len(word) > 4 and word not in NOT_ADVERBS and (first or token[0].islower())
    return ADVERB_LOSS if is_adverb else 0.0


def _is_attribute(adjective: str, before: Tokens, after: Tokens) -> bool:
    """Whether an adjective stands before its noun, which makes sense without it."""
    if not after or after[0][0].isupper() or (before and before[-1].endswith(",")):
        return False
    last, following = word_of(before[-1]) if before else "", word_of(after[0])
    if last in COPULAS | {"year", "years", "with", "has", "have"}:  # nobody is "a woman with hair"
        return False
    if not following or following in FUNCTION_WORDS | CUTS or following.endswith("ly"):
        return False
    if f"{word_of(adjective)} {following}" in NAMES_OF_THINGS:
        return False
    return adjective[-1] not in MARKS or (parts_adjectives(adjective) and following in ADJECTIVES)


def parts_adjectives(token: str) -> bool:
    """Whether its comma is the one of "a dark, silent forest"."""
    word = word_of(token)
    return token.endswith(",") and (word in ADJECTIVES | LIT or ("-" in word and word.endswith(PARTICIPLES)))


def with_synonyms(tokens: Tokens, generator: np.random.Generator, synonyms: Mapping[str, Sequence[str]]) -> Tokens:
    """With some words replaced by as many or fewer.

    Args:
        tokens: what is said.
        generator: source of what is replaced.
        synonyms: up to four words, in lower case -> what can be said instead.
    """
    said: Tokens = []
    place = 0
    while place < len(tokens):
        run, options = _replaceable(tokens[place : place + LONGEST_PHRASE], synonyms)
        place += len(run)
        if options and generator.random() < SYNONYM:
            run = _in_place_of(run, options[int(generator.integers(len(options)))])
        said.extend(run)
    return said


def _replaceable(tokens: Tokens, synonyms: Mapping[str, Sequence[str]]) -> tuple[Tokens, list[str]]:
    """The longest beginning that has synonyms, and these; or its first word and none."""
    words = words_of(tokens)
    for count in range(len(tokens), 0, -1):
        options = [new for new in synonyms.get(" ".join(words[:count]), ()) if 0 < len(new.split()) <= count]
        if options and all(words[:count]) and not any(token[-1] in MARKS for token in tokens[: count - 1]):
            return tokens[:count], options
    return tokens[:1], []


def _in_place_of(run: Tokens, new: str) -> Tokens:
    """The new words with the capital and the punctuation of the old ones."""
    first, last = run[0], run[-1]
    before, after = first[: len(first) - len(first.lstrip(MARKS))], last[len(last.rstrip(MARKS)) :]
    if first.lstrip(MARKS)[0].isupper():
        new = new[0].upper() + new[1:]
    return (before + new + after).split()


def with_right_articles(tokens: Tokens, caption: Tokens) -> Tokens:
    """With "a" and "an" set right where another word now follows than in the caption."""
    words, old = words_of(tokens), words_of(caption)
    as_it_was = set(pairwise(old))
    return [
        _article(token, following)
        if word in ("a", "an") and following and (word, following) not in as_it_was
        else token
        for token, word, following in zip(tokens, words, [*words[1:], ""], strict=True)
    ]


def _article(token: str, following: str) -> str:
    return token[0] + ("n" if VOWEL.match(following) else "")
