"""Whether a rewrite keeps what the user asked for, told by reading both texts: no model, no download, any script.

Quotations, numbers, negations and content words must survive, and are looked for in this order. A rewrite may add what
it likes. What cannot be checked is not trusted: a translation is a loss, and so is a synonym that nobody vouches for.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence, Set
from functools import lru_cache
from itertools import chain, pairwise, takewhile
from typing import Literal, NamedTuple

from snowballstemmer import EnglishStemmer

from reelign.enhancer.lexicon import (
    AMOUNTS,
    BASES,
    BELOW_HUNDRED,
    DENIALS,
    FRAME,
    NAMELESS,
    NARROWER,
    NEGATORS,
    NUMBERS,
    OPPOSITES,
    QUOTATION,
    SCALES,
    SPELLINGS,
    STOP,
    TOKEN,
    UNSAID,
    WHOLE,
)
from reelign.enhancer.rewrite import Faithfulness, Loss

Similarity = Callable[[str, Sequence[str]], float]
"""The largest cosine of a word with any of some words, all in lower case."""
REACH = 5
"""How many words after a negator (or an article) may belong to it, unless punctuation ends its clause."""


class Lexical(Faithfulness):
    """Faithfulness to real prompts, word by word.

    - Quotations survive with the same words in a row. A prompt that is one quotation from end to end is none.
    - Numbers survive with their value: "2" is "two", "a dozen" is 12. Presence is enough; but "one" may become an
      article before the same thing.
    - A word that is negated is negated in the rewrite too.
    - Every other content word has a match that is not negated: the same stem (English), the same word (other scripts
      with spaces), or a similar one. An emoji survives as itself or as a word of its Unicode name.
    - In scripts without spaces each Chinese character is a word; kana, Thai, Lao, Khmer and Burmese survive in whole
      runs, for one of their letters by itself says nothing.

    Args:
        similar: vouches for synonyms, for instance by the embeddings of a language model; without it there are none.
        least: the cosine from which on two words mean the same.
    """

    def __init__(self, similar: Similarity | None = None, least: float = 0.6) -> None:
        self._similar, self._least = similar, least

    def loss(self, prompt: str, rewrite: str) -> Loss | None:
        """See `Faithfulness`."""
        asked, said = _read(prompt), _read(rewrite)
        checks = (_lost_quotations, self._lost_numbers, self._lost_negations, self._lost_words)
        return next(chain.from_iterable(check(asked, said) for check in checks), None)

    def _lost_numbers(self, asked: _Text, said: _Text) -> Iterator[Loss]:
        have = {AMOUNTS.get(word.text, word.key) for word in said.words if word.kind in ("number", "word")}
        for at, word in enumerate(asked.words):
            if word.kind != "number" or word.key in have:
                continue
            thing = next((other for other in asked.after(at) if other.is_content), None)
            if word.key != "1" or thing is None or not self._is_kept(thing, said.near({"a", "an"}, until="of")):
                yield Loss("number", asked.quote(word, word))

    def _lost_negations(self, asked: _Text, said: _Text) -> Iterator[Loss]:
        denied = said.near(NEGATORS)
        for negator, targets in asked.negations:
            if not targets and not said.negations:
                yield Loss("negation", asked.quote(negator, negator))
            for target in targets:
                if not self._is_kept(target.itself, denied):
                    yield Loss("negation", asked.quote(negator, target))

    def _lost_words(self, asked: _Text, said: _Text) -> Iterator[Loss]:
        others = [word for word in said.words if word not in said.negated]
        keys, texts = {word.key for word in others}, {word.text for word in others}
        pairs = {a.text + b.text for a, b in pairwise(others) if a.is_content and b.is_content}
        for at, word in enumerate(asked.words):
            if not word.is_content or word in asked.negated or word.keepers & keys or word.text in pairs:
                continue
            beside = [other for other in asked.words[max(0, at - 1) : at + 2] if other.is_content]
            compounds = {a.text + b.text for a, b in pairwise(beside)}
            if not compounds & texts and not self._is_kept(word, others):
                yield Loss("word", asked.quote(word, word))

    def _is_kept(self, word: _Word, candidates: Sequence[_Word]) -> bool:
        if any(other.key in word.keepers for other in candidates):
            return True
        if word.kind == "run":
            return any(other.kind == "run" and word.key in other.key for other in candidates)
        rivals = RIVALS.get(word.key, frozenset())
        texts = [other.text for other in candidates if other.kind == "word" and other.key not in rivals]
        return bool(self._similar and word.kind == "word" and texts and self._similar(word.text, texts) >= self._least)


def _lost_quotations(asked: _Text, said: _Text) -> Iterator[Loss]:
    for match in QUOTATION.finditer(asked.plain):
        words = _spoken(match.group())
        if match.group() != asked.plain and f" {words} " not in f" {_spoken(said.plain)} " and words:
            yield Loss("quote", match.group()[1:-1])


Kind = Literal["word", "sign", "run", "number", "stop", "break"]
_Meaning = tuple[Kind, str, str, frozenset[str]]


class _Word(NamedTuple):
    """A word at its place in a text.

    Attributes:
        kind: "sign" is a Chinese character or an emoji, "run" what has letters and no spaces, "break" punctuation.
        text: in lower case.
        key: what it is compared by: its stem, its value, itself.
        keepers: the keys that keep it.
        start, end: its place in the plain text.
    """

    kind: Kind
    text: str
    key: str
    keepers: frozenset[str]
    start: int
    end: int

    @property
    def is_content(self) -> bool:
        return self.kind in ("word", "sign", "run")

    @property
    def itself(self) -> _Word:
        """The word without what is narrower: who asks for no people is not served by no women."""
        return self._replace(keepers=frozenset((self.key,))) if self.kind == "word" else self


class _Text:
    """A text as words, and what is negated in it.

    Attributes:
        plain: the text with single spaces and without what has no look of its own.
        negations: each negator with the words that it negates, several if "or" joins them.
        negated: all negated words.
    """

    def __init__(self, plain: str, words: list[_Word]) -> None:
        self.plain, self.words = plain, words
        places = [at for at, word in enumerate(words) if word.kind == "stop" and word.key in NEGATORS]
        self.negations = [(words[at], _joined_by_or(self.after(at))) for at in places]
        self.negated = {word for _, targets in self.negations for word in targets}

    def quote(self, first: _Word, last: _Word) -> str:
        """The user's own words, from one to another."""
        return self.plain[first.start : last.end]

    def after(self, place: int) -> list[_Word]:
        """The words within `REACH` of a place, in the same clause."""
        return list(takewhile(lambda word: word.kind != "break", self.words[place + 1 : place + 1 + REACH]))

    def near(self, markers: Set[str], until: str | None = None) -> list[_Word]:
        """The words shortly after one of the stop words `markers`, those behind the word `until` left out."""
        places = [at for at, word in enumerate(self.words) if word.kind == "stop" and word.key in markers]
        return [word for at in places for word in takewhile(lambda word: word.text != until, self.after(at))]


