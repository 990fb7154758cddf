"""What the trainings of a student share: its clips with a gradient at one step, and the watch over it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reelign.errors import ReelignError
from reelign.evaluate.battery import run_battery
from reelign.evaluate.evaluation import Evaluation
from reelign.files import write_atomically
from reelign.flow.path import to_x0
from reelign.models.base import Conditions, VideoModel
from reelign.models.causal import KVCache, TextCache, View
from reelign.sampling.sample import SampleConfig, own_sampler, remembered, renoised
from reelign.stages.context import StageContext
from reelign.stages.distill_recipe import StudentConfig
from reelign.stages.monitors import Alarm, lost_motion
from reelign.train.parallel import World


def student_clip(
    student: VideoModel, conditions: Conditions, noise: Tensor, sampler: SampleConfig, exit_step: int
) -> tuple[Tensor, int]:
    """The clip (B, C, F, h, w) that the student predicts at `exit_step`, and the network evaluations.

    The steps before it carry no gradient, it does where gradients are enabled. A causal student makes one block after
    the other; the block that it has just made enters its past without gradient (arXiv 2506.08009, algorithm 1).
    """
    if student.causal is None:
        return _left_at(student, conditions, noise, sampler, exit_step), len(noise) * (exit_step + 1)
    blocks = student.causal.config.blocks(noise.shape[2])
    clean, cache, text = [], KVCache(), TextCache()
    for first, end in blocks:
        with student.causal.seeing(View(cache, text)):
            clean.append(_left_at(student, conditions, noise[:, :, first:end], sampler, exit_step))
        if end < noise.shape[2]:
            cache = remembered(student, conditions, clean[-1].detach(), cache, text)
    return torch.cat(clean, 2), len(noise) * (exit_step + 2)


def _left_at(
    student: VideoModel, conditions: Conditions, noise: Tensor, sampler: SampleConfig, exit_step: int
) -> Tensor:
    grid, x = sampler.grid, noise
    wanted = torch.is_grad_enabled()
    for index in range(exit_step + 1):
        levels = x.new_full((len(x),), float(grid[index]))
        with torch.set_grad_enabled(wanted and index == exit_step):
            clean = to_x0(x, student.velocity(x, levels, conditions), levels)
        x = clean if index == exit_step else renoised(clean, noise, float(grid[index + 1]), index)
    return x


def chunks_of(config: StudentConfig, world: World) -> int:
    """Micro-batches of an update on each rank.

    Raises:
        ReelignError: the clips of an update do not divide over the ranks.
    """
    share, rest = divmod(config.batch_size, world.size)
    if rest:
        raise ReelignError(f"distill: batch_size={config.batch_size} does not divide over {world.size} ranks.")
    return next(count for count in range(-(-share // config.micro_batch), share + 1) if share % count == 0)


class Watch:
    """Validations of a student on held-out prompts, against the teacher as it is deployed.

    Attributes:
        begun: whether the student was validated before its first update.
    """

    def __init__(
        self,
        phase: str,
        student: VideoModel,
        teacher: VideoModel,
        context: StageContext,
        patience: int | None,
        alarms_stop: int | None = None,
    ) -> None:
        """Watch `student`, which is sampled by its own sampler. Training is stale after `patience` validations without
        a new best, or after `alarms_stop` in a row that lose motion without one."""
        self.phase, self.student, self.teacher, self.context = phase, student, teacher, context
        self.patience, self.alarms_stop = patience, alarms_stop
        self.best, self.since_best, self.alarmed = float("-inf"), 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, validations since, and those in a row that raised an alarm."""
        return {"best": self.best, "since_best": self.since_best, "alarmed": self.alarmed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.best, self.since_best = float(state["best"]), int(state["since_best"])
        self.alarmed = int(state["alarmed"])

    @property
    def begun(self) -> bool:
        """Whether there was a validation."""
        return self.best > float("-inf")

    def stale(self) -> bool:
        """Whether to stop: no new best for long, or motion lost for long without one."""
        if self.patience is not None and self.since_best >= self.patience:
            return True
        return self.alarms_stop is not None and self.alarmed >= self.alarms_stop

    def look(self, update: int) -> dict[str, float]:
        """Validate the student and compare its motion with the teacher's; what is alarming is written down."""
        reference = self._teacher()
        with self.context.ledger.phase(f"{self.phase}/validate") as cost:
            sampler = own_sampler(self.student) or self.context.sampler
            found = self._validation(self.student, sampler, f"update {update}")
            cost.nfe, cost.clips = found.nfe, len(found.items)
        numbers = {f"validation/{axis}": value for axis, value in found.means().items()}
        score = sum(numbers.values()) / len(numbers)
        raised = lost_motion(reference, found)
        better = score > self.best
        self.since_best = 0 if better else self.since_best + 1
        self.alarmed = self.alarmed + 1 if raised and not better else 0
        self.best = max(self.best, score)
        self._write(update, raised)
        return {**numbers, "validation/mean": score, "alarms": float(len(raised))}

    def _teacher(self) -> Evaluation:
        """The teacher's validation, sampled once for all parts of the stage."""
        path = self.context.folder.parent / "validation-teacher.json"
        if not path.exists():
            found = self._validation(self.teacher, self.context.sampler, "teacher")
            if self.context.world.is_main:
                found.save(path)
            self.context.world.barrier()
        return Evaluation.load(path)

    def _validation(self, model: VideoModel, sampler: SampleConfig, note: str) -> Evaluation:
        return run_battery(
            model,
            self.context.battery,
            sampler,
            "validation",
            progress=lambda done, total: self.context.progress("distill: validate", done, total, note),
            measured=True,
        )

    def _write(self, update: int, raised: list[Alarm]) -> None:
        path: Path = self.context.folder / "alarms.json"
        if self.context.world.is_main:
            before = json.loads(path.read_text(encoding="utf-8"))["alarms"] if path.exists() else []
            rows = [row for row in before if row["update"] < update]
            rows += [{"update": update, **asdict(alarm)} for alarm in raised]
            write_atomically(path, json.dumps({"alarms": rows}, indent=1))
