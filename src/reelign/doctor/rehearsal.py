"""A rehearsal of reinforcement learning: the first two groups of the run, sampled, judged and learned from for real.

It is the stage's own code on the recipe's model, prompts, rewards and sampler, in a folder that is thrown away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from reelign.data.clip import Clip
from reelign.doctor.finding import on_all_ranks
from reelign.doctor.learned import rehearsed_rewards
from reelign.doctor.memory import free_disk
from reelign.errors import ReelignError
from reelign.models.load import load_model
from reelign.recipe import Recipe
from reelign.stages.algorithm import Algorithm
from reelign.stages.context import StageContext
from reelign.stages.objectives import Told
from reelign.stages.rlhf import RlhfConfig, Trainer
from reelign.stages.rollout import Rollout, roll_out, to_clips
from reelign.train.ledger import Ledger
from reelign.train.loop import Interrupt
from reelign.train.parallel import World, full

GROUPS = 2
"""Prompts a rank: the first of the run."""


@dataclass(frozen=True)
class Groups:
    """The clips of this rank's groups, what is needed to learn from them, and the seconds that they took."""

    rollouts: list[Rollout]
    clips: list[Clip]
    seconds_sampling: float
    seconds_decoding: float

    @property
    def nfe(self) -> int:
        """Network evaluations."""
        return sum(found.nfe for found in self.rollouts)


@contextmanager
def rehearsal(recipe: Recipe, config: RlhfConfig, world: World) -> Iterator[Trainer]:
    """The stage's trainer on `GROUPS` prompts a rank; its ratios are not clipped, so that they can be looked at.

    Raises:
        ReelignError: a model, a reward or a prompt list does not load, or the device's memory is full.
    """
    unclipped = config.algorithm.model_copy(update={"clip_range": math.inf})
    small = config.model_copy(update={"prompts_per_update": GROUPS * world.size, "track": [], "algorithm": unclipped})
    with TemporaryDirectory() as folder, ThreadPoolExecutor(1, "reward") as judges:
        context = context_in(Path(folder), recipe, world)

        def make() -> Trainer:
            model = load_model(recipe.model, dtype=recipe.dtype, device=world.device)
            rewards = rehearsed_rewards(recipe, config.rewards, world.device)
            return Trainer(model, rewards, judges, context, small)

        advice = "Lower rlhf.micro_batch, turn on rlhf.gradient_checkpointing, or use rlhf.method=lora or more ranks."
        with within_memory(advice):
            yield on_all_ranks(world, make)


@contextmanager
def within_memory(advice: str) -> Iterator[None]:
    """Within this context a full memory is a sentence with advice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ReelignError(f"the device's memory is full ({str(error).splitlines()[0]}). {advice}") from error


def context_in(folder: Path, recipe: Recipe, world: World) -> StageContext:
    """What a run would hand to a stage whose parent is the recipe's model."""
    return StageContext(
        folder=folder,
        parent=recipe.model,
        dataset=None,
        seed=recipe.seed,
        dtype=recipe.dtype,
        sampler=recipe.sampler,
        battery=recipe.battery,
        world=world,
        ledger=Ledger(folder / "ledger.jsonl", enabled=False),
        interrupt=Interrupt(),
    )


@contextmanager
def shared_folder(recipe: Recipe, world: World) -> Iterator[Path]:
    """A folder that all ranks see, for a while: where the runs are, because ranks may be on several machines."""
    if world.mesh is None:
        with TemporaryDirectory() as name:
            yield Path(name)
        return
    own = TemporaryDirectory(dir=free_disk(recipe)[0]) if world.is_main else None
    names = [own.name if own is not None else ""]
    dist.broadcast_object_list(names)
    try:
        yield Path(names[0])
    finally:
        if own is not None:  # no rank reads any more: every rehearsal ends with numbers of all ranks
            own.cleanup()


