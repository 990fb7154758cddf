"""Stage 2, RLHF: GRPO on the denoising trajectory (arXiv 2604.25427, section 3.2), and DiffusionNFT beside it.

One update: sample a group of clips for each of some prompts, score them, turn scores into advantages within the group,
and follow the gradient of the clipped surrogate at the transitions that were stochastic. Rollout and replay are one
function, so the ratio of the first replay is 1 and no log-probability is computed twice. Variants are data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from reelign.errors import ReelignError
from reelign.flow.policy import Advantages, best_and_worst, group_advantages
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from reelign.rewards.base import RewardSet, Scores
from reelign.rewards.recipe import RewardEntry, build_rewards
from reelign.sampling.noise import generator
from reelign.sampling.sample import SampleConfig
from reelign.stages.algorithm import Algorithm
from reelign.stages.asked import PromptSource, build_prompts, drawn
from reelign.stages.context import StageContext
from reelign.stages.objectives import Told, forward_process_loss, lessons, trajectory_loss
from reelign.stages.rollout import Place, Rollout, longest_first, roll_out, rows_of, steps_of, to_clips
from reelign.stages.training import WatchedConfig, WatchedTraining


class RlhfConfig(WatchedConfig):
    """Reinforcement learning from rewards. One update samples `prompts_per_update x group_size` clips."""

    prompts: list[PromptSource] = Field(min_length=1, description="What is asked for; no videos are needed.")
    rewards: list[RewardEntry] = Field(min_length=1, description="Who judges, and the weight of each dimension.")
    algorithm: Algorithm = Field(default_factory=Algorithm, description="Preset and its changes.")
    prompts_per_update: int = Field(default=8, ge=1, description="Groups an update, over all ranks.")
    group_size: int = Field(default=8, ge=2, description="Clips a prompt.")
    micro_batch: int = Field(default=32, ge=1, description="Clips that are sampled or trained on at once on a rank.")
    select: int | None = Field(default=None, ge=2, description="Train on this many best and worst clips of a group.")

    @model_validator(mode="after")
    def _budget_fits(self) -> Self:
        if self.select is not None and (self.select % 2 or self.select > self.group_size):
            raise ValueError(f"select={self.select} must be even and at most group_size={self.group_size}")
        return self


def run_rlhf(context: StageContext, config: RlhfConfig) -> Path:
    """Train the parent on rewards and write the artifact to `context.folder / "model"`; resumes what was begun."""
    model = load_model(context.parent, dtype=context.dtype, device=context.world.device)
    with ThreadPoolExecutor(1, "reward") as judges:
        trainer = Trainer(model, build_rewards(config.rewards), judges, context, config)
        trainer.resume()
        trainer.train()
        return trainer.finish()


class Trainer(WatchedTraining):
    """Groups are sampled, scored and learned from; `train` is the loop."""

    stage: ClassVar = "rlhf"
    followed: ClassVar = ("reward", "diversity")

    def __init__(
        self,
        model: VideoModel,
        rewards: RewardSet,
        judges: ThreadPoolExecutor,
        context: StageContext,
        config: RlhfConfig,
    ) -> None:
        self.rewards, self.judges, self.config, self.algorithm = rewards, judges, config, config.algorithm
        if config.prompts_per_update % context.world.size:
            raise ReelignError(
                f"rlhf.prompts_per_update={config.prompts_per_update} does not divide over {context.world.size} ranks."
            )
        self.prompts = build_prompts(config.prompts)
        self.sampler = training_sampler(context.sampler, self.algorithm)
        self.algorithm.candidates(self.sampler.steps)  # a grid too short for it is refused before anything is sampled
        self.replayed = self.sampler
        if self.algorithm.guidance == "rollout":
            self.replayed = self.sampler.model_copy(update={"guidance_scale": 1.0})
        self.reference = None
        if self.algorithm.kl:
            self.reference = load_model(context.parent, dtype=context.dtype, device=context.world.device)
        super().__init__(model, context, config)

    def note(self, numbers: dict[str, float]) -> str:
        """The mean training reward."""
        return f"reward {numbers['reward']:.3f}"

    @property
    def clips_an_update(self) -> int:
        """All clips of all groups."""
        return self.config.prompts_per_update * self.config.group_size

    def one_update(self) -> dict[str, float]:
        """Rollout, reward, advantage, update."""
        clock = Clock()
        rows, rollouts, answers = [], [], []
        for chunk in self.chunks():
            found = roll_out(
                self.model,
                chunk,
                self.config.group_size,
                self.algorithm,
                self.sampler,
                self.context.battery,
                self.update,
                self.context.seed,
            )
            clock.lap("rollout")
            clips = to_clips(self.model, found, chunk, self.config.group_size, self.context.battery)
            clock.lap("decode")
            rows.append(chunk)
            rollouts.append(found)
            answers.append(self.judges.submit(self.rewards, clips))  # scored while the next chunk is sampled
        scores = self.gathered(answers)
        clock.lap("reward")
        advantages = group_advantages(
            scores, self.rewards.weights, self.algorithm.denominator, self.algorithm.advantage_bound
        )
        numbers = self.learn(rollouts, self.own(advantages))
        clock.lap("update")
        nfe = [numbers["nfe"] + sum(found.nfe for found in rollouts), numbers["nfe"]]
        total = self.context.world.sum(torch.tensor(nfe, device=self.context.world.device))
        numbers["nfe"], numbers["nfe_trained"] = map(float, total)
        groups = torch.cat([found.latents for found in rollouts]).unflatten(0, (-1, self.config.group_size))
        numbers["diversity"] = float(self.context.world.mean(groups.std(1, correction=0).mean()))
        return numbers | described(scores, advantages, self.rewards.weights) | clock.seconds

    def chunks(self) -> list[list[tuple[Place, int]]]:
        """This rank's rows of the update, in micro-batches. Every rank has as many, and each takes as many forwards."""
        config, world = self.config, self.context.world
        share = config.prompts_per_update // world.size
        first = self.update * config.prompts_per_update + world.rank * share
        positions = range(first, first + share)
        places = [
            Place(p, t) for p, t in zip(positions, drawn(self.prompts, positions, self.context.seed), strict=True)
        ]
        rows = rows_of(places, config.group_size, self.algorithm)
        if self.algorithm.branches:
            rows = longest_first(rows, steps_of(rows, self.algorithm, self.sampler, self.update, self.context.seed))
        size = max(1, config.micro_batch // (config.group_size if self.algorithm.branches else 1))
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def gathered(self, answers: Sequence[Future[Scores]]) -> dict[str, Tensor]:
        """Scores of all ranks by name, float64 (prompts, group)."""
        parts = [answer.result() for answer in answers]
        own = {name: torch.cat([torch.from_numpy(part[name]) for part in parts]) for name in parts[0]}
        world, group = self.context.world, self.config.group_size
        return {
            name: world.gather(values.to(world.device)).cpu().view(-1, group) for name, values in sorted(own.items())
        }

    def own(self, advantages: Advantages) -> Tensor:
        """Advantages of this rank's clips, (clips,); nan for clips that are not learned from."""
        used = advantages.kept[:, None].expand_as(advantages.values)
        if self.config.select is not None:
            extremes = best_and_worst(advantages.values, self.config.select)
            used = used & torch.zeros_like(used).scatter(1, extremes, True)
        share = len(used) // self.context.world.size
        mine = slice(self.context.world.rank * share, (self.context.world.rank + 1) * share)
        return torch.where(used, advantages.values, torch.nan)[mine].flatten()

    def learn(self, rollouts: Sequence[Rollout], advantages: Tensor) -> dict[str, float]:
        """One optimiser step on all rollouts; the loss is the mean over what all ranks learn from."""
        told, world = Told(), self.context.world
        losses = self.nft_losses if self.algorithm.objective == "nft" else self.policy_losses
        terms = [(~advantages.isnan()).sum() * max(1, len(rollouts[0].transitions))]
        count = float(world.sum(torch.stack(terms).to(world.device).float())) / world.size
        total, lr = torch.zeros((), device=world.device), self.trainee.optimizer.lr
        for loss in losses(rollouts, advantages, told):
            part = loss.sum() / max(count, 1.0)
            part.backward()
            total += part.detach()
        if self.update == 0 and told.ratio_drift >= self.algorithm.clip_range:
            raise ReelignError(
                f"before the first update the ratio is already {told.ratio_drift:.1e} away from 1, beyond "
                f"rlhf.algorithm.clip_range={self.algorithm.clip_range:g}: every clip would be clipped. Raise it."
            )
        grad_norm = self.trainee.optimizer.step() if count else 0.0
        if count:
            self.trainee.ema.update()
        return {
            "loss": float(world.mean(total)),
            "grad_norm": grad_norm,
            "lr": lr,
            "ratio_drift": told.ratio_drift,
            "clipped": told.clipped / max(count, 1.0),
            "learned": count * world.size,
            "nfe": float(told.nfe),
        }

    def policy_losses(self, rollouts: Sequence[Rollout], advantages: Tensor, told: Told) -> Iterator[Tensor]:
        """The surrogate at every stored transition."""
        for lesson in lessons(rollouts, advantages, self.algorithm, self.sampler, self.context.world):
            yield trajectory_loss(self.model, self.reference, lesson, self.algorithm, self.replayed, told)

    def nft_losses(self, rollouts: Sequence[Rollout], advantages: Tensor, told: Told) -> Iterator[Tensor]:
        """DiffusionNFT on every sampled clip at `nft_levels` levels of the grid, no level twice before all were there.
        Levels and noise follow from the clip's place, or from its group's when the groups are iso-temporal: what the
        clips have in common then cancels."""
        algorithm, first = self.algorithm, self.context.world.rank * len(advantages)
        together = self.config.group_size if algorithm.iso_temporal else 1
        keys = [(self.context.seed, self.update, (first + clip) // together) for clip in range(len(advantages))]
        steps = self.sampler.steps
        orders = torch.stack([torch.randperm(steps, generator=generator("nft level", *key)) for key in keys])
        for repeat in range(algorithm.nft_levels):
            start = 0
            for found in rollouts:
                clips = slice(start, start + len(found.latents))
                start = clips.stop
                levels = self.sampler.grid[orders[clips, repeat % steps]].to(found.latents)
                sources = [generator("nft noise", *key, repeat) for key in keys[clips]]
                noise = torch.stack([torch.randn(found.latents.shape[1:], generator=g) for g in sources])
                worth, noise = advantages[clips].to(levels), noise.to(found.latents)
                loss = forward_process_loss(self.model, found, worth, levels, noise, algorithm, told)
                yield loss / algorithm.nft_levels


class Clock:
    """Seconds of an update by phase; what a GPU still computes belongs to the phase that asked for it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = self._now()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to a phase."""
        now = self._now()
        name = f"seconds/{phase}"
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def training_sampler(deployed: SampleConfig, algorithm: Algorithm) -> SampleConfig:
    """The deployment sampler on the very same grid (of fewer steps, if the algorithm says so). For a policy gradient it
    takes Euler steps, which a stochastic step can replace; DiffusionNFT learns from the clips of any sampler."""
    changes: dict[str, Any] = {
        "guidance_scale": 1.0 if algorithm.guidance == "none" else deployed.guidance_scale,
        "steps": algorithm.rollout_steps or deployed.steps,
    }
    if algorithm.objective == "grpo":
        changes |= {"solver": "euler", "spacing": deployed.spacing or deployed.solver}
    return deployed.model_copy(update=changes)


def described(scores: dict[str, Tensor], advantages: Advantages, weights: dict[str, float]) -> dict[str, float]:
    """Raw and normalised rewards of an update, for the log: means, spread inside groups, what was dropped."""
    numbers = {f"reward/{name}": float(values.mean()) for name, values in scores.items()}
    numbers |= {f"spread/{name}": float(values.std(1, correction=0).mean()) for name, values in scores.items()}
    numbers |= {f"zero_spread/{name}": share for name, share in advantages.zero_spread.items()}
    total = sum(abs(weight) for weight in weights.values())
    mean = sum(weight * float(scores[name].mean()) for name, weight in weights.items())
    return numbers | {
        "reward": mean / total if total else 0.0,
        "advantage/clipped": advantages.clipped,
        "advantage/size": float(advantages.values.abs().mean()),
        "groups_kept": float(advantages.kept.double().mean()),
    }
