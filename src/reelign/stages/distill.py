"""Stage 4, distillation: no guidance, few steps by distribution matching, a causal student, then self-forcing.

    unguided       a student that predicts what its guided teacher does (`unguided.py`)
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
from reelign.models.base import CARD, Conditions, VideoModel, take
from reelign.models.load import ENHANCER, enhancer_folder, load_model
from reelign.models.text_encoders import difference
from reelign.sampling.noise import generator
from reelign.sampling.sample import guided_velocity, in_slices
from reelign.stages.asked import build_prompts
from reelign.stages.causal_init import Initialisation, Trajectories
from reelign.stages.context import StageContext
from reelign.stages.distill_recipe import CAUSAL, DistillConfig, MatchConfig
from reelign.stages.student import StudentTraining, student_clip
from reelign.stages.trainee import choose_trained, trained
from reelign.stages.unguided import Unguided
from reelign.train.checkpoint import Checkpoints
from reelign.train.optim import Optimizer


def run_distill(context: StageContext, config: DistillConfig) -> Path:
    """Distil the parent, part by part, and write the artifact to `context.folder / "model"`; resumes what was begun."""
    base, teacher = models_of(context, config)
    if config.causal is not None:
        size = context.battery
        config.causal.blocks(base.latent_shape(size.frames, size.height, size.width)[1])  # refused before the hours
    started, last = context.parent, list(config.parts)[-1]
    for part in config.parts:
        own = part_context(context, part, started)
        target = (context.folder if part == last else own.folder) / "model"
        if not (target / CARD).exists():
            run_part(trainer_of(part, base, teacher, config, own), target)
        started = str(target)
    own_enhancer(context, Path(started))
    return Path(started)


def run_part(trainer: StudentTraining, target: Path) -> None:
    """Train and write the artifact of a part. Nobody holds the trainer after this: the next one needs its memory."""
    trainer.resume()
    trainer.train()
    trainer.finish(target)


def models_of(context: StageContext, config: DistillConfig) -> tuple[VideoModel, VideoModel]:
    """The parent, and the teacher, which is the parent if the recipe names no other."""
    base = load_model(context.parent, dtype=context.dtype, device=context.world.device)
    merge_lora(base)
    return base, base if config.teacher is None else load_teacher(config.teacher, base, context)


def part_context(context: StageContext, part: str, started: str) -> StageContext:
    """Where a part works, and the artifact whose weights its student begins with."""
    return replace(context, folder=context.folder / part.replace("_", "-"), parent=started)


def trainer_of(
    part: str, base: VideoModel, teacher: VideoModel, config: DistillConfig, context: StageContext
) -> Unguided | Matching | Initialisation:
    """The trainer of a part; `context` is the part's own."""
    prompts, student = build_prompts(config.prompts), student_of(base, context.parent, config, part in CAUSAL)
    if part == "unguided":
        return Unguided(student, teacher, prompts, context, config)
    if part == "initialise":
        ways = trajectories_of(base, teacher, context.parent, config, context)
        return Initialisation(student, teacher, prompts, ways, context, config)
    return Matching(student, teacher, base, prompts, context, config, part)


def own_enhancer(context: StageContext, artifact: Path) -> None:
    """The student's artifact carries the prompt enhancer of its parent, if there is one: its words are the same."""
    found = enhancer_folder(context.parent)
    if found is not None and context.world.is_main:
        shutil.copytree(found, artifact / ENHANCER, dirs_exist_ok=True)
    context.world.barrier()


