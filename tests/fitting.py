"""Votes on rendered clips, and rewards fitted to them: here, or in processes of their own, alone or as ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

import voting
from reelign.data.clip import write_clip
from reelign.feedback.vote import AXES, Shown, Vote, read_votes
from reelign.miniature.captions import full_prompt
from reelign.miniature.render import defective, render
from reelign.miniature.world import FPS, scenes
from reelign.stages.context import StageContext
from reelign.stages.reward import RewardConfig, run_reward
from reelign.train.parallel import World

SMALL = {
    "network": {"kind": "miniature"},
    "updates": 6,
    "batch_size": 8,
    "micro_batch": 4,
    "optim": {"lr": 0.02},
    "validate_every": 3,
    "save_every": 1,
    "patience": None,
    "held_out": 0.4,
}


def config(**changes: object) -> RewardConfig:
    """A fit of seconds."""
    return RewardConfig.model_validate(SMALL | changes)


def context(folder: Path, world: World = voting.ALONE) -> StageContext:
    """What a run hands to the stage."""
    return replace(voting.context(folder, world), folder=folder / "reward")


def voted(folder: Path, count: int) -> list[Vote]:
    """Clean clips against noisy ones, on prompts of their own: all raters like the clean ones, whichever side they are
    on; on the words nobody sees a difference."""
    pool, votes = scenes(held_out=False), []
    for number in range(count):
        source = np.random.default_rng((5, number))
        scene = pool[int(source.integers(len(pool)))]
        prompt = full_prompt(scene).text
        clean, noisy = render(scene, source), defective(scene, source, "noise", 1.2)
        sides = []
        for name, video in (("clean", clean), ("noisy", noisy)):
            path = folder / f"{number}-{name}.mp4"
            write_clip(path, video, FPS)
            sides.append(Shown(name, str(path)))
        a, b = sides if number % 2 else sides[::-1]
        better = "good" if number % 2 else "bad"
        for axis in AXES:
            said = "same" if axis == "text" else better
            votes.append(Vote(f"p{number}", prompt, a, b, axis, said, "ada", 3.0, "a", "plain", "simulated"))
    return votes


def start(folder: Path, votes: Path, ranks: int) -> Sequence[BaseProcess]:
    """Begin the fit on some ranks."""
    return voting.in_ranks(_fit, folder, votes, ranks=ranks)


def _fit(world: World, folder: Path, votes: Path) -> None:
    run_reward(context(folder, world), config(), read_votes(votes))
