"""Whether a rewrite keeps what a prompt of the miniature asks for: exactly, by the attributes that both state."""

from __future__ import annotations

from reelign.enhancer.faithful import Lexical
from reelign.enhancer.rewrite import Faithfulness, Loss
from reelign.miniature.captions import stated_values, unread_words


class OfTheMiniature(Faithfulness):
    """Every attribute that the prompt states is stated by the rewrite, with the same value.

    What is not of the miniature's world is checked word by word.
    """

    def loss(self, prompt: str, rewrite: str) -> Loss | None:
        """See `Faithfulness`."""
        said = stated_values(rewrite)
        for name, value in stated_values(prompt).items():
            if said.get(name) != value:
                return Loss("attribute", f"{name} {value}")
        return Lexical().loss(unread_words(prompt), rewrite)
