"""Captioned clips of the miniature world: careless ones as scraped data is, and clean ones as a curated set is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from reelign.miniature.captions import careless_caption, full_caption, user_prompt
from reelign.miniature.render import DEFECTS, Defect, defective, render
from reelign.miniature.world import Scene, scenes


@dataclass(frozen=True)
class PairQuality:
    """How careless a collection of pairs is; the defaults are a clean set.

    Attributes:
        defects: share of clips with a planted defect.
        kinds: the defects that occur, each as often as the others.
        strength: least and most of a defect; 1 is plainly visible.
        confused: probability that a caption calls a look (colour, size, background) by a neighbour's name.
        missing: probability that a word of the caption is missing.
        user_words: share of captions in the users' words instead of a full caption.
    """

    defects: float = 0.0
    kinds: tuple[Defect, ...] = DEFECTS
    strength: tuple[float, float] = (0.4, 1.2)
    confused: float = 0.0
    missing: float = 0.0
    user_words: float = 0.0


CLEAN = PairQuality()
SCRAPED = PairQuality(defects=0.45, confused=0.35, missing=0.05, user_words=0.06)


@dataclass(frozen=True)
class Pair:
    """A clip, uint8 (T, H, W, 3), the caption it came with and the scene it was made from."""

    frames: np.ndarray
    caption: str
    scene: Scene


def pairs(count: int, quality: PairQuality, seed: int) -> Iterator[Pair]:
    """`count` pairs of training scenes (held-out triples never occur). Pair i depends on `seed` and i alone."""
    pool = scenes(held_out=False)
    for index in range(count):
        generator = np.random.default_rng((seed, index))
        scene = pool[int(generator.integers(len(pool)))]
        if generator.random() < quality.defects:
            defect = quality.kinds[int(generator.integers(len(quality.kinds)))]
            frames = defective(scene, generator, defect, generator.uniform(*quality.strength))
        else:
            frames = render(scene, generator)
        if generator.random() < quality.user_words:
            caption = user_prompt(scene, generator).text
        elif quality.confused or quality.missing:
            caption = careless_caption(scene, generator, quality.confused, quality.missing)
        else:
            caption = full_caption(scene, generator)
        yield Pair(frames, caption, scene)
