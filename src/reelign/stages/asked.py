"""The prompts of a stage that needs no videos: lists of a user's own, or the miniature's scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from reelign.data.prompts import ListedPrompt, read_prompts
from reelign.errors import ReelignError
from reelign.miniature.captions import full_prompt, user_prompt
from reelign.miniature.world import scenes
from reelign.sampling.noise import generator


class MiniaturePrompts(BaseModel):
    """Prompts for the miniature's training scenes; held-out scenes never occur."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["miniature"]
    count: int = Field(default=400, ge=1, description="Number of prompts.")
    style: Literal["full", "user"] = Field(default="full", description="Full captions or the short ones users type.")
    seed: int = Field(default=12, ge=0, description="Which scenes; not a seed of the battery.")


class PromptList(BaseModel):
    """A file with prompts: one a line, JSON, JSON lines or a table."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["list"]
    path: Path = Field(description="The file; equal prompts count once, empty ones not at all.")


PromptSource = Annotated[MiniaturePrompts | PromptList, Field(discriminator="kind")]
Item = TypeVar("Item")


def build_prompts(sources: Sequence[MiniaturePrompts | PromptList]) -> list[ListedPrompt]:
    """All prompts, each once.

    Raises:
        ReelignError: a list is missing, unreadable or empty.
    """
    found: dict[str, ListedPrompt] = {}
    for source in sources:
        listed = read_prompts(source.path) if isinstance(source, PromptList) else _miniature(source)
        found |= {prompt.text: prompt for prompt in listed if prompt.text not in found}
    if not found:
        raise ReelignError("there is no prompt to learn from.")
    return list(found.values())


def _miniature(source: MiniaturePrompts) -> list[ListedPrompt]:
    random = np.random.default_rng((source.seed, 0))
    pool = scenes(held_out=False)
    chosen = [pool[int(index)] for index in random.permutation(len(pool))[: source.count]]
    make = full_prompt if source.style == "full" else user_prompt
    return [ListedPrompt(scene.id, make(scene, random).text) for scene in chosen]


def drawn(items: Sequence[Item], positions: range, seed: int) -> list[Item]:
    """The prompts (or pairs) at some places of an endless stream that shuffles the list anew each time it is through.

    A function of its arguments: any rank and any resume sees the same stream.
    """
    found, orders = [], {}
    for position in positions:
        epoch, place = divmod(position, len(items))
        if epoch not in orders:
            orders[epoch] = torch.randperm(len(items), generator=generator("prompts", seed, epoch)).tolist()
        found.append(items[orders[epoch][place]])
    return found
