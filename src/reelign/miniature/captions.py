"""Words for scenes: the full captions that the model was trained on, and the short ones that users type.

A full caption names every attribute in the world's own words. A user's prompt is short: it leaves attributes out, says
"ball" or "crimson", and puts the words in its own order. Which attributes it still states travels with it, because a
video may only be blamed for what was asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from reelign.miniature.world import ATTRIBUTES, VALUES, Scene

MOTION_WORDS = {
    "left": "moving left",
    "right": "moving right",
    "up": "moving up",
    "down": "moving down",
    "circling": "circling",
    "bouncing": "bouncing",
    "still": "standing still",
}
SPEED_WORDS = {"slow": "slowly", "fast": "fast"}

SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "green": ("emerald", "lime"),
    "blue": ("azure", "cobalt"),
    "yellow": ("golden", "lemon"),
    "purple": ("violet", "magenta"),
    "cyan": ("turquoise", "teal"),
    "circle": ("ball", "disc"),
    "square": ("box", "block"),
    "triangle": ("pyramid", "wedge"),
    "ring": ("donut", "hoop"),
    "cross": ("plus",),
    "small": ("tiny", "little"),
    "large": ("big", "huge"),
    "moving left": ("going left", "sliding left", "heading left"),
    "moving right": ("going right", "sliding right", "heading right"),
    "moving up": ("rising", "going up", "climbing"),
    "moving down": ("falling", "going down", "sinking"),
    "circling": ("orbiting", "going around"),
    "bouncing": ("hopping", "jumping"),
    "standing still": ("static", "not moving"),
    "slowly": ("gently", "lazily"),
    "fast": ("quickly", "rapidly"),
    "black": ("dark",),
    "grey": ("gray",),
    "white": ("bright",),
}
NEIGHBOURS: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {
        "red": ("purple",),
        "purple": ("red",),
        "blue": ("cyan",),
        "cyan": ("blue",),
        "green": ("yellow",),
        "yellow": ("green",),
    },
    "size": {"small": ("large",), "large": ("small",)},
    "background": {"black": ("grey",), "grey": ("black", "white"), "white": ("grey",)},
}
"""What a careless caption takes a look for. Always the same neighbour: guidance would wash out a mistake that is spread
over all values. What the object is and what it does is the point of a caption, and is named rightly."""
IDENTIFYING = ("colour", "shape", "motion")
"""Attributes that every user prompt states: they name the held-out triple, so no training text can equal the prompt."""


@dataclass(frozen=True)
class Prompt:
    """A text, the scene it was made from and the attributes that the text states."""

    text: str
    scene: Scene
    stated: tuple[str, ...]


def full_caption(scene: Scene, generator: np.random.Generator | None = None) -> str:
    """Every attribute in canonical words; with a generator, one of three word orders."""
    thing = f"a {scene.size} {scene.colour} {scene.shape}"
    move = MOTION_WORDS[scene.motion] + ("" if scene.motion == "still" else f" {SPEED_WORDS[scene.speed]}")
    ground = f"on a {scene.background} background"
    orders = (f"{thing} {move} {ground}", f"{ground} {thing} {move}", f"{thing} {ground} {move}")
    return orders[0 if generator is None else int(generator.integers(len(orders)))]


def stated_in_full(scene: Scene) -> tuple[str, ...]:
    """The attributes that a full caption states: all, but for the speed of a still object."""
    return tuple(name for name in ATTRIBUTES if not (name == "speed" and scene.motion == "still"))


def full_prompt(scene: Scene, generator: np.random.Generator | None = None) -> Prompt:
    """The full caption as a prompt."""
    return Prompt(full_caption(scene, generator), scene, stated_in_full(scene))


def user_prompt(scene: Scene, generator: np.random.Generator) -> Prompt:
    """A short prompt as users type them: synonyms, free order, attributes left out."""
    stated = [name for name in stated_in_full(scene) if name in IDENTIFYING or generator.random() < (0.35)]
    words = {name: _user_words(name, scene, generator) for name in stated}
    thing = " ".join(words[name] for name in ("size", "colour", "shape") if name in words)
    move = " ".join(words[name] for name in ("motion", "speed") if name in words)
    parts = [thing, move] if generator.random() < 0.75 else [move, thing]
    if "background" in words:
        parts.insert(0 if generator.random() < 0.3 else len(parts), f"on {words['background']}")
    return Prompt(" ".join(parts), scene, tuple(stated))


def read_prompt(text: str) -> Prompt | None:
    """What a text asks for, in the world's own words or the users'; attributes that it leaves out stand at their first
    value and are not stated.

    Returns:
        None if the text names no attribute, or says something that is not of this world.
    """
    said = stated_values(text)
    if not said or unread_words(text):
        return None
    return Prompt(text, Scene(**({name: values[0] for name, values in VALUES.items()} | said)), tuple(said))


def stated_values(text: str) -> dict[str, str]:
    """The attributes that a text names in the world's own words or the users', with their values; what stands still has
    no speed.
    """
    return _read(text)[0]


def unread_words(text: str) -> str:
    """What is left of a text without the phrases that name attributes and the other words of the world."""
    known = vocabulary()
    return " ".join(word for word in _read(text)[1].split() if word not in known)


def _read(text: str) -> tuple[dict[str, str], str]:
    """The attributes in their order, and the text without the phrases that name them."""
    left = f" {' '.join(text.lower().split())} "
    said: dict[str, str] = {}
    for phrase, (name, value) in _phrases().items():
        if f" {phrase} " in left:
            left = left.replace(f" {phrase} ", "  ")
            said.setdefault(name, value)
    if said.get("motion") == "still":
        said.pop("speed", None)
    return {name: said[name] for name in ATTRIBUTES if name in said}, left


@cache
def _phrases() -> dict[str, tuple[str, str]]:
    """Every phrase with its attribute and value, the longest first: "going around" is no "going"."""
    own: dict[str, dict[str, str]] = {"motion": MOTION_WORDS, "speed": SPEED_WORDS}
    found = {}
    for name, values in VALUES.items():
        for value in values:
            word = own[name][value] if name in own else value
            found |= dict.fromkeys((word, *SYNONYMS[word]), (name, value))
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _user_words(name: str, scene: Scene, generator: np.random.Generator) -> str:
    value = getattr(scene, name)
    words: dict[str, dict[str, str]] = {"motion": MOTION_WORDS, "speed": SPEED_WORDS}
    word = words[name][value] if name in words else value
    options = (word, *SYNONYMS[word], *SYNONYMS[word])
    return options[int(generator.integers(len(options)))]


def careless_caption(scene: Scene, generator: np.random.Generator, confused: float, missing: float) -> str:
    """A full caption as scraped data has it: loosely named looks, and words left out.

    Args:
        scene: what the clip shows.
        generator: source of the mistakes.
        confused: probability that colour, size and background, each by itself, is called by a neighbour's name.
        missing: probability that a word is left out.
    """
    said = scene
    for name, neighbours in NEIGHBOURS.items():
        options = neighbours[getattr(scene, name)]
        if generator.random() < confused:
            said = replace(said, **{name: options[int(generator.integers(len(options)))]})
    if said.held_out:  # a training caption never states a held-out triple, by mistake neither
        said = replace(said, colour=scene.colour)
    return " ".join(word for word in full_caption(said, generator).split() if generator.random() >= missing)


@cache
def vocabulary() -> list[str]:
    """Every word that a caption or a user prompt can hold, sorted."""
    phrases = [*SYNONYMS, *(word for words in SYNONYMS.values() for word in words), "a on background"]
    return sorted({word for phrase in phrases for word in phrase.split()})