def load_teacher(name: str, base: VideoModel, context: StageContext) -> VideoModel:
    """Another model as the teacher.

    Raises:
        ReelignError: its latents are not those of the student, or it reads prompts otherwise: it is given the
            conditions that the student's text encoder makes.
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
    if differs := difference(base, teacher):
        raise ReelignError(
            f"distill.teacher: {name} {differs}; teacher and student must share a text encoder, because one encoding "
            f"of a prompt speaks to both. Take a teacher with the text encoder of {base.name}, or leave "
            "distill.teacher out."
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
    return Trajectories(folder, teacher, config.sampler, config.guidance(context.sampler))


class Matching(StudentTraining):
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
        self.config: MatchConfig = getattr(recipe, part)
        super().__init__(part, student, teacher, prompts, context, recipe, self.config.alarms_stop)
        config, before = self.config, recipe.few_step
        self.guidance = recipe.guidance(context.sampler)
        self.inherits = before is not None and (before.method, before.lora) == (config.method, config.lora)
        self.critic = base.twin()
        choose_trained(self.critic, config, context.seed)
        for network in self.critic.denoisers().values():
            context.world.shard(network)
        total = config.updates * config.critic_updates
        self.critic_optimizer = Optimizer(trained(self.critic).items(), config.critic, total_steps=total)

    def state(self) -> dict[str, Any]:
        """What training goes on from, the critic among it."""
        return {**super().state(), "critic_optimizer": self.critic_optimizer}

    @property
    def clips_an_update(self) -> int:
        """Of the critic's steps and the student's own."""
        return self.config.batch_size * (self.config.critic_updates + 1)

    def note(self, numbers: dict[str, float]) -> str:
        """The critic's loss."""
        return f"critic {numbers['critic_loss']:.3f}"

    def train(self) -> None:
        """As every part; the student is a checkpoint before its first update, so what only harms ends as it began."""
        if not self.watch.begun:
            self.take_critic()
            self.checkpoints.save(0, self.state(), self.validated())
        super().train()

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
            clean, spent = self.rolled_out(conditions, noise, exit_step)
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
            seen = interpolate(clean.detach(), eps, levels)
            real, fake, evaluations = self.scores(seen, levels, conditions)
            gradient = matching_gradient(clean.detach(), real, fake)
            (matching_loss(clean, gradient) / self.chunks).backward()
            distance += gradient.abs().mean() / self.chunks
            nfe += spent + evaluations
        return float(self.context.world.mean(distance)), nfe

    def rolled_out(self, conditions: Conditions, noise: Tensor, exit_step: int) -> tuple[Tensor, int]:
        """Clips of the student as it is, without gradients, and the network evaluations."""
        made = in_slices(
            self.student,
            noise,
            lambda rows: student_clip(self.student, take(conditions, rows), noise[rows], self.sampler, exit_step),
        )
        return torch.cat([clips for clips, _ in made]), sum(spent for _, spent in made)

    def scores(self, seen: Tensor, levels: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor, int]:
        """What the teacher, guided as in deployment, and the critic see in noisy clips, without gradients, and the
        network evaluations."""
        away = self.teacher.encode_text([self.guidance.negative_prompt] * len(seen))

        def some(rows: slice) -> tuple[Tensor, Tensor, int]:
            own, x, level = take(conditions, rows), seen[rows], levels[rows]
            real, evaluations = guided_velocity(self.teacher, x, level, own, self.guidance, take(away, rows))
            fake = self.critic.velocity(x, level, own)
            return to_x0(x, real, level), to_x0(x, fake, level), (evaluations + 1) * len(x)

        parts = in_slices(self.critic, seen, some)
        real, fake = torch.cat([real for real, _, _ in parts]), torch.cat([fake for _, fake, _ in parts])
        return real, fake, sum(spent for _, _, spent in parts)

    def drawn(self, turn: int) -> Iterator[tuple[Conditions, Tensor, Tensor, Tensor, int]]:
        """This rank's micro-batches: conditions, the student's noise, noise and levels of the scores, and the step at
        which the student is left."""
        key, exit_step = (self.part, self.context.seed, self.update, turn), self.exit_step(turn)
        for positions, conditions, noise in self.asked(turn, self.config.critic_updates + 1):
            sources = [generator("match", *key, position) for position in positions]
            eps = torch.stack([torch.randn(noise.shape[1:], generator=source) for source in sources])
            levels = torch.cat([matching_levels(1, self.config.level_shift, source) for source in sources])
            yield conditions, noise, eps.to(noise.device), levels.to(noise.device), exit_step