def _joined_by_or(ahead: Sequence[_Word]) -> list[_Word]:
    """The first content word, and those that an "or" adds to it."""
    found: list[_Word] = []
    is_next = True
    for word in ahead:
        if word.kind == "stop":
            is_next = is_next or word.text in ("or", "nor")
        elif is_next:
            found.append(word)
            is_next = False
        else:
            break
    return found


@lru_cache(maxsize=1024)
def _read(text: str) -> _Text:
    plain = " ".join("".join(map(_visible, unicodedata.normalize("NFKC", text))).split())
    frame = FRAME.match(plain)
    framing = {at for name in ("request", "picture") if frame for at in range(*frame.span(name))}
    words = [
        _Word(*meaning, *match.span())
        for match in TOKEN.finditer(plain)
        for meaning in _meanings(match.lastgroup or "", match.group(), match.start() in framing)
    ]
    return _Text(plain, list(_with_values(words)))


def _visible(character: str) -> str:
    """The character; a space for controls and zero-width spaces, nothing for joiners, directions and variants."""
    category = unicodedata.category(character)
    if category == "Cc" or character == "\u200b":
        return " "
    return "" if category == "Cf" or "\ufe00" <= character <= "\ufe0f" else character


def _spoken(plain: str) -> str:
    """The words of a text as they stand, without case and punctuation."""
    said = (match.group() for match in TOKEN.finditer(plain) if match.lastgroup != "break")
    return " ".join(said).casefold().replace("’", "'")


