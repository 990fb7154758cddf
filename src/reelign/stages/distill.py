"""Stage 4, distillation: few steps by distribution matching, then a causal student, then self-forcing.

    few_step       a student of a few steps that sees all frames (DMD, arXiv 2311.18828, 2405.14867)
    initialise     the first weights of a causal student, by regression on trajectories (`causal_init.py`)
    self_forcing   matching again, on clips that the causal student makes from its own past (arXiv 2506.08009)

Each begins where the one before it ended and leaves an artifact; the last one is that of the stage. Prompts are all
that it needs. Prompts, noise, levels and exit steps follow from the number of updates done.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reelign.data.prompts import ListedPrompt
from reelign.errors import ReelignError
from reelign.flow.match import matching_gradient, matching_levels, matching_loss
from reelign.flow.path import interpolate, to_x0, velocity_target
from reelign.models.adapter import merge_lora
from reelign.models.base import CARD, Conditions, VideoModel
from reelign.models.load import ENHANCER, enhancer_folder, load_model
from reelign.sampling.noise import generator, initial_noise
from reelign.sampling.sample import SampleConfig, guided_velocity
from reelign.stages.asked import build_prompts, drawn
from reelign.stages.causal_init import Initialisation, Trajectories
from reelign.stages.context import StageContext
from reelign.stages.distill_recipe import DistillConfig, MatchConfig
from reelign.stages.student import Watch, chunks_of, student_clip
from reelign.stages.trainee import Trainee, choose_trained, trained
from reelign.train.checkpoint import Checkpoints
from reelign.train.optim import Optimizer
from reelign.train.track import Tracker

PARTS = ("few_step", "initialise", "self_forcing")


def run_distill(context: StageContext, config: DistillConfig) -> Path:
    """Distil the parent, part by part, and write the artifact to `context.folder / "model"`; resumes what was begun."""
    base = load_model(context.parent, dtype=context.dtype, device=context.world.device)
    merge_lora(base)
    teacher = base if config.teacher is None else load_teacher(config.teacher, base, context)
    prompts = build_prompts(config.prompts)
    if config.causal is not None:
        size = context.battery
        config.causal.blocks(base.latent_shape(size.frames, size.height, size.width)[1])  # refused before the hours
    started, parts = context.parent, [part for part in PARTS if getattr(config, part) is not None]
    for part in parts:
        own = replace(context, folder=context.folder / part.replace("_", "-"), parent=started)
        target = (context.folder if part == parts[-1] else own.folder) / "model"
        if not (target / CARD).exists():
            student = student_of(base, started, config, causal=part != "few_step")
            if part == "initialise":
                ways = trajectories_of(base, teacher, started, config, own)
                trainer = Initialisation(student, teacher, prompts, ways, own, config)
            else:
                trainer = Matching(student, teacher, base, prompts, own, config, part)
            trainer.resume()
            trainer.train()
            trainer.finish(target)
        started = str(target)
    own_enhancer(context, Path(started))
    return Path(started)


def own_enhancer(context: StageContext, artifact: Path) -> None:
    """The student's artifact carries the prompt enhancer of its parent, if there is one: its words are the same."""
    found = enhancer_folder(context.parent)
    if found is not None and context.world.is_main:
        shutil.copytree(found, artifact / ENHANCER, dirs_exist_ok=True)
    context.world.barrier()


def load_teacher(name: str, base: VideoModel, context: StageContext) -> VideoModel:
    """Another model as the teacher.

    Raises:
        ReelignError: its latents are not those of the student.
    """
    teacher = load_model(name, dtype=context.dtype, device=context.world.device)
    merge_lora(teacher)
    size = context.battery
    own, other = (model.latent_shape(size.frames, size.height, size.width) for model in (base, teacher))
    if own != other:
        raise ReelignError(
            f"distill.teacher: the latents of {name} are {other} (channels, frames, height, width) for a clip whose "
            f"latents are {own} in {base.name}; teacher and student must share an autoencoder."
        )
    for network in teacher.denoisers().values():
        context.world.shard(network)
    return teacher


def student_of(base: VideoModel, started: str, config: DistillConfig, causal: bool) -> VideoModel:
    """A copy of the base with the weights of an artifact, that samples in few steps."""
    student = base.twin()
    if started != base.name:
        found = load_model(started, device="cpu")
        merge_lora(found)
        for name, network in student.denoisers().items():
            network.load_state_dict(found.denoisers()[name].state_dict())
    student.own_sampler = config.sampler.model_dump(mode="json")
    if causal:
        assert config.causal is not None
        student.make_causal(config.causal)
    return student


