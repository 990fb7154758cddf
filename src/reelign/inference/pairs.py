"""What `reelign pairs` writes: pairs of the miniature world, of captions, or of pairs that somebody published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Literal, TypeVar

import numpy as np

from reelign.data.ask_pairs import ask_pairs
from reelign.data.endpoint import ChatEndpoint
from reelign.data.manifest import MANIFEST, read_manifest
from reelign.data.pairs import PromptPair, holds_pairs, inverted, read_pairs, write_pairs
from reelign.data.prompts import read_prompts
from reelign.errors import ReelignError
from reelign.miniature.enhancer_pairs import miniature_pairs

Way = Literal["inversion", "file", "endpoint"]
MINIATURE_COUNT = 4096

T = TypeVar("T")


def make_pairs(
    source: str,
    out: Path,
    way: Way | None,
    count: int | None,
    seed: int,
    rewriter: str | None,
    endpoint: ChatEndpoint | None,
    progress: Callable[[int, int], None],
) -> list[PromptPair]:
    """Make the pairs of a source and write them, equal ones once.

    Args:
        source: the word "miniature", a dataset or its manifest, a list of captions, or a file of pairs.
        out: the JSON lines to write.
        way: whether captions are inverted by rules or by an endpoint, or pairs are read; None takes what the source is.
        count: how many pairs to make, or to draw of those there are; None makes one for each caption, or takes all.
        seed: same seed, same pairs (those of an endpoint aside).
        rewriter: whose rewrites to take of a file of pairs.
        endpoint: whom to ask.
        progress: told how many captions of how many were asked for.

    Raises:
        ReelignError: nothing there, nothing in it, or options that do not go together.
    """
    way = _way(source, out, way)
    if rewriter is not None and way != "file":
        raise ReelignError("--rewriter is for files of pairs by several rewriters, and no such file is read here.")
    if endpoint is None and way == "endpoint":
        raise ReelignError("--from endpoint needs to know whom to ask: --url and --model.")
    if endpoint is not None and way != "endpoint":
        raise ReelignError("--url and --model say whom to ask, but nobody is asked without --from endpoint.")
    if source == "miniature":
        pairs = miniature_pairs(count or MINIATURE_COUNT, seed)
    elif way == "file":
        pairs = _drawn(read_pairs(Path(source), rewriter), count, seed, source)
    else:
        captions = _captions(Path(source))
        if endpoint is not None:
            return ask_pairs(_drawn(captions, count, seed, source), endpoint, out, progress=progress)
        pairs = inverted(captions, count or len(captions), seed)
    pairs = list(dict.fromkeys(pairs))
    write_pairs(out, pairs)
    return pairs


def summary(pairs: Sequence[PromptPair]) -> list[str]:
    """How long the two sides are on average, and three pairs in short."""
    prompts, rewrites = (
        sum(len(text.split()) for text in side) / len(pairs)
        for side in ([pair.prompt for pair in pairs], [pair.rewrite for pair in pairs])
    )
    shown = [pairs[place] for place in sorted({0, len(pairs) // 2, len(pairs) - 1})]
    return [
        f"words on average: {prompts:.1f} in a prompt, {rewrites:.1f} in a rewrite",
        *(f"  {shorten(pair.prompt, 100)}\n    -> {shorten(pair.rewrite, 160)}" for pair in shown),
    ]


def _way(source: str, out: Path, asked: Way | None) -> Way:
    """How pairs are made of a source; one that cannot be made so is refused."""
    path = Path(source)
    if out.is_dir():
        raise ReelignError(f"{out} is a folder; --out names the file to write.")
    if source == "miniature":
        if asked in (None, "inversion"):
            return "inversion"
        raise ReelignError("the miniature knows its users' words exactly; leave --from out.")
    if not path.exists():
        expected = "the word 'miniature', a dataset, a list of captions or a file of pairs"
        raise ReelignError(f"there is no {source!r}; expected {expected}.")
    if out.exists() and out.samefile(path):
        raise ReelignError(f"{out} is what is read; write the pairs to another file.")
    if not holds_pairs(path):
        return asked or "inversion"
    if asked in (None, "file"):
        return "file"
    raise ReelignError(f"{path} holds pairs already; leave --from out, or say --from file.")


def _captions(path: Path) -> list[str]:
    if not path.is_dir() and path.name != MANIFEST:
        return [listed.text for listed in read_prompts(path)]
    dataset = path if path.is_dir() else path.parent
    if captions := [row["caption"] for row in read_manifest(dataset) if row["caption"]]:
        return captions
    raise ReelignError(f"no clip of the dataset {dataset} has a caption.")


def _drawn(found: Sequence[T], count: int | None, seed: int, source: str) -> list[T]:
    """`count` of what was found, in its order."""
    if count is None:
        return list(found)
    if count > len(found):
        raise ReelignError(f"{source} holds {len(found)}, fewer than --count {count}.")
    return [found[place] for place in sorted(np.random.default_rng(seed).permutation(len(found))[:count])]
