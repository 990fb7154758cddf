"""Votes on rendered clips, and rewards fitted to them: here, or in processes of their own, alone or as ranks."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch

import voting
from forks import SERVER
from reelign.data.clip import write_clip
from reelign.feedback.vote import AXES, Shown, Vote, read_votes
from reelign.miniature.captions import full_prompt
from reelign.miniature.render import defective, render
from reelign.miniature.world import FPS, scenes
from reelign.stages.context import StageContext
from reelign.stages.reward import RewardConfig, run_reward
from reelign.train.parallel import World, leave

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
    """Begin the fit on some ranks, each in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        SERVER.Process(target=_fit, args=(folder, votes, shared | {"RANK": str(r), "LOCAL_RANK": str(r)}))
        for r in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def _fit(folder: Path, votes: Path, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    world = World.start()
    run_reward(context(folder, world), config(), read_votes(votes))
    world.barrier()
    leave(0)