@lru_cache(maxsize=65536)
def _meanings(token: str, text: str, is_framing: bool) -> list[_Meaning]:
    """What a token of one of the kinds of `TOKEN` is: two things, if it is one like "nobody"."""
    text = text.casefold().replace("’", "'")

    def meaning(kind: Kind, key: str, *keepers: str) -> _Meaning:
        return kind, text, key, frozenset((key, *keepers))

    match token:
        case "number":
            digits = "".join(str(unicodedata.digit(character, character)) for character in text)
            return [meaning("number", digits.translate(UNSAID))]
        case "emoji":
            named = unicodedata.name(text, "").casefold().split()
            return [meaning("sign", text, *(_stem(name) for name in named if len(name) > 1 and name not in NAMELESS))]
        case "han":
            return [meaning("stop" if text in STOP or text in NEGATORS else "sign", text)]
        case "run":
            return [meaning("stop" if len(text) == 1 else "run", text)]
        case "break":
            return [meaning("break", text)]
    if text in DENIALS:
        return [meaning("stop", "no"), meaning("word", _stem(DENIALS[text]))]
    if text.endswith("n't") or text in NEGATORS:
        return [meaning("stop", "not" if text.endswith("n't") else text)]
    if text in NUMBERS:
        return [meaning("number", str(NUMBERS[text]))]
    key = _stem(text)
    return [meaning("stop" if is_framing or text in STOP else "word", key, *map(_stem, NARROWER.get(key, "").split()))]


def _with_values(words: Sequence[_Word]) -> Iterator[_Word]:
    """The words, with those that make a number together ("two hundred and five") as one, and "one" only as a number.

    It is a number in front of a thing ("one cat"), and a pronoun elsewhere ("the little one", "one of them").
    """
    at = 0
    while at < len(words):
        end = at + 1
        while words[at].kind == "number" and (more := _going_on(words, end)):
            end += more
        word = words[at] if end == at + 1 else _summed(words[at:end])
        is_pronoun = (word.text, word.key) == ("one", "1") and (end == len(words) or not words[end].is_content)
        yield word._replace(kind="stop") if is_pronoun else word
        at = end


def _going_on(words: Sequence[_Word], at: int) -> int:
    """How many words from a place on still belong to the number that ends before it."""
    before, rest = words[at - 1], words[at : at + 2]
    if before.text in SCALES and len(rest) == 2 and rest[0].text == "and" and rest[1].text in BELOW_HUNDRED:
        return 2
    if not rest or rest[0].kind != "number":
        return 0
    more = NUMBERS.get(rest[0].text, 0)
    if before.text in SCALES:
        return int(more > 0)
    if before.text in NUMBERS or re.fullmatch("[0-9]{1,9}", before.key):
        is_tens = before.text in NUMBERS and NUMBERS[before.text] in range(20, 100, 10)
        return int(rest[0].text in SCALES or (is_tens and more in range(1, 10)))
    return 0


def _summed(words: Sequence[_Word]) -> _Word:
    total = current = 0
    for word in words:
        if word.text in SCALES:
            current = max(current, 1) * SCALES[word.text]
            if current >= 1000:
                total, current = total + current, 0
        elif word.kind == "number":
            current += int(word.key)
    key = str(total + current)
    return _Word("number", words[0].text, key, frozenset((key,)), words[0].start, words[-1].end)


@lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    """What all forms of an English word have in common; any other word as it is."""
    plain = "".join(c for c in unicodedata.normalize("NFD", word) if not "\u0300" <= c <= "\u036f")
    if not plain.isascii():
        return word
    plain = plain.removesuffix("'s").removesuffix("'")
    plain = BASES.get(plain, plain)
    plain = next((ours + plain[len(other) :] for other, ours in SPELLINGS.items() if plain.startswith(other)), plain)
    plain = re.sub(r"(?<=\w{3})is(?=(?:e|ed|es|er|ing|ation)s?$)", "iz", plain)
    return plain if plain in WHOLE else EnglishStemmer().stemWord(plain)


RIVALS = {
    _stem(word): frozenset(_stem(rival) for other in sides if other != side for rival in other.split())
    for sides in (line.split("|") for line in OPPOSITES)
    for side in sides
    for word in side.split()
}
