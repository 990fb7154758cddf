"""What a user might have typed for a caption: the core of it, in plain words.

Captions are long because generators are trained on long ones; users say what is there and what it does. The rules are
lexical and know nothing of grammar beyond the lists in `reelign.data.caption_words`: decoration goes, then what speaks
of the picture instead of what it shows, then whole clauses and sentences until the rest fits a length that is drawn for
each prompt. Words are dropped, moved and replaced, never added, and a quotation is kept or dropped in one piece.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from reelign.data.caption_words import (
    ABOUT_THE_PICTURE,
    ADJECTIVES,
    ANGLES,
    BOUND,
    COPULAS,
    CUTS,
    DECORATION,
    DETERMINERS,
    FRAMES,
    FUNCTION_WORDS,
    OPENINGS,
    PREPOSITIONS,
    SHOWS,
    STYLE_PHRASES,
)
from reelign.data.wording import (
    QUOTED,
    TOKEN,
    Tokens,
    parts_adjectives,
    thinned,
    with_right_articles,
    with_synonyms,
    word_of,
    words_of,
)

SHORTEST, MEAN_ROOM, LONGEST = 4, 12, 32
"""Words that a prompt has room for: at least, on average, at most."""
STYLE_LOSS, PICTURE_LOSS, SENTENCE_LOSS = 0.75, 0.9, 0.4
"""Probability that a clause of style goes, a later sentence about the picture, any other later sentence."""
FRAME_LOSS, ANGLE_LOSS, ANGLE_MOVE, OPENING_MOVE = 0.9, 0.4, 0.3, 0.5
"""Probability that "a video of" goes, that "a wide shot of" goes or moves to the end, that an opening moves there."""
TELEGRAPHIC, LOWER_CASE, FULL_STOP = 0.12, 0.4, 0.2
"""Probability that articles and capitals go, that only capitals go, that a full stop stays."""

STOPS = ".,;:-–—"
SENTENCE_END = re.compile(r"[.!?…][\"”’')]*$")
CLAUSE_END = re.compile(r"[,;:][\"”’')]*$|^[-–—]+$")
STYLE = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(STYLE_PHRASES)))})\b")
ABBREVIATIONS = frozenset({"mr", "mrs", "ms", "dr", "st", "vs", "e.g", "i.e", "jr", "sr"})


def invert(caption: str, generator: np.random.Generator, synonyms: Mapping[str, Sequence[str]]) -> str:
    """A user's prompt for a caption: never more words, never none; a caption of one word stays.

    Args:
        caption: any text; the rules know English, and leave the words of other languages alone.
        generator: source of what is left out, moved and replaced.
        synonyms: word or words of captions, in lower case -> what users say instead.
    """
    text = " ".join(caption.split())
    tokens = TOKEN.findall(text)
    if len(tokens) < 2:
        return text
    room = min(SHORTEST + int(generator.geometric(1 / (MEAN_ROOM - SHORTEST))), LONGEST)
    first, *others = [thinned(sentence, generator) for sentence in _sentences(_without_asides(tokens))]
    kept = _capital(_core(first, room, generator))
    for sentence in others:
        if generator.random() >= (PICTURE_LOSS if _is_about_the_picture(sentence) else SENTENCE_LOSS):
            if len(kept) + len(sentence) > room:
                break
            kept = [*_ended(kept, "."), *_capital(sentence)]
    said = with_right_articles(with_synonyms(kept, generator, synonyms), tokens)
    return _typed(said, tokens[-1].endswith("."), generator)


def _typed(tokens: Tokens, stop: bool, generator: np.random.Generator) -> str:
    """With capitals, articles and a full stop as far as people care for them."""
    manner = generator.random()
    if manner < TELEGRAPHIC:
        tokens = [token for token in tokens if token.lower() not in ("a", "an", "the")] or tokens
    if manner < TELEGRAPHIC + LOWER_CASE:
        tokens = [token if QUOTED.search(token) else token.lower() for token in tokens]
    return " ".join(_ended(tokens, "." if stop and generator.random() < FULL_STOP else ""))


def _core(sentence: Tokens, room: int, generator: np.random.Generator) -> Tokens:
    """A first sentence as far as there is room for it: the head of its first clause at least."""
    first, *others = _in_order(_clauses(_unframed(sentence, generator)), generator)
    kept = _head(first, room)
    if len(kept) < len(first):
        return kept
    for clause in others:
        if len(kept) + len(clause) > room:
            if len(kept) < SHORTEST and not _is_about_the_picture(clause):
                kept = [*_ended(kept, ","), *_head(clause, room - len(kept))]
            break
        if not _is_style(clause) or generator.random() >= STYLE_LOSS:
            kept = [*_ended(kept, ","), *clause]
    return kept


def _unframed(sentence: Tokens, generator: np.random.Generator) -> Tokens:
    """For "a wide shot of a dog": "a dog", or "a dog, wide shot"; for "the video shows a dog": "a dog"."""
    frame, rest = _split_frame(sentence)
    while frame and ANGLES.isdisjoint(words_of(frame)):
        if generator.random() >= FRAME_LOSS:
            return sentence
        sentence = rest
        frame, rest = _split_frame(sentence)
    fate = generator.random()
    if not frame or fate >= ANGLE_LOSS + ANGLE_MOVE:
        return sentence
    if fate < ANGLE_LOSS:
        return rest
    return [*_ended(rest, ","), *(token for token in frame if word_of(token) not in DETERMINERS | DECORATION | {"in"})]


def _split_frame(sentence: Tokens) -> tuple[Tokens, Tokens]:
    """How something is shown, up to the verb, and what is shown; no frame where that is all there is."""
    words = words_of(sentence)
    framing = DETERMINERS | ANGLES | ADJECTIVES | FRAMES | {"and", "in", "style"}
    for place in range(min(len(words), 7)):
        if words[place] in FRAMES and framing.issuperset(words[:place]):
            for count in (2, 1):
                rest = sentence[place + 1 + count :]
                if rest and " ".join(words[place + 1 : place + 1 + count]) in SHOWS:
                    return sentence[: place + 1], rest
    return [], sentence


def _in_order(clauses: list[Tokens], generator: np.random.Generator) -> list[Tokens]:
    """The thing first: a place or a style before it goes, or moves to the end; what parts it from its verb goes."""
    moved: list[Tokens] = []
    while len(clauses) > 1 and _is_opening(clauses[0]):
        opening, *clauses = clauses
        if generator.random() < OPENING_MOVE and not (DETERMINERS | FRAMES | {"in"}).issuperset(words_of(opening)):
            moved.append(_small(opening))
    if len(clauses) > 2 and len(clauses[0]) < 7 and _is_pushed_between(clauses[1], clauses[2]):
        clauses = [clauses[0] + clauses[2], *clauses[3:]]
    return [*clauses, *moved]


def _is_opening(clause: Tokens) -> bool:
    first = word_of(clause[0])
    return first in PREPOSITIONS | OPENINGS or (len(clause) < 6 and _is_style(clause) and first not in DETERMINERS)


def _is_style(clause: Tokens) -> bool:
    return len(clause) < 9 and STYLE.search(" ".join(words_of(clause))) is not None


def _is_about_the_picture(part: Tokens) -> bool:
    return not ABOUT_THE_PICTURE.isdisjoint(words_of(part[:4]))


def _is_pushed_between(clause: Tokens, following: Tokens) -> bool:
    """Whether a clause says something of the thing before it, and the next what the thing does."""
    first = word_of(clause[0])
    verb, after, *_ = [*words_of(following), "", ""]
    is_attribute = first in {"with", "who", "which", "clad", "its", "his", "her"} or first.endswith(("ing", "ed"))
    is_verb = verb.endswith("s") and verb not in FUNCTION_WORDS
    goes_on = after in PREPOSITIONS | DETERMINERS | {"to", "and", "with"} or after.endswith("ly")
    return is_attribute and (verb in COPULAS or (is_verb and goes_on))


def _head(clause: Tokens, room: int) -> Tokens:
    """The longest beginning that fits and may stand alone, or else the shortest that may."""
    if len(clause) <= room:
        return clause
    words = words_of(clause)
    ends = [place for place in range(4, len(words)) if _may_end(words[:place], words[place])]
    return clause[: max((end for end in ends if end <= room), default=min(ends, default=len(clause)))]


def _may_end(head: Sequence[str], following: str) -> bool:
    """Whether words say enough without what follows them; under five words there must be what may be a verb."""
    last = next((word for word in reversed(head) if not word.endswith("ly")), "")
    if last in FUNCTION_WORDS | BOUND or (len(head) < 5 and not any(w.endswith(("s", "ing", "ed")) for w in head[1:])):
        return False
    bound = len(last) > 4 and last.endswith("ed") and following in PREPOSITIONS | {"with"}
    return following in CUTS | PREPOSITIONS and not bound


def _without_asides(tokens: Tokens) -> Tokens:
    return [token for token in tokens if not (token[0] == "(" and token.rstrip(",;:.")[-1:] == ")")] or tokens


def _sentences(tokens: Tokens) -> list[Tokens]:
    """Sentences without their full stops."""
    found: list[Tokens] = [[]]
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        found[-1].append(token)
        abbreviated = word_of(token) in ABBREVIATIONS or len(word_of(token)) == 1
        if following and SENTENCE_END.search(token) and not abbreviated and not following[0].islower():
            found.append([])
    return [_ended(sentence, "") for sentence in found]


def _clauses(sentence: Tokens) -> list[Tokens]:
    """What stands between commas and their like, without them; a comma between two adjectives parts nothing."""
    found: list[Tokens] = [[]]
    for token, following in zip(sentence, [*sentence[1:], ""], strict=True):
        found[-1].append(token)
        before_quotation = token.endswith(":") and QUOTED.search(following)
        if following and CLAUSE_END.search(token) and not before_quotation and not _chained(found[-1], following):
            found.append([])
    return [_ended(clause, "") for clause in found]


def _chained(clause: Tokens, following: str) -> bool:
    """Whether the comma that a clause has come to is the one of "a dark, silent, empty street"."""
    word = word_of(following)
    if word in FUNCTION_WORDS or (word.endswith("s") and not word.endswith(("ss", "ous"))):
        return False
    before = clause[-2] if len(clause) > 1 else ""
    unknown = word_of(before) in DETERMINERS and word in ADJECTIVES
    return parts_adjectives(clause[-1]) or parts_adjectives(before) or unknown


def _ended(tokens: Tokens, mark: str) -> Tokens:
    """With this mark at the end, and no comma, full stop or dash before it."""
    end = next((place for place in range(len(tokens), 0, -1) if tokens[place - 1].rstrip(STOPS)), 0)
    if not end:
        return tokens
    last = tokens[end - 1].rstrip(STOPS)
    return [*tokens[: end - 1], last + ("" if last[-1] in "!?…" else mark)]


def _capital(tokens: Tokens) -> Tokens:
    return [tokens[0][0].upper() + tokens[0][1:], *tokens[1:]]


def _small(tokens: Tokens) -> Tokens:
    """For the middle of a sentence: only words that are no names lose their capital."""
    first = tokens[0]
    return [first.lower() if word_of(first) in FUNCTION_WORDS | ADJECTIVES | ANGLES | FRAMES else first, *tokens[1:]]
