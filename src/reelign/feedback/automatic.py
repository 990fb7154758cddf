"""What automatic judges say of the clips that people voted on, so that their agreement with people can be measured.

Of all prompts these are measures without weights, and the fitted rewards that are named; of the miniature's prompts
its two judges too. A judge that speaks of visual quality, motion and text, and not of the whole, speaks of it by their
mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean

from reelign.data.clip import Clip, read_clip
from reelign.errors import ReelignError
from reelign.feedback.comparison import axes_of, plain
from reelign.feedback.vote import AXES, Vote, missing_clips
from reelign.miniature.captions import read_prompt
from reelign.miniature.judge import judge
from reelign.rewards.base import Reward, fit
from reelign.rewards.miniature import MiniatureReward
from reelign.rewards.pixels import Pixels
from reelign.rewards.preference import LearnedReward

Told = Callable[[str, int, int], None]
Judge = Callable[[Sequence[Clip]], Sequence[dict[str, float]]]
"""Scores of each clip, by axis."""
BATCH = 8
"""Clips that are in memory together."""
NAMED = 3
"""Missing clips that an error names."""


def automatic_scores(
    votes: Sequence[Vote], fitted: Sequence[Path], told: Told
) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of every judge that can be asked here: by name of the judge, file of a clip, and axis.

    Args:
        votes: of which the plain ones count: agreement is measured on no others.
        fitted: artifacts of `reward` stages.
        told: what is being done, how many clips are judged, and of how many.

    Raises:
        ReelignError: a clip is missing or stands in votes with two prompts, or a reward cannot be loaded or does not
            score a clip.
    """
    clips = _clips([vote for axis in axes_of(votes) for vote in plain(votes, axis) if vote.source != "model"])
    judges: dict[str, Judge] = {}
    if all(read_prompt(prompt) is not None for prompt in clips.values()):
        judges["miniature, training judge"] = _Asked(MiniatureReward())
        judges["miniature, evaluation judge"] = _evaluation
    judges["pixels (sharpness, steadiness)"] = _Asked(Pixels(), {"sharpness": "visual", "steadiness": "motion"})
    judges |= {f"fitted: {folder}": _Asked(LearnedReward(folder)) for folder in fitted}
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in judges}
    for start in range(0, len(clips), BATCH):
        part = list(clips.items())[start : start + BATCH]
        seen = [replace(read_clip(Path(file), prompt), id=file) for file, prompt in part]
        for name, ask in judges.items():
            found[name] |= {clip.id: _with_overall(scores) for clip, scores in zip(seen, ask(seen), strict=True)}
        told("ask judges", start + len(part), len(clips))
    return found


def _clips(votes: Sequence[Vote]) -> dict[str, str]:
    """Files with their prompts."""
    if missing := missing_clips(votes):
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise ReelignError(
            f"judges cannot look at {len(missing)} of the clips, which are not there: {', '.join(missing[:NAMED])}"
            f"{more}. Put them back, or ask no judges: --no-judges."
        )
    found: dict[str, str] = {}
    for vote, side in chain.from_iterable(((vote, vote.a), (vote, vote.b)) for vote in votes):
        if found.setdefault(side.clip, vote.prompt) != vote.prompt:
            raise ReelignError(
                f"{side.clip} stands in votes with two prompts, {found[side.clip]!r} and {vote.prompt!r}: judges "
                "cannot tell by which to judge it. Ask none: --no-judges."
            )
    return found


@dataclass(frozen=True)
class _Asked:
    """A reward as a judge; `axes` says of which axis its dimensions speak, where they have other names."""

    reward: Reward
    axes: Mapping[str, str] | None = None

    def __call__(self, clips: Sequence[Clip]) -> list[dict[str, float]]:
        scores = self.reward(clips)
        named = self.axes or {axis: axis for axis in AXES}
        return [
            {named[name]: float(values[place]) for name, values in scores.items() if name in named}
            for place in range(len(clips))
        ]


def _evaluation(clips: Sequence[Clip]) -> list[dict[str, float]]:
    """The miniature's evaluation judge, which sees clips as the training judge does."""
    found = []
    for clip in clips:
        prompt = read_prompt(clip.prompt)
        assert prompt is not None
        found.append(dict(judge(fit(clip, MiniatureReward.needs).frames, prompt.scene, prompt.stated).scores))
    return found


def _with_overall(scores: dict[str, float]) -> dict[str, float]:
    parts = {"visual", "motion", "text"}
    if "overall" in scores or not parts <= scores.keys():
        return scores
    return scores | {"overall": fmean(scores[axis] for axis in parts)}
