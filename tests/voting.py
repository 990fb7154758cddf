"""Votes on clips of the miniature, and Flow-DPO on them: here, or in processes of their own, alone or as ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from forks import places, started
from reelign.data.clip import write_clip
from reelign.evaluate.battery import BatteryConfig, generate_batch
from reelign.feedback.vote import Axis, Kind, Shown, Verdict, Vote, read_votes
from reelign.models.load import load_model
from reelign.sampling.sample import SampleConfig
from reelign.stages.asked import MiniaturePrompts, build_prompts
from reelign.stages.context import StageContext
from reelign.stages.dpo import DpoConfig, run_dpo
from reelign.train.ledger import Ledger
from reelign.train.loop import Interrupt
from reelign.train.parallel import World, leave

ALONE = World(0, 1, torch.device("cpu"), None)
BATTERY = BatteryConfig(count=2, validation_count=2)
SAMPLER = SampleConfig(steps=2, guidance_scale=1.0)
SMALL = {
    "updates": 4,
    "pairs_per_update": 4,
    "micro_batch": 2,
    "validate_every": 2,
    "save_every": 1,
    "patience": None,
    "held_out": 0.3,
    "optim": {"lr": 1e-3},
}


def vote(
    pair: str,
    prompt: str,
    clips: tuple[str, str],
    verdict: Verdict,
    axis: Axis = "overall",
    rater: str = "ada",
    kind: Kind = "plain",
) -> Vote:
    """A simulated vote on two clips."""
    a, b = (Shown(f"model {side}", clip) for side, clip in enumerate(clips))
    return Vote(pair, prompt, a, b, axis, verdict, rater, 4.0, "a", kind, "simulated")


def made_pairs(folder: Path, count: int) -> list[tuple[str, str, tuple[str, str]]]:
    """Pair, prompt and clips: two clips of each of `count` training prompts, as the miniature draws them in haste."""
    model = load_model("miniature", device="cpu")
    prompts = build_prompts([MiniaturePrompts(kind="miniature", count=count)])
    found = []
    for prompt in prompts:
        asked = [(prompt.text, f"{prompt.id} {side}") for side in "ab"]
        frames, _ = generate_batch(model, asked, BATTERY, SAMPLER, seed=5)
        clips = [folder / f"{prompt.id}-{side}.mp4" for side in "ab"]
        for path, video in zip(clips, frames, strict=True):
            write_clip(path, video, BATTERY.fps)
        found.append((f"pair-{prompt.id}", prompt.text, (str(clips[0]), str(clips[1]))))
    return found


def config(**changes: object) -> DpoConfig:
    """A training of seconds."""
    return DpoConfig.model_validate(SMALL | changes)


def context(folder: Path, world: World = ALONE) -> StageContext:
    """What a run hands to the stage."""
    return StageContext(
        folder=folder / "dpo",
        parent="miniature",
        dataset=None,
        seed=0,
        dtype="float32",
        sampler=SAMPLER,
        battery=BATTERY,
        world=world,
        ledger=Ledger(folder / "ledger.jsonl", enabled=world.is_main),
        interrupt=Interrupt(),
    )


def in_ranks(work: Callable[..., None], *arguments: object, ranks: int) -> Sequence[BaseProcess]:
    """Begin `work(world, *arguments)` on one rank or several, each in a process of its own."""
    return [started(_rank, work, arguments, place | {"CUDA_VISIBLE_DEVICES": ""}) for place in places(ranks)]


def _rank(work: Callable[..., None], arguments: Sequence[object], variables: dict[str, str]) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    world = World.start()
    work(world, *arguments)
    world.barrier()
    leave(0)


def start(folder: Path, votes: Path, ranks: int = 1, **changes: object) -> Sequence[BaseProcess]:
    """Begin the training on one rank or several."""
    return in_ranks(_train, folder, votes, changes, ranks=ranks)


def _train(world: World, folder: Path, votes: Path, changes: dict[str, object]) -> None:
    run_dpo(context(folder, world), config(**changes), read_votes(votes))
