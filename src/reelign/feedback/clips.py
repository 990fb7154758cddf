"""The clips of a study: same encoder, same frame rate, same length, names that mean nothing; and the pairs they make.

The clips of a prompt are shown in lock-step. Those with fewer frames a second repeat frames, as they would on a screen,
and longer ones are cut. All are decoded and written anew: what a file says of its maker beside the picture is gone.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from reelign.data.clip import Clip, read_clip, write_clip
from reelign.errors import ReelignError
from reelign.feedback.entrants import Entrant
from reelign.feedback.gold import HARMED, Harm, degraded
from reelign.feedback.store import PairRow
from reelign.feedback.vote import Axis, Shown, Verdict, Vote

Progress = Callable[[str, int, int, str], None]
"""Told what is done, how much of it, of how much, and a remark."""


def write_clips(folder: Path, entrants: Sequence[Entrant], progress: Progress | None = None) -> list[PairRow]:
    """Write the clips of all entrants, who have the same prompts; all pairs of two clips of one prompt."""
    pairs: list[PairRow] = []
    todo = entrants[0].clips
    for done, first in enumerate(todo, 1):
        samples = [entrant[first.prompt_id] for entrant in entrants]
        clips = level([read_clip(sample.file, first.prompt) for sample in samples])
        shown = [Shown(entrant.name, _write(folder, clip)) for entrant, clip in zip(entrants, clips, strict=True)]
        pairs += [_pair(a, b, clips[0]) for a, b in combinations(shown, 2)]
        if progress is not None:
            progress("write clips", done, len(todo), "")
    return pairs


def level(clips: Sequence[Clip]) -> list[Clip]:
    """Clips at the frame rate of the fastest and the length of the shortest."""
    fps = max(clip.fps for clip in clips)
    seconds = min(len(clip.frames) / clip.fps for clip in clips)
    count = max(1, math.floor(seconds * fps + 1e-6))
    places = np.arange(count) / fps + 1e-6
    return [
        replace(clip, frames=clip.frames[np.minimum((places * clip.fps).astype(int), len(clip.frames) - 1)], fps=fps)
        for clip in clips
    ]


def degraded_pairs(
    folder: Path, pairs: Sequence[PairRow], count: int, axes: Collection[Axis], seed: int
) -> list[PairRow]:
    """Clips against visibly worse copies of themselves, which are written too.

    Raises:
        ReelignError: there are not so many clips on which the harm can be seen.
    """
    sides = {side.clip: (side, pair.prompt) for pair in pairs for side in (pair.a, pair.b)}
    clips = list(sides.values())
    kinds: list[Harm] = [kind for kind, harmed in HARMED.items() if set(harmed) & set(axes)]
    used: Counter[Harm] = Counter()
    found: list[PairRow] = []
    for index in np.random.default_rng((seed, 1)).permutation(len(clips)):
        if len(found) == count:
            break
        one, prompt = clips[index]
        clip = read_clip(folder / one.clip, prompt)
        for kind in sorted(kinds, key=lambda kind: used[kind]):
            if (worse := degraded(clip, kind)) is not None:
                expected: dict[Axis, Verdict] = {axis: "good" for axis in HARMED[kind] if axis in axes}
                found.append(_pair(one, Shown(f"{one.model} ({kind})", _write(folder, worse)), clip, expected))
                used[kind] += 1
                break
    if len(found) < count:
        raise ReelignError(
            f"{count} gold pairs were asked for, and {len(found)} can be made of these clips: ask for fewer."
        )
    return found


def known_pairs(folder: Path, votes: Sequence[Vote], axes: Collection[Axis]) -> list[PairRow]:
    """Pairs of votes whose right answer is known, their clips copied.

    Raises:
        ReelignError: a clip cannot be read, or no vote says what is expected on an axis that is asked.
    """
    answers: dict[str, dict[Axis, Verdict]] = {}
    for vote in votes:
        if vote.expected is not None and vote.axis in axes:
            answers.setdefault(vote.pair, {})[vote.axis] = vote.expected
    if votes and not answers:
        raise ReelignError(
            "the votes with known answers have none: `expected` is set nowhere on an axis that is asked."
        )
    pairs = []
    for vote in {vote.pair: vote for vote in votes if vote.pair in answers}.values():
        clips = level([read_clip(Path(side.clip), vote.prompt) for side in (vote.a, vote.b)])
        a, b = (Shown(side.model, _write(folder, clip)) for side, clip in zip((vote.a, vote.b), clips, strict=True))
        pairs.append(_pair(a, b, clips[0], answers[vote.pair]))
    return pairs


def _write(folder: Path, clip: Clip) -> str:
    name = f"{secrets.token_hex(16)}.mp4"
    write_clip(folder / name, clip.frames, clip.fps)
    return name


def _pair(a: Shown, b: Shown, clip: Clip, expected: dict[Axis, Verdict] | None = None) -> PairRow:
    return PairRow("", clip.prompt, a, b, clip.fps, len(clip.frames), expected or {})
