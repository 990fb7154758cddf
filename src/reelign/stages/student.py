"""What the trainings of a student share: the loop, clips with a gradient at one step, and the watch over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reelign.data.prompts import ListedPrompt
from reelign.errors import ReelignError
from reelign.evaluate.battery import run_battery
from reelign.evaluate.evaluation import Evaluation
from reelign.flow.path import to_x0
from reelign.models.base import Conditions, VideoModel
from reelign.models.causal import View
from reelign.models.kv_cache import KVCache, TextCache
from reelign.sampling.noise import generator, initial_noise
from reelign.sampling.sample import SampleConfig, as_remembered, memory_level, own_sampler, remembered, renoised
from reelign.stages.asked import drawn
from reelign.stages.context import StageContext
from reelign.stages.distill_recipe import DistillConfig, StudentConfig
from reelign.stages.monitors import lost_motion, record_alarms
from reelign.stages.trainee import Trainee
from reelign.stages.updates import Updates
from reelign.train.parallel import World


class StudentTraining(Updates):
    """The updates of a part; a subclass says what one is."""

    plan: StudentConfig

    def __init__(
        self,
        part: str,
        student: VideoModel,
        teacher: VideoModel,
        prompts: list[ListedPrompt],
        context: StageContext,
        recipe: DistillConfig,
        alarms_stop: int | None = None,
    ) -> None:
        super().__init__(context, getattr(recipe, part))
        self.part, self.student, self.teacher, self.prompts = part, student, teacher, prompts
        self.phase, self.doing = f"distill/{part}", f"distill: {part.replace('_', ' ')}"
        self.sampler, self.chunks = recipe.sampler, chunks_of(self.plan, context.world)
        self.trainee = Trainee(student, self.plan, self.plan.updates, context)
        self.watch = Watch(f"distill/{part}", student, teacher, context, self.plan.patience, alarms_stop)

    @property
    def clips_an_update(self) -> int:
        """Clips that an update looks at, over all ranks."""
        return self.plan.batch_size

    def exit_step(self, turn: int = 0) -> int:
        """The step at which the clips of a turn of this update are left, which all ranks and clips share."""
        source = generator("exit", self.part, self.context.seed, self.update, turn)
        return int(torch.randint(self.sampler.steps, (1,), generator=source))

    def asked(self, turn: int = 0, turns: int = 1) -> Iterator[tuple[range, Conditions, Tensor]]:
        """This rank's micro-batches of one of the `turns` of an update: positions, conditions, and noise to start
        from (B, C, F, h, w)."""
        world, size, seed = self.context.world, self.context.battery, self.context.seed
        shape = self.student.latent_shape(size.frames, size.height, size.width)
        share = self.plan.batch_size // world.size
        start = (self.update * turns + turn) * self.plan.batch_size + world.rank * share
        for first in range(start, start + share, share // self.chunks):
            positions = range(first, first + share // self.chunks)
            texts = [prompt.text for prompt in drawn(self.prompts, positions, seed)]
            noise = initial_noise([(seed, self.part, position) for position in positions], shape)
            yield positions, self.student.encode_text(texts), noise.to(world.device)

    def state(self) -> dict[str, Any]:
        """What training goes on from."""
        return {**self.trainee.state(), "watch": self.watch, "update": self.update}

    def stale(self) -> bool:
        """Whether held-out prompts no longer gain or motion is lost."""
        return self.watch.stale()

    def validated(self) -> float:
        """How much the averaged student has of the teacher in deployment, on held-out prompts."""
        with self.trainee.ema.swapped():
            numbers = self.watch.look(self.update)
        self.tracker.log(self.update, **numbers)
        return numbers["validation/kept"]

    def finish(self, target: Path) -> None:
        """Write the averaged weights with the best held-out score as the artifact `target`."""
        best = self.checkpoints.best()
        if best is not None:
            self.checkpoints.load(best, self.state())
        self.trainee.write(target)
        self.tracker.close()


def student_clip(
    student: VideoModel, conditions: Conditions, noise: Tensor, sampler: SampleConfig, exit_step: int
) -> tuple[Tensor, int]:
    """The clip (B, C, F, h, w) that the student predicts at `exit_step`, and the network evaluations.

    The steps before it carry no gradient, it does where gradients are enabled. A causal student makes one block after
    the other; the block that it has just made enters its past without gradient (arXiv 2506.08009, algorithm 1).
    """
    if student.causal is None:
        return left_at(student, conditions, noise, sampler, exit_step)[0], len(noise) * (exit_step + 1)
    causal = student.causal.config

    def made(first: int, end: int) -> tuple[Tensor, Tensor]:
        own = noise[:, :, first:end]
        clean, seen = left_at(student, conditions, own, sampler, exit_step)
        if causal.memory == "last_step" and exit_step == sampler.steps - 1:
            return clean, seen
        return clean, as_remembered(causal, sampler, clean.detach(), own)

    clip = block_by_block(student, conditions, noise.shape[2], made, memory_level(causal, sampler))
    return clip, len(noise) * (exit_step + 2)


def block_by_block(
    student: VideoModel,
    conditions: Conditions,
    frames: int,
    made: Callable[[int, int], tuple[Tensor, Tensor]],
    level: float,
) -> Tensor:
    """A clip of a causal student: `made(first, end)` gives each block, which sees what was remembered so far, and what
    is remembered of it, at the noise level `level`."""
    assert student.causal is not None
    cache, text, found = KVCache(), TextCache(), []
    for first, end in student.causal.config.blocks(frames):
        with student.causal.seeing(View(cache, text)):
            block, past = made(first, end)
        found.append(block)
        if end < frames:
            cache = remembered(student, conditions, past, cache, text, level)
    return torch.cat(found, 2)


def left_at(
    student: VideoModel, conditions: Conditions, noise: Tensor, sampler: SampleConfig, exit_step: int
) -> tuple[Tensor, Tensor]:
    """The clips (B, C, F, h, w) that a student of all frames, or of one block, predicts at `exit_step`, and what it saw
    there. The steps before it carry no gradient."""
    grid, x = sampler.grid, noise

    def predicted(x: Tensor, index: int) -> Tensor:
        levels = x.new_full((len(x),), float(grid[index]))
        return to_x0(x, student.velocity(x, levels, conditions), levels)

    for index in range(exit_step):
        with torch.no_grad():
            x = renoised(predicted(x, index), noise, float(grid[index + 1]), index)
    return predicted(x, exit_step), x


def chunks_of(config: StudentConfig, world: World) -> int:
    """Micro-batches of an update on each rank.

    Raises:
        ReelignError: the clips of an update do not divide over the ranks.
    """
    share, rest = divmod(config.batch_size, world.size)
    if rest:
        raise ReelignError(f"distill: batch_size={config.batch_size} does not divide over {world.size} ranks.")
    return next(count for count in range(-(-share // config.micro_batch), share + 1) if share % count == 0)


BEYOND = 1e-3
"""What a score counts beyond the teacher's, for one below it."""


