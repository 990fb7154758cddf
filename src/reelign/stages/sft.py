"""Stage 1, supervised fine-tuning: ordinary flow matching on a small high-quality set (arXiv 2604.25427, section 3.1).

    loss = E w(sigma) | v_theta(x_sigma, sigma, c) - (eps - x0) |^2,     x_sigma = (1 - sigma) x0 + sigma eps

Full or LoRA, caption dropout for guidance, an average of the weights (EMA), validation on the battery with the
deployment sampler, and the best averaged weights kept. Noise and noise level of a sample follow from (seed, step,
position in the global batch): any number of ranks draws the same ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from reelign.data.loader import Batch, Loader
from reelign.errors import ReelignError
from reelign.evaluate.battery import run_battery
from reelign.flow.grid import Density, density_weight, sample_sigma
from reelign.flow.path import interpolate, velocity_target
from reelign.models.base import Conditions, VideoModel
from reelign.models.load import load_model
from reelign.sampling.noise import generator as seeded
from reelign.stages.context import StageContext
from reelign.stages.sources import Source, TrainingSet, build_training_set, held_out_loss, write_held_out_figures
from reelign.stages.trainee import Trainee, TraineeConfig
from reelign.train.checkpoint import Checkpoints
from reelign.train.track import Sink, Tracker


class SftConfig(TraineeConfig):
    """Supervised fine-tuning."""

    data: list[Source] = Field(min_length=1, description="Where the captioned clips come from.")
    steps: int = Field(default=400, ge=1, description="Optimiser steps.")
    batch_size: int = Field(default=32, ge=1, description="Clips a step over all ranks and accumulation.")
    accumulate: int = Field(default=1, ge=1, description="Forward passes a step on each rank.")
    caption_dropout: float = Field(default=0.1, ge=0, le=1, description="Share of captions emptied, for guidance.")
    density: Density = Field(default="logit_normal", description="How noise levels are drawn.")
    shift: float = Field(default=1.0, gt=0, description="Shift of the drawn noise levels.")
    validate_every: int = Field(default=100, ge=1, description="Steps between validations.")
    save_every: int = Field(default=100, ge=1, description="Steps between checkpoints.")
    track: list[Sink] = Field(default_factory=list, description="Besides metrics.jsonl: tensorboard, wandb.")


def run_sft(context: StageContext, config: SftConfig) -> Path:
    """Fine-tune the parent model and write the artifact to `context.folder / "model"`; resumes what was begun."""
    model = load_model(context.parent, dtype=context.dtype, device=context.world.device)
    with context.ledger.phase("sft/encode") as cost:
        data = build_training_set(config.data, model, context)
        cost.clips = len(data.training)
    trainer = Trainer(model, data, context, config)
    trainer.resume()
    trainer.train()
    return trainer.finish()


class Trainer:
    """The loop and the state that a checkpoint holds."""

    def __init__(self, model: VideoModel, data: TrainingSet, context: StageContext, config: SftConfig) -> None:
        self.model, self.data, self.context, self.config = model, data, context, config
        world = context.world
        if config.batch_size % (world.size * config.accumulate):
            raise ReelignError(
                f"sft.batch_size={config.batch_size} does not divide over {world.size} ranks x "
                f"sft.accumulate={config.accumulate}; change one of them."
            )
        self.loader = Loader(
            data.training, config.batch_size // config.accumulate, context.seed, world.rank, world.size
        )
        self.empty = model.encode_text([""])
        self.loss_before = held_out_loss(model, data.held_out)
        self.trainee = Trainee(model, config, config.steps, context)
        self.checkpoints = Checkpoints(context.folder / "checkpoints")
        self.tracker = Tracker(context.folder, enabled=world.is_main, sinks=config.track)
        self.step = 0

    def state(self) -> dict[str, Any]:
        """What training goes on from; all noise follows from keys."""
        return {**self.trainee.state(), "loader": self.loader, "step": self.step}

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one."""
        latest = self.checkpoints.latest()
        if latest is not None:
            self.step = int(self.checkpoints.load(latest, self.state())["step"])
        self.tracker.resume(self.step if latest is not None else -1)

    def train(self) -> None:
        """All steps that are left."""
        config, context = self.config, self.context
        if self.step == 0:
            self.validate()
        while self.step < config.steps:
            until = min(config.steps, (self.step // config.validate_every + 1) * config.validate_every)
            with context.ledger.phase("sft/train") as cost:
                while self.step < until and not context.stopping():
                    numbers = self.one_step()
                    self.step += 1
                    cost.clips += config.batch_size
                    cost.nfe += config.batch_size
                    self.tracker.log(self.step, **numbers)
                    context.progress("sft: train", self.step, config.steps, f"loss {numbers['loss']:.4f}")
                    if self.step % config.save_every == 0 and self.step < until:
                        self.checkpoints.save(self.step, self.state())
            # A step that is due for validation is validated also when the run shall stop: it may be the best.
            self.checkpoints.save(self.step, self.state(), self.validate() if self.step == until else None)
            if context.stopping():
                raise ReelignError(f"stopped after step {self.step} as asked; the same command goes on from here.")

    def one_step(self) -> dict[str, float]:
        """Forward, backward and update on one global batch; the loss is the mean over all ranks."""
        total = torch.zeros((), device=self.context.world.device)
        lr = self.trainee.optimizer.lr
        for part in range(self.config.accumulate):
            loss = self.loss(next(self.loader), part) / self.config.accumulate
            loss.backward()
            total += loss.detach()
        grad_norm = self.trainee.optimizer.step()
        self.trainee.ema.update()
        return {"loss": float(self.context.world.mean(total)), "grad_norm": grad_norm, "lr": lr}

    def loss(self, batch: Batch, part: int) -> Tensor:
        """Weighted flow-matching loss of this rank's share of a global batch."""
        config, world = self.config, self.context.world
        clean = batch.latents.to(world.device)
        first = (part * world.size + world.rank) * len(clean)
        eps, levels, keep = self.draw(range(first, first + len(clean)), clean.shape[1:])
        conditions = _drop(batch.conditions, self.empty, keep.to(world.device))
        predicted = self.model.velocity(interpolate(clean, eps, levels), levels, conditions)
        error = (predicted - velocity_target(clean, eps)).square().flatten(1).mean(1)
        return (density_weight(levels, config.density) * error).mean()

    def draw(self, positions: range, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Noise (B, C, F, h, w), levels (B,) and whether the caption is kept (B,), for places in the global batch."""
        noise, levels, keep = [], [], []
        for position in positions:
            source = seeded("sft", self.context.seed, self.step, position)
            noise.append(torch.randn(shape, generator=source))
            levels.append(sample_sigma(1, self.config.density, self.config.shift, source))
            keep.append(torch.rand(1, generator=source) >= self.config.caption_dropout)
        device = self.context.world.device
        return torch.stack(noise).to(device), torch.cat(levels).to(device), torch.cat(keep)

    def validate(self) -> float:
        """Mean of all axes on the validation half of the battery, with the averaged weights."""
        context = self.context
        with context.ledger.phase("sft/validate") as cost, self.trainee.ema.swapped():
            found = run_battery(
                self.model,
                context.battery,
                context.sampler,
                "validation",
                progress=lambda done, total: context.progress("sft: validate", done, total, f"step {self.step}"),
            )
            losses = held_out_loss(self.model, self.data.held_out)
            cost.nfe, cost.clips = found.nfe, len(found.items)
        numbers = {f"validation/{axis}": value for axis, value in found.means().items()}
        score = sum(numbers.values()) / len(numbers)
        if losses:
            numbers["validation/held_out_loss"] = sum(losses) / len(losses)
        self.tracker.log(self.step, **numbers)
        return score

    def finish(self) -> Path:
        """Write the best averaged weights as the artifact, and the gain on held-out clips."""
        best = self.checkpoints.best()
        if best is not None:
            self.checkpoints.load(best, self.state())
        context, target = self.context, self.context.folder / "model"
        if self.data.held_out:
            with self.trainee.ema.swapped():
                after = held_out_loss(self.model, self.data.held_out)
            if context.world.is_main:
                path = context.folder / "extra.json"
                write_held_out_figures(path, self.loss_before, after, self.data.reconstruction)
        self.trainee.write(target)
        self.tracker.close()
        return target


def _drop(conditions: Conditions, empty: Conditions, keep: Tensor) -> Conditions:
    """Replace the conditions of the samples that lose their caption by those of the empty caption."""
    return {
        name: torch.where(keep.view(-1, *[1] * (value.ndim - 1)), value.to(keep.device), empty[name].to(keep.device))
        for name, value in conditions.items()
    }
