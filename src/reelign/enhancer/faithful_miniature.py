"""Whether a rewrite keeps what a prompt of the miniature asks for: exactly, by the attributes that both state."""

from __future__ import annotations

from reelign.enhancer.faithful import Lexical
from reelign.enhancer.rewrite import Faithfulness, Loss
from reelign.miniature.captions import read_prompt

FILLERS = {"colour": "red", "shape": "circle", "motion": "moving left"}
"""Words for the attributes without which no text is read."""


class OfTheMiniature(Faithfulness):
    """Every attribute that the prompt states is stated by the rewrite, with the same value.

    A prompt that does not read as one of the miniature is checked word by word.
    """

    def loss(self, prompt: str, rewrite: str) -> Loss | None:
        """See `Faithfulness`."""
        asked = read_prompt(prompt)
        if asked is None:
            return Lexical().loss(prompt, rewrite)
        said = _stated(rewrite)
        for name in asked.stated:
            value = getattr(asked.scene, name)
            if said.get(name) != value:
                return Loss("attribute", f"{name} {value}")
        return None


def _stated(text: str) -> dict[str, str]:
    """The values that a text states, whatever it leaves out: what is missing is filled in for the reading."""
    missing = []
    for name in FILLERS:
        others = " | ".join(words for other, words in FILLERS.items() if other != name)
        if read_prompt(f"{text} | {others}") is None:
            missing.append(name)
    read = read_prompt(" | ".join([text, *(FILLERS[name] for name in missing)]))
    return {} if read is None else {name: getattr(read.scene, name) for name in read.stated if name not in missing}
