"""Stage 1, supervised fine-tuning: ordinary flow matching on a small high-quality set (arXiv 2604.25427, section 3.1).

    loss = E w(sigma) | v_theta(x_sigma, sigma, c) - (eps - x0) |^2,     x_sigma = (1 - sigma) x0 + sigma eps

Full or LoRA, caption dropout for guidance, an average of the weights (EMA), validation on the battery with the deployment
sampler, and the best averaged weights kept. Noise and noise level of a sample follow from (seed, step, position in the
global batch): any number of ranks draws the same ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reelign.data.loader import Batch, Loader
from reelign.errors import ReelignError
from reelign.evaluate.battery import run_battery
from reelign.flow.grid import Density, density_weight, sample_sigma
from reelign.flow.path import interpolate, velocity_target
from reelign.models.adapter import LoraSettings, attach_lora, save_lora
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from reelign.sampling.noise import generator as seeded
from reelign.stages.context import StageContext
from reelign.stages.sources import DatasetSource, MiniatureSource, TrainingSet, build_training_set
from reelign.train.checkpoint import Checkpoints
from reelign.train.ema import Ema
from reelign.train.optim import OptimConfig, Optimizer
from reelign.train.track import Tracker

Source = Annotated[MiniatureSource | DatasetSource, Field(discriminator="kind")]


class SftConfig(BaseModel):
    """Supervised fine-tuning."""

    model_config = ConfigDict(extra="forbid")
    data: list[Source] = Field(min_length=1, description="Where the captioned clips come from.")
    method: Literal["full", "lora"] = Field(default="full", description="Train all weights or low-rank adapters.")
    lora: LoraSettings = Field(default_factory=LoraSettings, description="Adapters; read when `method` is lora.")
    steps: int = Field(default=400, ge=1, description="Optimiser steps.")
    batch_size: int = Field(default=32, ge=1, description="Clips a step over all ranks and accumulation.")
    accumulate: int = Field(default=1, ge=1, description="Forward passes a step on each rank.")
    optim: OptimConfig = Field(default_factory=OptimConfig, description="AdamW, warm-up and schedule.")
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="Average of the weights; it is what is kept.")
    caption_dropout: float = Field(default=0.1, ge=0, le=1, description="Share of captions emptied, for guidance.")
    density: Density = Field(default="logit_normal", description="How noise levels are drawn.")
    shift: float = Field(default=1.0, gt=0, description="Shift of the drawn noise levels.")
    gradient_checkpointing: bool = Field(default=False, description="Trade a third more compute for memory.")
    validate_every: int = Field(default=100, ge=1, description="Steps between validations.")
    save_every: int = Field(default=100, ge=1, description="Steps between checkpoints.")


def run_sft(context: StageContext, config: SftConfig) -> Path:
    """Fine-tune the parent model and write the artifact to `context.folder / "model"`; resumes what was begun."""
    model = load_model(context.parent, dtype=context.dtype, device=context.world.device)
    with context.ledger.phase("sft/encode") as cost:
        data = build_training_set(config.data, model, context)
        cost.clips = len(data.training)
    trainer = _Trainer(model, data, context, config)
    trainer.resume()
    trainer.train()
    return trainer.finish()


class _Trainer:
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
            data.training,
            batch_size=config.batch_size // config.accumulate,
            seed=context.seed,
            rank=world.rank,
            world_size=world.size,
        )
        self.empty = model.encode_text([""])
        self.trained = _trainable(model, config)
        for network in model.denoisers().values():
            world.shard(network)
        self.trained = {name: p for name, p in _named_parameters(model).items() if p.requires_grad}
        self.optimizer = Optimizer(self.trained.items(), config.optim, total_steps=config.steps)
        self.ema = Ema(self.trained.items(), config.ema_decay)
        self.checkpoints = Checkpoints(context.folder / "checkpoints")
        self.tracker = Tracker(context.folder, enabled=world.is_main)
        self.step = 0

    def state(self) -> dict[str, object]:
        """Everything that training goes on from."""
        return {
            "weights": self.trained,
            "optimizer": self.optimizer,
            "ema": self.ema,
            "loader": self.loader,
            "step": self.step,
        }

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one."""
        latest = self.checkpoints.latest()
        if latest is not None:
            self.step = int(self.checkpoints.load(latest, self.state())["step"])
        self.tracker.resume(self.step)

    def train(self) -> None:
        """All steps that are left."""
        config, context = self.config, self.context
        if self.step == 0:
            self.validate()
        with context.ledger.phase("sft/train") as cost:
            while self.step < config.steps:
                loss, grad_norm = self.one_step()
                self.step += 1
                cost.clips += config.batch_size
                cost.nfe += config.batch_size
                self.tracker.log(self.step, loss=loss, grad_norm=grad_norm, lr=self.optimizer.lr)
                context.progress("sft: train", self.step, config.steps, f"loss {loss:.4f}")
                last = self.step == config.steps
                metric = self.validate() if last or self.step % config.validate_every == 0 else None
                stop = context.interrupt.requested
                if metric is not None or stop or self.step % config.save_every == 0:
                    self.checkpoints.save(self.step, self.state(), metric)
                if stop and not last:
                    raise ReelignError(f"stopped at step {self.step} as asked; the same command goes on from here.")

    def one_step(self) -> tuple[float, float]:
        """Forward, backward and update on one global batch; the loss is the mean over all ranks."""
        total = torch.zeros((), device=self.context.world.device)
        for part in range(self.config.accumulate):
            loss = self.loss(next(self.loader), part) / self.config.accumulate
            loss.backward()
            total += loss.detach()
        grad_norm = self.optimizer.step()
        self.ema.update()
        return float(self.context.world.mean(total)), float(grad_norm)

    def loss(self, batch: Batch, part: int) -> Tensor:
        """Weighted flow-matching loss of this rank's share of a global batch."""
        config, world = self.config, self.context.world
        clean = batch.latents.to(world.device)
        first = (part * world.size + world.rank) * len(clean)
        noise, sigma, keep = [], [], []
        for index in range(first, first + len(clean)):
            draw = seeded(self.context.seed, "sft", self.step, index)
            noise.append(torch.randn(clean.shape[1:], generator=draw))
            sigma.append(sample_sigma(1, config.density, config.shift, draw))
            keep.append(torch.rand(1, generator=draw) >= config.caption_dropout)
        levels = torch.cat(sigma).to(world.device)
        eps = torch.stack(noise).to(world.device)
        conditions = _drop(batch.conditions, self.empty, torch.cat(keep), world.device)
        noisy = interpolate(clean, eps, levels)
        error = self.model.velocity(noisy, levels, conditions) - velocity_target(clean, eps)
        weight = density_weight(levels, config.density)
        return (weight * error.square().flatten(1).mean(1)).mean()

    def validate(self) -> float | None:
        """Mean of all axes on the validation half of the battery, with the averaged weights."""
        context = self.context
        with context.ledger.phase("sft/validate") as cost, self.ema.swapped():
            found = run_battery(
                self.model,
                context.battery,
                context.sampler,
                "validation",
                progress=lambda done, total: context.progress("sft: validate", done, total, f"step {self.step}"),
            )
            held_out = self.data.held_out_loss(self.model) if self.data.held_out else None
            cost.nfe, cost.clips = found.nfe, len(found.items)
        means = found.means()
        numbers = {f"validation/{axis}": value for axis, value in means.items()}
        if held_out is not None:
            numbers["validation/held_out_loss"] = held_out
        self.tracker.log(self.step, **numbers)
        return sum(means.values()) / len(means)

    def finish(self) -> Path:
        """Write the best averaged weights as the artifact."""
        best = self.checkpoints.best()
        if best is not None:
            self.checkpoints.load(best, self.state())
        target = self.context.folder / "model"
        with self.ema.swapped():
            self.data.write_figures(self.model, self.context.folder / "extra.json", self.context.parent)
            if self.config.method == "lora":
                save_lora(self.model, target, base=self.context.parent)
            else:
                self.model.save(target)
        self.tracker.close()
        return target


def _trainable(model: VideoModel, config: SftConfig) -> None:
    """Choose what learns: adapters, or every weight of the denoisers."""
    for network in model.denoisers().values():
        network.requires_grad_(config.method == "full")
        network.train()
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
    if config.method == "lora":
        attach_lora(model, config.lora)


def _named_parameters(model: VideoModel) -> dict[str, torch.nn.Parameter]:
    return {
        f"{part}.{name}": parameter
        for part, network in model.denoisers().items()
        for name, parameter in network.named_parameters()
    }


def _drop(conditions: dict[str, Tensor], empty: dict[str, Tensor], keep: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Replace the conditions of the samples that lose their caption by those of the empty caption."""
    keep = keep.to(device)
    return {
        name: torch.where(keep.view(-1, *[1] * (value.ndim - 1)), value.to(device), empty[name].to(device))
        for name, value in conditions.items()
    }