def sample_groups(trainer: Trainer, algorithm: Algorithm) -> Groups:
    """Sample and decode the groups by an algorithm, which need not be the recipe's."""
    size, group, seed = trainer.context.battery, trainer.config.group_size, trainer.context.seed
    before, trainer.algorithm = trainer.algorithm, algorithm
    chunks, trainer.algorithm = trainer.chunks(), before
    _warm_up(trainer)
    rollouts, clips, sampling, decoding = [], [], 0.0, 0.0
    for chunk in chunks:
        began = now()
        found = roll_out(trainer.model, chunk, group, algorithm, trainer.sampler, size, 0, seed)
        sampled = now()
        clips += to_clips(trainer.model, found, chunk, group, size)
        rollouts.append(found)
        sampling, decoding = sampling + sampled - began, decoding + now() - sampled
    return Groups(rollouts, clips, sampling, decoding)


def judged(trainer: Trainer, clips: Sequence[Clip]) -> tuple[dict[str, Tensor], float]:
    """Scores of all ranks by name, float64 (prompts, group), and the seconds that this rank's took.

    Raises:
        ReelignError: a reward failed on some rank.
    """
    began = now()
    answer = trainer.judges.submit(trainer.rewards, clips)
    on_all_ranks(trainer.context.world, answer.result)
    return trainer.gathered([answer]), now() - began


def replayed(trainer: Trainer, rollouts: Sequence[Rollout]) -> tuple[Told, float]:
    """The backward passes of an update that praises every second clip and blames the others, and their seconds."""
    count = sum(len(found.latents) for found in rollouts)
    advantages, told, began = torch.ones(count), Told(), now()
    advantages[1::2] = -1
    losses = trainer.nft_losses if trainer.algorithm.objective == "nft" else trainer.policy_losses
    for loss in losses(rollouts, advantages, told):
        (loss.sum() / count).backward()
    return told, now() - began


def without_gradient(trainer: Trainer) -> list[str]:
    """Names of the trained tensors that the backward passes left without any gradient, on all ranks together."""
    counts = []
    for parameter in trainer.trainee.parameters.values():
        grad = parameter.grad
        own = grad.to_local() if isinstance(grad, DTensor) else grad
        counts.append(0.0 if own is None else float(own.count_nonzero()))
    world = trainer.context.world
    total = world.sum(torch.tensor(counts, dtype=torch.float64, device=world.device))
    return [name for name, found in zip(trainer.trainee.parameters, total.tolist(), strict=True) if not found]


def unequal(world: World, weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights that are not the same on all ranks, by their sums and sums of squares."""
    wholes = (full(weight.detach()).double() for weight in weights.values())
    marks = torch.stack([torch.stack([whole.sum(), whole.square().sum()]) for whole in wholes])
    ranks = world.gather(marks[None])
    same = (ranks == ranks[:1]).all(0).all(1).tolist()
    return [name for name, is_same in zip(weights, same, strict=True) if not is_same]


def equal_ranks(world: World, weights: Mapping[str, Tensor]) -> str:
    """Whether all ranks hold the same trained tensors, after an update.

    Raises:
        ReelignError: they do not.
    """
    if world.size == 1:
        return "one; under torchrun this line compares the weights of all ranks after an update."
    if apart := unequal(world, weights):
        raise ReelignError(
            f"after one update {len(apart)} of {len(weights)} trained tensors differ between the ranks, first "
            f"{apart[0]}: every rank would train a model of its own."
        )
    return f"{world.size} ranks hold equal weights after one update, in all {len(weights)} trained tensors."


@torch.no_grad()
def _warm_up(trainer: Trainer) -> None:
    """One network evaluation: the first one is slow, and what is timed afterwards speaks for a whole run."""
    model, size = trainer.model, trainer.context.battery
    noise = torch.zeros(1, *model.latent_shape(size.frames, size.height, size.width), device=model.device)
    model.velocity(noise, torch.ones(1, device=model.device), model.encode_text([""]))


def now() -> float:
    """Seconds, when the device has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
