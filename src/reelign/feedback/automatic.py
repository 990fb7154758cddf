"""What automatic judges say of the clips that people voted on, so that their agreement with people can be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from reelign.data.clip import Clip, read_clip
from reelign.errors import ReelignError
from reelign.feedback.vote import AXES, Vote, missing_clips
from reelign.miniature.captions import read_prompt
from reelign.miniature.judge import judge
from reelign.rewards.base import Reward
from reelign.rewards.miniature import MiniatureReward
from reelign.rewards.pixels import Pixels
from reelign.rewards.preference import LearnedReward

Told = Callable[[str, int, int], None]
BATCH = 16
AXIS_OF = {"preference": "overall", "steadiness": "motion", "sharpness": "visual"}
"""Dimensions of rewards that speak of an axis under another name."""


def automatic_scores(
    votes: Sequence[Vote], fitted: Sequence[Path], told: Told
) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of every judge that can be asked here: by name of the judge, file of a clip, and axis.

    Of the miniature's prompts these are its two judges; of all prompts the weight-free measures and the fitted rewards
    that are named. A judge that speaks of visual quality, motion and text speaks of the whole by their mean.

    Raises:
        ReelignError: a clip is missing, or a reward cannot be loaded or does not score a clip.
    """
    if missing := missing_clips(votes):
        raise ReelignError(f"the votes name clips that are not there: {missing[0]} (and {len(missing) - 1} more).")
    clips = _clips(votes)
    rewards: dict[str, Reward] = {"pixels": Pixels()}
    if all(read_prompt(clip.prompt) is not None for clip in clips):
        rewards = {"miniature, training judge": MiniatureReward(), **rewards}
    rewards |= {f"fitted: {folder}": LearnedReward(folder) for folder in fitted}
    found = {name: _of_reward(name, reward, clips, told) for name, reward in rewards.items()}
    if "miniature, training judge" in found:
        found["miniature, evaluation judge"] = {clip.id: _evaluation(clip) for clip in clips}
    return found


def _clips(votes: Sequence[Vote]) -> list[Clip]:
    named = dict.fromkeys((side.clip, vote.prompt) for vote in votes for side in (vote.a, vote.b))
    return [replace(read_clip(Path(file), prompt), id=file) for file, prompt in named]


def _of_reward(name: str, reward: Reward, clips: Sequence[Clip], told: Told) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for start in range(0, len(clips), BATCH):
        part = clips[start : start + BATCH]
        scores = reward(part)
        for place, clip in enumerate(part):
            found[clip.id] = _by_axis({dimension: float(values[place]) for dimension, values in scores.items()})
        told(f"judge: {name}", start + len(part), len(clips))
    return found


def _evaluation(clip: Clip) -> dict[str, float]:
    prompt = read_prompt(clip.prompt)
    assert prompt is not None
    return _by_axis(judge(clip.frames, prompt.scene, prompt.stated).scores)


def _by_axis(scores: dict[str, float]) -> dict[str, float]:
    own = {AXIS_OF.get(name, name): value for name, value in scores.items()}
    own = {axis: value for axis, value in own.items() if axis in AXES}
    if "overall" not in own and {"visual", "motion", "text"} <= own.keys():
        own["overall"] = fmean(own.values())
    return own