def trajectories_of(
    base: VideoModel, teacher: VideoModel, started: str, config: DistillConfig, context: StageContext
) -> Trajectories:
    """The trajectories that the first causal weights are fitted to."""
    assert config.initialise is not None
    folder = context.folder / "trajectories"
    if config.initialise.teacher == "few_step":
        return Trajectories(folder, student_of(base, started, config, causal=False), config.sampler, None)
    return Trajectories(folder, teacher, config.sampler, guidance_of(config, context))


def guidance_of(config: DistillConfig, context: StageContext) -> SampleConfig:
    """How the teacher is guided: as it is deployed, if the recipe does not say otherwise."""
    scale = context.sampler.guidance_scale if config.guidance_scale is None else config.guidance_scale
    return SampleConfig(guidance_scale=scale, negative_prompt=context.sampler.negative_prompt)


class Matching:
    """Distribution matching of a student that sees all frames, or that is causal."""

    def __init__(
        self,
        student: VideoModel,
        teacher: VideoModel,
        base: VideoModel,
        prompts: list[ListedPrompt],
        context: StageContext,
        recipe: DistillConfig,
        part: str,
    ) -> None:
        config: MatchConfig = getattr(recipe, part)
        self.student, self.teacher, self.context, self.config, self.part = student, teacher, context, config, part
        self.sampler, self.prompts, self.chunks = recipe.sampler, prompts, chunks_of(config, context.world)
        self.guidance = guidance_of(recipe, context)
        before = recipe.few_step
        self.inherits = before is not None and (before.method, before.lora) == (config.method, config.lora)
        self.critic = base.twin()
        self.trainee = Trainee(student, config, config.updates, context)
        choose_trained(self.critic, config, context.seed)
        for network in self.critic.denoisers().values():
            context.world.shard(network)
        total = config.updates * config.critic_updates
        self.critic_optimizer = Optimizer(trained(self.critic).items(), config.critic, total_steps=total)
        self.checkpoints = Checkpoints(context.folder / "checkpoints")
        self.tracker = Tracker(context.folder, enabled=context.world.is_main, sinks=config.track)
        self.watch = Watch(f"distill/{part}", student, teacher, context, config.patience, config.alarms_stop)
        self.update = 0

    def state(self) -> dict[str, Any]:
        """What training goes on from."""
        own = {"critic_optimizer": self.critic_optimizer, "watch": self.watch}
        return {**self.trainee.state(), **own, "update": self.update}

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one."""
        latest = self.checkpoints.latest()
        if latest is not None:
            self.update = int(self.checkpoints.load(latest, self.state())["update"])
        self.tracker.resume(self.update if latest is not None else -1)

    def train(self) -> None:
        """All updates that are left, unless held-out prompts no longer gain or motion is lost."""
        config, context, what = self.config, self.context, f"distill: {self.part.replace('_', ' ')}"
        if not self.watch.begun:
            self.take_critic()
            self.checkpoints.save(0, self.state(), self.validated())
        while self.update < config.updates and not self.watch.stale():
            until = min(config.updates, (self.update // config.validate_every + 1) * config.validate_every)
            with context.ledger.phase(f"distill/{self.part}") as cost:
                while self.update < until and not context.stopping():
                    numbers = self.one_update()
                    self.update += 1
                    cost.clips += config.batch_size * (config.critic_updates + 1)
                    cost.nfe += int(numbers["nfe"])
                    self.tracker.log(self.update, **numbers)
                    context.progress(what, self.update, config.updates, f"critic {numbers['critic_loss']:.3f}")
                    if self.update % config.save_every == 0 and self.update < until:
                        self.checkpoints.save(self.update, self.state())
            self.checkpoints.save(self.update, self.state(), self.validated() if self.update == until else None)
            if context.stopping():
                raise ReelignError(f"stopped after update {self.update} as asked; the same command goes on from here.")

    def take_critic(self) -> None:
        """Begin with the critic that the few-step student left, if there is one that is trained alike: it knows what
        the student makes, which the teacher's weights do not."""
        found = Checkpoints(self.context.folder.parent / "few-step" / "checkpoints").best()
        if self.part == "self_forcing" and found is not None and self.inherits:
            self.checkpoints.load(found, {"critic_optimizer": self.critic_optimizer})
            self.critic_optimizer.steps_done = 0

    def one_update(self) -> dict[str, float]:
        """Updates of the critic on fresh clips of the student, then one of the student."""
        nfe, critic_loss = 0, 0.0
        for turn in range(self.config.critic_updates):
            critic_loss, spent = self.critic_step(turn)
            nfe += spent
        lr = self.trainee.optimizer.lr
        distance, spent = self.student_step()
        grad_norm = self.trainee.optimizer.step()
        self.trainee.ema.update()
        numbers = {"critic_loss": critic_loss, "distance": distance, "grad_norm": grad_norm, "lr": lr}
        total = self.context.world.sum(torch.tensor(float(nfe + spent), device=self.context.world.device))
        return {**numbers, "nfe": float(total)}

    def critic_step(self, turn: int) -> tuple[float, int]:
        """Flow matching of the critic on what the student makes now."""
        loss, nfe = torch.zeros((), device=self.context.world.device), 0
        for conditions, noise, eps, levels, exit_step in self.drawn(turn):
            with torch.no_grad():
                clean, spent = student_clip(self.student, conditions, noise, self.sampler, exit_step)
            predicted = self.critic.velocity(interpolate(clean, eps, levels), levels, conditions)
            part = (predicted - velocity_target(clean, eps)).square().mean() / self.chunks
            part.backward()
            loss, nfe = loss + part.detach(), nfe + spent + len(noise)
        self.critic_optimizer.step()
        return float(self.context.world.mean(loss)), nfe

    def student_step(self) -> tuple[float, int]:
        """The gradient of the student: through its last call only, towards the teacher and away from the critic."""
        distance, nfe = torch.zeros((), device=self.context.world.device), 0
        for conditions, noise, eps, levels, exit_step in self.drawn(self.config.critic_updates):
            clean, spent = student_clip(self.student, conditions, noise, self.sampler, exit_step)
            with torch.no_grad():
                seen = interpolate(clean, eps, levels)
                real, evaluations = self.real_score(seen, levels, conditions)
                fake = to_x0(seen, self.critic.velocity(seen, levels, conditions), levels)
                gradient = matching_gradient(clean, real, fake)
            (matching_loss(clean, gradient) / self.chunks).backward()
            distance += gradient.abs().mean() / self.chunks
            nfe += spent + (evaluations + 1) * len(noise)
        return float(self.context.world.mean(distance)), nfe

    def real_score(self, seen: Tensor, levels: Tensor, conditions: Conditions) -> tuple[Tensor, int]:
        """What the teacher sees in a noisy clip, guided as in deployment."""
        away = self.teacher.encode_text([self.guidance.negative_prompt] * len(seen))
        velocity, evaluations = guided_velocity(self.teacher, seen, levels, conditions, self.guidance, away)
        return to_x0(seen, velocity, levels), evaluations

    def drawn(self, turn: int) -> Iterator[tuple[Conditions, Tensor, Tensor, Tensor, int]]:
        """This rank's micro-batches: conditions, the student's noise, noise and levels of the scores, and the step at
        which the student is left, which all ranks and clips share."""
        world, size, seed = self.context.world, self.context.battery, self.context.seed
        shape = self.student.latent_shape(size.frames, size.height, size.width)
        key = (self.part, seed, self.update, turn)
        exit_step = int(torch.randint(self.sampler.steps, (1,), generator=generator("exit", *key)))
        share = self.config.batch_size // world.size
        start = (self.update * (self.config.critic_updates + 1) + turn) * self.config.batch_size + world.rank * share
        for first in range(start, start + share, share // self.chunks):
            positions = range(first, first + share // self.chunks)
            texts = [prompt.text for prompt in drawn(self.prompts, positions, seed)]
            sources = [generator("match", *key, position) for position in positions]
            noise = initial_noise([(seed, self.part, position) for position in positions], shape)
            eps = torch.stack([torch.randn(shape, generator=source) for source in sources])
            levels = torch.cat([matching_levels(1, self.config.level_shift, source) for source in sources])
            yield (
                self.student.encode_text(texts),
                noise.to(world.device),
                eps.to(world.device),
                levels.to(world.device),
                exit_step,
            )

    def validated(self) -> float:
        """The held-out score of the averaged student, against the teacher in deployment."""
        with self.trainee.ema.swapped():
            numbers = self.watch.look(self.update)
        self.tracker.log(self.update, **numbers)
        return numbers["validation/mean"]

    def finish(self, target: Path) -> None:
        """Write the averaged weights with the best held-out score as the artifact `target`."""
        best = self.checkpoints.best()
        if best is not None:
            self.checkpoints.load(best, self.state())
        self.trainee.write(target)
        self.tracker.close()
