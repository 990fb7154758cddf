"""The first weights of a causal student: regression on the way of clips from noise to data (arXiv 2412.07772).

A teacher makes clips, and the latents that it meets at the noise levels of the student's grid are kept on disk. The
student sees each block of a clip at a level of its own, and the blocks before it clean, as it will in a rollout, and
predicts the clip at the end:  | x0_student(x_level | past) - x_end |^2.

The teacher decides what the student can learn. The end of its ODE follows from all frames, and a student that does not
see the later ones predicts a mean, which is blurred (arXiv 2602.02214). A few-step student draws fresh noise on the
way, so its ends scatter too, but only around what it predicted last. Causal consistency asks for less: the student
shall predict the same at two neighbouring levels of the ODE, and the end at the last one (arXiv 2605.15141).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reelign.data.prompts import ListedPrompt
from reelign.errors import ReelignError
from reelign.flow.path import to_x0
from reelign.flow.step import ode_step
from reelign.models.base import Conditions, VideoModel
from reelign.models.causal import KVCache, TextCache, View
from reelign.sampling.noise import generator, initial_noise
from reelign.sampling.sample import SampleConfig, guided_velocity, remembered, renoised
from reelign.stages.asked import drawn
from reelign.stages.context import StageContext
from reelign.stages.distill_recipe import DistillConfig, InitialiseConfig
from reelign.stages.student import Watch, chunks_of
from reelign.stages.trainee import Trainee
from reelign.train.checkpoint import Checkpoints
from reelign.train.track import Tracker

BETWEEN = 5
"""Euler steps of the teacher's ODE between two levels of the student's grid."""


class Trajectories:
    """Clips on their way from noise to data, on disk: `NNNNNNNN.safetensors` with "states" (steps + 1, C, F, h, w),
    half precision; the last state is the clip. What is there is not made again."""

    def __init__(self, folder: Path, maker: VideoModel, sampler: SampleConfig, guidance: SampleConfig | None) -> None:
        """Trajectories of `maker`: of its own few steps, or with `guidance` of its ODE."""
        self.folder, self.maker, self.sampler, self.guidance = folder, maker, sampler, guidance

    def make(self, prompts: list[ListedPrompt], config: InitialiseConfig, context: StageContext) -> None:
        """Make what is missing; the ranks share the work."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = range(context.world.rank, config.trajectories, context.world.size)
        missing = [position for position in own if not self.place(position).exists()]
        size = context.battery
        shape = self.maker.latent_shape(size.frames, size.height, size.width)
        with context.ledger.phase("distill/trajectories") as cost:
            for first in range(0, len(missing), config.micro_batch):
                positions = missing[first : first + config.micro_batch]
                conditions = self.maker.encode_text(self.texts(prompts, positions, context.seed))
                noise = initial_noise([(context.seed, "trajectory", position) for position in positions], shape)
                states, nfe = self.states(conditions, noise.to(self.maker.device))
                for position, row in zip(positions, states, strict=True):
                    self._write(position, row)
                cost.nfe, cost.clips = cost.nfe + nfe, cost.clips + len(positions)
                context.progress("distill: trajectories", first + len(positions), len(missing), "")
        context.world.barrier()

    @torch.no_grad()
    def states(self, conditions: Conditions, noise: Tensor) -> tuple[Tensor, int]:
        """(B, steps + 1, C, F, h, w) at the levels of the student's grid, and the network evaluations."""
        grid, x, found, nfe = self.sampler.grid, noise, [noise], 0
        away = None
        if self.guidance is not None:
            away = self.maker.encode_text([self.guidance.negative_prompt] * len(noise))
        for index in range(self.sampler.steps):
            if self.guidance is None:
                levels = x.new_full((len(x),), float(grid[index]))
                clean = to_x0(x, self.maker.velocity(x, levels, conditions), levels)
                x, nfe = renoised(clean, noise, float(grid[index + 1]), index), nfe + len(x)
            else:
                way = torch.linspace(float(grid[index]), float(grid[index + 1]), BETWEEN + 1)
                for start, end in itertools.pairwise(way):
                    levels, after = (x.new_full((len(x),), float(level)) for level in (start, end))
                    velocity, spent = guided_velocity(self.maker, x, levels, conditions, self.guidance, away)
                    x, nfe = ode_step(x, velocity, levels, after), nfe + spent * len(x)
            found.append(x)
        return torch.stack(found, 1), nfe

    def read(self, positions: list[int]) -> Tensor:
        """The states of some trajectories, float32 (B, steps + 1, C, F, h, w)."""
        return torch.stack([load_file(self.place(position))["states"] for position in positions]).float()

    def place(self, position: int) -> Path:
        """Where a trajectory lies."""
        return self.folder / f"{position:08d}.safetensors"

    @staticmethod
    def texts(prompts: list[ListedPrompt], positions: list[int], seed: int) -> list[str]:
        """The prompts of some trajectories."""
        return [drawn(prompts, range(position, position + 1), seed)[0].text for position in positions]

    def _write(self, position: int, states: Tensor) -> None:
        partial = self.place(position).with_suffix(".partial")
        try:
            save_file({"states": states.to(torch.float16).cpu().contiguous()}, partial)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise ReelignError(
                f"cannot write the trajectory {self.place(position)}: {error}. Those that were written are kept: free "
                "some space and run the same command again."
            ) from error
        partial.replace(self.place(position))


