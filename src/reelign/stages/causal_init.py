"""The first weights of a causal student: regression on the way of clips from noise to data (arXiv 2412.07772).

A teacher makes clips, and the latents that it meets at the noise levels of the student's grid are kept on disk. The
student sees each block of a clip at a level of its own, and the blocks before it as a rollout remembers them: the end
of the trajectory, or where its last step began. It predicts the clip at the end:

    | x0_student(x_level | past) - x_end |^2

The teacher decides what the student can learn. The end of its ODE follows from all frames, and a student that does not
see the later ones predicts a mean, which is blurred (arXiv 2602.02214). A few-step student draws fresh noise on the
way, so its ends scatter too, but only around what it predicted last. Causal consistency asks for less: the student
shall predict the same at two neighbouring levels of the ODE, and the end at the last one (arXiv 2605.15141).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reelign.data.prompts import ListedPrompt
from reelign.errors import ReelignError
from reelign.flow.path import to_x0
from reelign.flow.step import ode_step
from reelign.models.base import Conditions, VideoModel, take
from reelign.models.kv_cache import CausalConfig
from reelign.sampling.noise import generator, initial_noise
from reelign.sampling.sample import SampleConfig, guided_velocity, in_slices, memory_level, renoised
from reelign.stages.asked import drawn
from reelign.stages.context import StageContext
from reelign.stages.distill_recipe import DistillConfig, InitialiseConfig
from reelign.stages.student import StudentTraining, block_by_block

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
                made = self._made(conditions, noise.to(self.maker.device))
                for position, row in zip(positions, (row for states, _ in made for row in states), strict=True):
                    self._write(position, row)
                cost.nfe, cost.clips = cost.nfe + sum(nfe for _, nfe in made), cost.clips + len(positions)
                context.progress("distill: trajectories", first + len(positions), len(missing), "")
            own_cost = torch.tensor([cost.nfe, cost.clips], dtype=torch.float64, device=context.world.device)
            cost.nfe, cost.clips = map(int, context.world.sum(own_cost))  # of all ranks; waits for the slowest

    def _made(self, conditions: Conditions, noise: Tensor) -> list[tuple[Tensor, int]]:
        """What `states` gives, of some rows each."""
        return in_slices(self.maker, noise, lambda rows: self.states(take(conditions, rows), noise[rows]))

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


def evaluations(config: InitialiseConfig, causal: CausalConfig, frames: int) -> float:
    """Network evaluations that an update takes for a clip of so many latent frames, in whole clips: every block is
    predicted, with causal consistency at two levels, and all but the last are remembered each time."""
    blocks = len(causal.blocks(frames))
    return (2 if config.teacher == "consistency" else 1) * (1 + (blocks - 1) / blocks)


class Initialisation(StudentTraining):
    """The regression on trajectories."""

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
        self.config = recipe.initialise
        super().__init__("initialise", student, teacher, prompts, context, recipe)
        self.trajectories = trajectories
        trajectories.make(prompts, self.config, context)

    def note(self, numbers: dict[str, float]) -> str:
        """The loss."""
        return f"loss {numbers['loss']:.4f}"

    def one_update(self) -> dict[str, float]:
        """One step on a batch of trajectories."""
        total, lr = torch.zeros((), device=self.context.world.device), self.trainee.optimizer.lr
        for states, index, texts in self.drawn():
            loss = self.loss(states, index, self.student.encode_text(texts)) / self.chunks
            loss.backward()
            total += loss.detach()
        grad_norm = self.trainee.optimizer.step()
        self.trainee.ema.update()
        numbers = {"loss": float(self.context.world.mean(total)), "grad_norm": grad_norm, "lr": lr}
        assert self.student.causal is not None
        size = self.context.battery
        frames = self.student.latent_shape(size.frames, size.height, size.width)[1]
        return {**numbers, "nfe": self.config.batch_size * evaluations(self.config, self.student.causal.config, frames)}

    def loss(self, states: Tensor, index: Tensor, conditions: Conditions) -> Tensor:
        """The regression at levels `index` (B, F) of the grid; states are (B, steps + 1, C, F, h, w)."""
        target = states[:, -1]
        if self.config.teacher == "consistency":  # first: the weights are exchanged in place, which no graph survives
            later = (index + 1).clamp(max=self.sampler.steps - 1)
            with torch.no_grad(), self.trainee.ema.swapped():
                further = self.predicted(states, later, conditions)
            ends = (index + 1 == self.sampler.steps)[:, None, :, None, None]
            target = torch.where(ends, target, further)
        return (self.predicted(states, index, conditions) - target).square().mean()

    def predicted(self, states: Tensor, index: Tensor, conditions: Conditions) -> Tensor:
        """The clip that the student predicts, block by block: each at its level `index` (B, F), with the trajectory as
        its past."""
        places = index[:, None, None, :, None, None].expand(-1, 1, *states.shape[2:])
        x = states.gather(1, places)[:, 0]
        levels = self.sampler.grid.to(x)[index]

        assert self.student.causal is not None
        causal = self.student.causal.config
        past = states[:, -1] if causal.memory == "finished" else states[:, -2]

        def made(first: int, end: int) -> tuple[Tensor, Tensor]:
            part, level = x[:, :, first:end], levels[:, first]
            return to_x0(part, self.student.velocity(part, level, conditions), level), past[:, :, first:end]

        return block_by_block(self.student, conditions, x.shape[2], made, memory_level(causal, self.sampler))

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
