"""The guard between a language model and a video generator: its word goes through, or the user's own words stand."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from reelign.enhancer.lexicon import SPACELESS
from reelign.enhancer.rewrite import Faithfulness, Rewrite
from reelign.errors import ReelignError


class Guard:
    """Decides which prompts a model is asked about and which of its answers reach the generator.

    What users typed themselves is never held against a rewrite: not their control characters, not their repetition.

    Args:
        faithfulness: tells what of a prompt a rewrite does not keep.
        window: least and most words of the generator's own captions, see `window_of`.
    """

    def __init__(self, faithfulness: Faithfulness, window: tuple[int, int]) -> None:
        if not 1 <= window[0] <= window[1]:
            raise ReelignError(f"a window of {window[0]} to {window[1]} words holds no caption; give least and most.")
        self._faithfulness, self.window = faithfulness, window

    def asks(self, prompt: str) -> Rewrite | None:
        """None if the model is asked about a prompt; else the prompt left alone: "empty", or as "long" as a caption."""
        words = count_words(prompt)
        if words == 0 or words > self.window[1]:
            return Rewrite(prompt, prompt, "left alone", "long" if words else "empty")
        return None

    def judge(self, prompt: str, answer: str, finished: bool, parsed: str | None) -> Rewrite:
        """What the generator is given.

        Args:
            prompt: the user's words.
            answer: what the model said, word for word.
            finished: whether it came to its own end.
            parsed: the rewrite in the answer; None if the answer is off-format.
        """
        reason = self._refusal(prompt, parsed, finished)
        if parsed is None or reason:
            return Rewrite(prompt, prompt, "fallback", reason, answer)
        if _same(prompt, parsed):
            return Rewrite(prompt, prompt, "unchanged", answer=answer)
        return Rewrite(prompt, parsed, "rewritten", answer=answer)

    def structure(self, prompt: str, parsed: str | None, finished: bool) -> float:
        """How well formed a rewrite is, in [-1, 1]: the mean of +-1 for its format and +-1 for a length inside the
        window (RePrompt, arXiv 2505.17540); -1 if it is off-format.
        """
        if parsed is None or not _is_plain(prompt, parsed, finished):
            return -1.0
        return 1.0 if self.window[0] <= count_words(parsed) <= self.window[1] else 0.0

    def _refusal(self, prompt: str, parsed: str | None, finished: bool) -> str:
        """Why an answer is refused; empty if it is not."""
        if parsed is None or not _is_plain(prompt, parsed, finished):
            return "format"
        if _same(prompt, parsed):
            return ""
        if count_words(parsed) > 2 * self.window[1]:
            return "length"
        if _repeats(prompt, parsed):
            return "repetition"
        loss = self._faithfulness.loss(prompt, parsed)
        return loss.kind if loss else ""


def window_of(texts: Sequence[str]) -> tuple[int, int]:
    """Least and most words of a generator's own captions: 2.5 to 97.5 % of them lie between.

    Raises:
        ReelignError: there is no caption with a word in it.
    """
    counts = [count for text in texts if (count := count_words(text))]
    if not counts:
        raise ReelignError("there is no caption to measure the length of prompts on.")
    least, most = np.quantile(counts, (0.025, 0.975))
    return math.floor(least), math.ceil(most)


def count_words(text: str) -> int:
    """The words between spaces, punctuation by itself not among them; in scripts without spaces two characters count
    as one word.
    """
    words, characters = _words(text)
    return len(words) + math.ceil(len(characters) / 2)


def _words(text: str) -> tuple[list[str], str]:
    """Words between spaces in lower case, and the characters of scripts without spaces."""
    characters = "".join(re.findall(f"[{SPACELESS}]", text))
    words = (word.strip(PUNCTUATION) for word in re.sub(f"[{SPACELESS}]", " ", text).casefold().split())
    return [word for word in words if any(unicodedata.category(sign)[0] not in "PZC" for sign in word)], characters


def _same(prompt: str, parsed: str) -> bool:
    return prompt.casefold().split() == parsed.casefold().split()


def _is_plain(prompt: str, parsed: str, finished: bool) -> bool:
    """Whether a rewrite is the text of a prompt: come to its end, without a role, a fence, a control character or a
    word to the user that the prompt does not have.
    """
    added = set(map(str.casefold, MARKUP.findall(parsed))) - set(map(str.casefold, MARKUP.findall(prompt)))
    unseen = {sign for sign in set(parsed) - set(prompt) if sign in UNSEEN or _is_control(sign)}
    talks = TALK.match(parsed) and not TALK.match(prompt)
    return finished and count_words(parsed) > 0 and not (added or unseen or talks)


def _is_control(character: str) -> bool:
    return character not in "\t\n\r" and unicodedata.category(character) in ("Cc", "Cs", "Co")


def _repeats(prompt: str, parsed: str) -> bool:
    """Whether a rewrite runs in circles: the same four words three times or more, or less than 40 % distinct words
    among 20 or more; and more so than the prompt, which may repeat what it likes. In scripts without spaces, pairs of
    characters stand for words.
    """
    often, distinct, count = _repetition(parsed)
    often_asked, distinct_asked, _ = _repetition(prompt)
    return often > max(2, often_asked) or (count >= 20 and distinct < min(0.4, distinct_asked))


def _repetition(text: str) -> tuple[int, float, int]:
    """How often the commonest four words in a row occur, the share of distinct words, and the number of words."""
    words, characters = _words(text)
    words += [characters[at : at + 2] for at in range(len(characters) - 1)]
    rows = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return max(rows.values(), default=0), len(set(words)) / max(1, len(words)), len(words)


PUNCTUATION = string.punctuation + "“”‘’«»„…–—"
UNSEEN = frozenset("\ufffd\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""The sign of a broken character, and those that turn the direction of writing around."""
MARKUP = re.compile(
    r"\b(?:user|assistant)\s*:|^\W*(?:system|human)\s*:|<\||\|>|```|\[/?INST\]"
    r"|</?(?:s|think|prompt|user_prompt|answer|system)>",
    re.IGNORECASE,
)
"""What belongs to a conversation or a program and not to a description."""
TALK = re.compile(
    r"\W*(?:i(?:['’]?m| am) (?:sorry|unable|afraid|an ai\b)|i (?:cannot|can['’]?t|won['’]?t|(?:can|will|would) not)\b"
    r"|(?:sorry|sure|certainly|of course|okay|absolutely|unfortunately)\s*(?:[,!.:]|here\b|i\b)"
    r"|here(?:['’]?s| is| are) (?:an?|the|your|my|some)\b|as (?:an ai|a (?:large )?language model)\b"
    r"|(?:(?:the|your) )?(?:(?:rewritten|enhanced|improved|revised|final|output) )?"
    r"(?:prompt|caption|output|rewrite|answer)\s*:)",
    re.IGNORECASE,
)
"""How a language model begins that refuses, or speaks of its task."""
