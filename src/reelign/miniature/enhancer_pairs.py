"""Pairs for a prompt enhancer of the miniature world: here a user's words have exactly one right meaning."""

from __future__ import annotations

import numpy as np

from reelign.data.pairs import PromptPair
from reelign.miniature.captions import full_caption, user_prompt
from reelign.miniature.world import scenes

FULL_SHARE = 0.1
"""Share of prompts that are full captions already: what is said in full is left as it is."""


def miniature_pairs(count: int, seed: int) -> list[PromptPair]:
    """`count` pairs of training scenes (held-out triples never occur). Pair i depends on `seed` and i alone.

    A rewrite is a full caption in one of its word orders. It names every attribute, also those that the prompt leaves
    open: these are the scene's, so a prompt with something open comes with every way of filling it in.
    """
    pool = scenes(held_out=False)
    found = []
    for index in range(count):
        generator = np.random.default_rng((seed, index))
        scene = pool[int(generator.integers(len(pool)))]
        rewrite = full_caption(scene, generator)
        prompt = rewrite if generator.random() < FULL_SHARE else user_prompt(scene, generator).text
        found.append(PromptPair(prompt, rewrite))
    return found
