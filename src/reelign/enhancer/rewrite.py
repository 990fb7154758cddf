"""The words of enhancement: what a rewrite is, and what a prompt may lose on the way to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["rewritten", "unchanged", "left alone", "fallback"]


@dataclass(frozen=True)
class Loss:
    """Something of a prompt that a rewrite does not keep.

    Attributes:
        kind: what it is: "number", "negation", "quote", "word", "attribute"; reports count by it.
        what: the user's own words that were lost.
    """

    kind: str
    what: str


class Faithfulness(ABC):
    """Tells whether everything that a user asked for survives in a rewrite."""

    @abstractmethod
    def loss(self, prompt: str, rewrite: str) -> Loss | None:
        """The first thing of `prompt` that `rewrite` does not keep; None if all survives.

        Total: any two texts have an answer, empty ones and texts in any script among them.
        """


@dataclass(frozen=True)
class Rewrite:
    """What becomes of a user's prompt.

    Attributes:
        prompt: the user's words.
        text: what the generator is given.
        outcome: "rewritten"; "unchanged", when the model had nothing to change; "left alone", when it was not asked;
            "fallback", when its answer was refused and the user's words stand.
        reason: why the prompt was left alone ("empty", "long") or the answer refused ("format", "length",
            "repetition", or the kind of a `Loss`); empty otherwise.
        answer: what the language model said, word for word; empty when it was not asked.
    """

    prompt: str
    text: str
    outcome: Outcome
    reason: str = ""
    answer: str = ""

    @property
    def label(self) -> str:
        """The outcome with its reason, as reports count it: "fallback: number"."""
        return f"{self.outcome}: {self.reason}" if self.reason else self.outcome
