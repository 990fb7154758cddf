"""The prompts of a stage as they are: how many, what is dropped of a list, and what the text encoder will not read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from reelign.data.prompts import listed_texts
from reelign.models.base import VideoModel
from reelign.models.wan import TEXT_LENGTH
from reelign.stages.asked import PromptList, PromptSource, build_prompts


def counted(sources: Sequence[PromptSource]) -> tuple[list[str], list[str]]:
    """The prompts that are kept, and what is to be said of their number.

    Raises:
        ReelignError: a list is missing, unreadable or empty.
    """
    texts = []
    for source in sources:
        listed = listed_texts(source.path) if isinstance(source, PromptList) else None
        texts += [prompt.text for prompt in build_prompts([source])] if listed is None else listed
    kept = [prompt.text for prompt in build_prompts(sources)]
    empty = sum(not text for text in texts)
    said = [f"{len(kept)} prompts"]
    if len(texts) > len(kept):
        said.append(f"of {len(texts)} that are listed {empty} are empty and {len(texts) - empty - len(kept)} repeats")
    return kept, said


def unread(texts: Sequence[str], model: VideoModel) -> list[str]:
    """What is to be said of the texts whose end the text encoder does not read; nothing when it reads all of them."""
    tokenizer = cast(Any, model.pipeline).tokenizer
    limit = min(TEXT_LENGTH, tokenizer.model_max_length)
    lengths = [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
    cut = sum(length > limit for length in lengths)
    if not cut:
        return []
    return [
        f"{cut} are longer than the {limit} tokens that the text encoder reads (the longest has {max(lengths)}): "
        "the rest of them is never seen, though a reward may ask for it"
    ]
