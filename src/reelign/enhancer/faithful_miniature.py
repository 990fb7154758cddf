"""Whether a rewrite keeps what a prompt of the miniature asks for: exactly, by the attributes that both state."""

from __future__ import annotations

from reelign.enhancer.faithful import Lexical
from reelign.enhancer.rewrite import Faithfulness, Loss
from reelign.miniature.captions import stated_values


class OfTheMiniature(Faithfulness):
    """Every attribute that the prompt states is stated by the rewrite, with the same value.

    A prompt that names nothing of the miniature's world is checked word by word.
    """

    def loss(self, prompt: str, rewrite: str) -> Loss | None:
        """See `Faithfulness`."""
        asked, said = stated_values(prompt), stated_values(rewrite)
        if not asked:
            return Lexical().loss(prompt, rewrite)
        lost = next((name for name, value in asked.items() if said.get(name) != value), None)
        return Loss("attribute", f"{lost} {asked[lost]}") if lost else None