def kept(teacher: Evaluation, student: Evaluation) -> float:
    """How much a student has of its teacher: the mean over the axes of its scores, each counted up to the teacher's.

    What it has beyond its teacher on one axis does not make up for what it lost on another: a student that moves more
    and forgets words would pass for the better one. It counts a thousandth, which decides between students that have
    all of their teacher.
    """
    before, after = teacher.means(), student.means()
    beyond = sum(max(after[axis] - value, 0.0) for axis, value in before.items())
    return (sum(min(after[axis], value) for axis, value in before.items()) + BEYOND * beyond) / len(before)


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
        mean, score = sum(numbers.values()) / len(numbers), kept(reference, found)
        raised = lost_motion(reference, found)
        better = score > self.best
        self.since_best = 0 if better else self.since_best + 1
        self.alarmed = self.alarmed + 1 if raised and not better else 0
        self.best = max(self.best, score)
        if self.context.world.is_main:
            record_alarms(self.context.folder / "alarms.json", update, raised)
        return {**numbers, "validation/mean": mean, "validation/kept": score, "alarms": float(len(raised))}

    def _teacher(self) -> Evaluation:
        """The teacher's validation, sampled once for all parts of the stage."""
        path, world = self.context.folder.parent / "validation-teacher.json", self.context.world
        # The ranks decide together: a slow one that looks after the file was written would skip what others wait for.
        if bool(world.sum(torch.tensor(float(not path.exists()), device=world.device)) > 0):
            with self.context.ledger.phase("distill/teacher/validate") as cost:
                found = self._validation(self.teacher, self.context.sampler, "teacher")
                cost.nfe, cost.clips = found.nfe, len(found.items)
            if world.is_main:
                found.save(path)
            world.barrier()
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
