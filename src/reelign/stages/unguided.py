"""A student that needs no guidance: regression on what its guided teacher predicts (arXiv 2210.03142, section 3).

    | v_student(x) - (v_neg(x) + w (v(x) - v_neg(x))) |^2

on the noisy clips x that the student meets when it is sampled in its own few steps, so that it learns where it goes.
Matching alone begins with the teacher's weights without their guidance: what those draw in place of rare words, both
scores call likely once it is there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reelign.data.prompts import ListedPrompt
from reelign.flow.path import to_x0
from reelign.models.base import Conditions, VideoModel, take
from reelign.sampling.sample import guided_velocity, in_slices
from reelign.stages.context import StageContext
from reelign.stages.distill_recipe import DistillConfig
from reelign.stages.student import StudentTraining, left_at


class Unguided(StudentTraining):
    """The regression on the guided teacher."""

    def __init__(
        self,
        student: VideoModel,
        teacher: VideoModel,
        prompts: list[ListedPrompt],
        context: StageContext,
        recipe: DistillConfig,
    ) -> None:
        assert recipe.unguided is not None
        self.config, self.guidance = recipe.unguided, recipe.absorbed(context.sampler)
        super().__init__("unguided", student, teacher, prompts, context, recipe)

    def note(self, numbers: dict[str, float]) -> str:
        """The loss."""
        return f"loss {numbers['loss']:.4f}"

    def one_update(self) -> dict[str, float]:
        """One step on fresh clips, left at a step that all of them share."""
        world, lr = self.context.world, self.trainee.optimizer.lr
        total, nfe, exit_step = torch.zeros((), device=world.device), 0, self.exit_step()
        for _, conditions, noise in self.asked():
            loss, spent = self.loss(conditions, noise, exit_step)
            (loss / self.chunks).backward()
            total, nfe = total + loss.detach() / self.chunks, nfe + spent
        grad_norm = self.trainee.optimizer.step()
        self.trainee.ema.update()
        evaluations = world.sum(torch.tensor(float(nfe), device=world.device))
        return {"loss": float(world.mean(total)), "grad_norm": grad_norm, "lr": lr, "nfe": float(evaluations)}

    def loss(self, conditions: Conditions, noise: Tensor, exit_step: int) -> tuple[Tensor, int]:
        """The regression where the clips of `noise` (B, C, F, h, w) are at `exit_step`, and the network evaluations."""
        clean, seen = left_at(self.student, conditions, noise, self.sampler, exit_step)
        level = float(self.sampler.grid[exit_step])
        target, spent = self.guided(seen, level, conditions)
        loss = ((clean - target) / level).square().mean()  # of velocities: no step weighs more than another
        return loss, len(noise) * (exit_step + 1 + spent)

    def guided(self, seen: Tensor, level: float, conditions: Conditions) -> tuple[Tensor, int]:
        """The clips that the guided teacher predicts, without gradients, and the network evaluations of one."""
        away = self.teacher.encode_text([self.guidance.negative_prompt] * len(seen))
        levels = seen.new_full((len(seen),), level)

        def some(rows: slice) -> tuple[Tensor, int]:
            own, x = take(conditions, rows), seen[rows]
            found, spent = guided_velocity(self.teacher, x, levels[rows], own, self.guidance, take(away, rows))
            return to_x0(x, found, levels[rows]), spent

        parts = in_slices(self.teacher, seen, some)
        return torch.cat([part for part, _ in parts]), parts[0][1]