class Initialisation:
    """The regression, and the state that a checkpoint holds."""

    def __init__(
        self,
        student: VideoModel,
        teacher: VideoModel,
        prompts: list[ListedPrompt],
        trajectories: Trajectories,
        context: StageContext,
        recipe: DistillConfig,
    ) -> None:
        assert recipe.initialise is not None
        config = recipe.initialise
        self.student, self.prompts, self.trajectories = student, prompts, trajectories
        self.context, self.config, self.sampler = context, config, recipe.sampler
        self.chunks = chunks_of(config, context.world)
        trajectories.make(prompts, config, context)
        self.trainee = Trainee(student, config, config.updates, context)
        self.checkpoints = Checkpoints(context.folder / "checkpoints")
        self.tracker = Tracker(context.folder, enabled=context.world.is_main, sinks=config.track)
        self.watch = Watch("distill/initialise", student, teacher, context, config.patience)
        self.update = 0

    def state(self) -> dict[str, Any]:
        """What training goes on from."""
        return {**self.trainee.state(), "watch": self.watch, "update": self.update}

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one."""
        latest = self.checkpoints.latest()
        if latest is not None:
            self.update = int(self.checkpoints.load(latest, self.state())["update"])
        self.tracker.resume(self.update if latest is not None else -1)

    def train(self) -> None:
        """All updates that are left, unless held-out prompts no longer gain."""
        config, context = self.config, self.context
        while self.update < config.updates and not self.watch.stale():
            until = min(config.updates, (self.update // config.validate_every + 1) * config.validate_every)
            with context.ledger.phase("distill/initialise") as cost:
                while self.update < until and not context.stopping():
                    numbers = self.one_update()
                    self.update += 1
                    cost.clips += config.batch_size
                    cost.nfe += config.batch_size
                    self.tracker.log(self.update, **numbers)
                    context.progress("distill: initialise", self.update, config.updates, f"loss {numbers['loss']:.4f}")
                    if self.update % config.save_every == 0 and self.update < until:
                        self.checkpoints.save(self.update, self.state())
            self.checkpoints.save(self.update, self.state(), self.validated() if self.update == until else None)
            if context.stopping():
                raise ReelignError(f"stopped after update {self.update} as asked; the same command goes on from here.")

    def one_update(self) -> dict[str, float]:
        """One step on a batch of trajectories."""
        total, lr = torch.zeros((), device=self.context.world.device), self.trainee.optimizer.lr
        for states, index, texts in self.drawn():
            loss = self.loss(states, index, self.student.encode_text(texts)) / self.chunks
            loss.backward()
            total += loss.detach()
        grad_norm = self.trainee.optimizer.step()
        self.trainee.ema.update()
        return {"loss": float(self.context.world.mean(total)), "grad_norm": grad_norm, "lr": lr}

    def loss(self, states: Tensor, index: Tensor, conditions: Conditions) -> Tensor:
        """The regression at levels `index` (B, F) of the grid; states are (B, steps + 1, C, F, h, w)."""
        predicted = self.predicted(states, index, conditions)
        target = states[:, -1]
        if self.config.teacher == "consistency":
            later = (index + 1).clamp(max=self.sampler.steps - 1)
            with torch.no_grad(), self.trainee.ema.swapped():
                further = self.predicted(states, later, conditions)
            ends = (index + 1 == self.sampler.steps)[:, None, :, None, None]
            target = torch.where(ends, target, further)
        return (predicted - target).square().mean()

    def predicted(self, states: Tensor, index: Tensor, conditions: Conditions) -> Tensor:
        """The clip that the student predicts, block by block: each at its level `index` (B, F), with the end of the
        trajectory as its past."""
        assert self.student.causal is not None
        clean, cache, text, made = states[:, -1], KVCache(), TextCache(), []
        places = index[:, None, None, :, None, None].expand(-1, 1, *states.shape[2:])
        x = states.gather(1, places)[:, 0]
        levels = self.sampler.grid.to(x)[index]
        for first, end in self.student.causal.config.blocks(x.shape[2]):
            with self.student.causal.seeing(View(cache, text)):
                velocity = self.student.velocity(x[:, :, first:end], levels[:, first], conditions)
            made.append(to_x0(x[:, :, first:end], velocity, levels[:, first]))
            if end < x.shape[2]:
                cache = remembered(self.student, conditions, clean[:, :, first:end], cache, text)
        return torch.cat(made, 2)

    def drawn(self) -> list[tuple[Tensor, Tensor, list[str]]]:
        """This rank's micro-batches: states, a level for each block, and the prompts."""
        assert self.student.causal is not None
        config, world, block = self.config, self.context.world, self.student.causal.config.block
        share = config.batch_size // world.size
        first = self.update * config.batch_size + world.rank * share
        found = []
        for start in range(first, first + share, share // self.chunks):
            places = range(start, start + share // self.chunks)
            sources = [generator("initialise", self.context.seed, place) for place in places]
            positions = [int(torch.randint(config.trajectories, (1,), generator=source)) for source in sources]
            states = self.trajectories.read(positions).to(world.device)
            blocks = states.shape[3] // block
            levels = [torch.randint(self.sampler.steps, (blocks,), generator=source) for source in sources]
            index = torch.stack(levels).repeat_interleave(block, 1).to(world.device)
            found.append((states, index, Trajectories.texts(self.prompts, positions, self.context.seed)))
        return found

    def validated(self) -> float:
        """The held-out score of the averaged student, made block by block."""
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
