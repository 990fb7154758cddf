"""From votes to what Flow-DPO learns from: pairs of encoded clips with a winner, or a tie.

A pair's strength is the weighted mean worth of its votes, in [-1, 1], where an axis weighs what the recipe says; its
sign names the winner, and 0 is a tie. Gold votes and repeats test the rater and say nothing new of a model: they are
left out, and so are pairs whose prompt the battery asks, which judges what is learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from reelign.data.clip import read_clip
from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig, tasks
from reelign.feedback.vote import Axis, Source, Vote, missing_clips
from reelign.models.base import Conditions, VideoModel
from reelign.stages.context import StageContext
from reelign.stages.sources import held_out_names

ENCODED_AT_ONCE = 16
"""Clips that are read and encoded together."""
NO_STRENGTH = 1e-9
"""What is smaller is a tie: weights such as 0.1 + 0.2 - 0.3 do not add up to 0 exactly."""


@dataclass(frozen=True)
class Pair:
    """Two clips of a prompt, and what raters prefer.

    Attributes:
        id: of the pair.
        prompt: of both clips.
        winner, loser: files; of a tie its sides a and b.
        strength: in [0, 1]; 0 is a tie.
    """

    id: str
    prompt: str
    winner: str
    loser: str
    strength: float

    @property
    def decided(self) -> bool:
        """Whether there is a winner."""
        return self.strength > 0


@dataclass(frozen=True)
class Preferences:
    """The pairs of a training.

    Attributes:
        training: to learn from, ties among them.
        held_out: decided pairs of prompts that are never learned from.
        of_battery: pairs left out because the battery asks their prompt.
        sources: how many votes were counted, by who gave them.
    """

    training: list[Pair]
    held_out: list[Pair]
    of_battery: int
    sources: Mapping[Source, int]

    @property
    def ties(self) -> int:
        """Pairs to learn from that no side won."""
        return sum(not pair.decided for pair in self.training)


@dataclass(frozen=True)
class EncodedPair:
    """A pair as the model sees it; winner and loser (C, F, h, w) and the conditions of one row are on the CPU."""

    id: str
    winner: Tensor
    loser: Tensor
    conditions: Conditions
    decided: bool


def preferences(
    votes: Sequence[Vote], axes: Mapping[Axis, float], battery: BatteryConfig, held_out: float
) -> Preferences:
    """Count the votes.

    Args:
        votes: on any axes; those without a weight are left out.
        axes: weight of each axis.
        battery: whose prompts are not learned from.
        held_out: share of the prompts to keep apart.

    Raises:
        ReelignError: a clip is missing, votes of one pair disagree on its clips, or there is too little to learn from.
    """
    used = [vote for vote in votes if vote.axis in axes and vote.kind == "plain"]
    if not used:
        raise ReelignError(
            f"none of the {len(votes)} votes is a plain one on {' or '.join(axes)}; change dpo.axes or collect votes."
        )
    if missing := missing_clips(used):
        raise ReelignError(
            f"{len(missing)} clips that votes name are not there, the first is {missing[0]}. Put them back."
        )
    pairs = _pairs(used, axes)
    asked = {task.prompt for split in ("validation", "test") for task in tasks(battery, split)}
    free = [pair for pair in pairs if pair.prompt not in asked]
    if not free:
        raise ReelignError(
            f"all {len(pairs)} pairs show prompts of the battery, which judges what is learned: "
            "collect votes on other prompts, or give `battery` other ones."
        )
    kept = held_out_names([pair.prompt for pair in free], held_out)
    found = Preferences(
        training=[pair for pair in free if pair.prompt not in kept],
        held_out=[pair for pair in free if pair.prompt in kept and pair.decided],
        of_battery=len(pairs) - len(free),
        sources=Counter(vote.source for vote in used),
    )
    if (decided := len(found.training) - found.ties) < 2:
        raise ReelignError(
            f"there are {decided} decided pairs to learn from, and it takes 2: of {len(pairs)} pairs, {found.ties} are "
            f"ties, {len(found.held_out)} are held out and {found.of_battery} show prompts of the battery."
        )
    return found


def _pairs(votes: Sequence[Vote], axes: Mapping[Axis, float]) -> list[Pair]:
    """All pairs in the order of their names: the order of the votes, which people give in any, changes nothing."""
    by_pair: dict[str, list[Vote]] = {}
    for vote in votes:
        by_pair.setdefault(vote.pair, []).append(vote)
    found = []
    for name, own in sorted(by_pair.items()):
        first = own[0]
        if any((vote.a.clip, vote.b.clip, vote.prompt) != (first.a.clip, first.b.clip, first.prompt) for vote in own):
            raise ReelignError(
                f"the votes on the pair {name!r} name different clips or prompts; give each pair its own id."
            )
        strength = sum(axes[vote.axis] * vote.worth for vote in own) / sum(axes[vote.axis] for vote in own)
        sides = (first.a.clip, first.b.clip) if strength > -NO_STRENGTH else (first.b.clip, first.a.clip)
        found.append(Pair(name, first.prompt, *sides, abs(strength) if abs(strength) > NO_STRENGTH else 0.0))
    return found


def encoded(pairs: Sequence[Pair], model: VideoModel, context: StageContext) -> list[EncodedPair]:
    """Encode every clip and every prompt once; they stay in memory.

    Raises:
        ReelignError: a clip cannot be read, or has not the battery's size.
    """
    files = list(dict.fromkeys(chain.from_iterable((pair.winner, pair.loser) for pair in pairs)))
    latents: dict[str, Tensor] = {}
    for part in _parts(files):
        frames = torch.stack([_frames(file, context.battery) for file in part])
        latents |= zip(part, model.encode_video(frames.to(model.device)).cpu(), strict=True)
        context.progress("dpo: encode", len(latents), len(files), "")
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    conditions: dict[str, Conditions] = {}
    for part in _parts(prompts):
        batch = {name: value.cpu() for name, value in model.encode_text(part).items()}
        conditions |= {text: {name: value[row] for name, value in batch.items()} for row, text in enumerate(part)}
    return [
        EncodedPair(pair.id, latents[pair.winner], latents[pair.loser], conditions[pair.prompt], pair.decided)
        for pair in pairs
    ]


def _frames(file: str, size: BatteryConfig) -> Tensor:
    frames = read_clip(Path(file)).frames
    if frames.shape[:3] != (size.frames, size.height, size.width):
        found, wanted = "x".join(map(str, frames.shape[:3])), f"{size.frames}x{size.height}x{size.width}"
        raise ReelignError(
            f"the clip {file} has {found} (frames x height x width), but the battery has {wanted}: the model is "
            "trained on clips as they are deployed. Set battery.frames, .height and .width to those of the clips."
        )
    return torch.from_numpy(frames)


def _parts(items: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(items), ENCODED_AT_ONCE):
        yield list(items[start : start + ENCODED_AT_ONCE])
