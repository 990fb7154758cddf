"""What a stage trains: which weights learn, their optimiser, their average, and the artifact they become.

Every training stage has the same: all weights of the denoisers or low-rank adapters, sharded over the ranks, float32
masters, an average (EMA) that is what is validated and kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from reelign.errors import ReelignError
from reelign.models.adapter import LoraSettings, attach_lora, merge_lora, save_lora
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from reelign.stages.context import StageContext
from reelign.train.ema import Ema
from reelign.train.optim import OptimConfig, Optimizer
from reelign.train.parallel import full


class TraineeConfig(BaseModel):
    """The part of a stage's recipe that says what learns and how."""

    model_config = ConfigDict(extra="forbid")
    method: Literal["full", "lora"] = Field(default="full", description="Train all weights or low-rank adapters.")
    lora: LoraSettings = Field(default_factory=LoraSettings, description="Adapters; read when `method` is lora.")
    optim: OptimConfig = Field(default_factory=OptimConfig, description="AdamW, warm-up and schedule.")
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="Average of the weights; it is what is kept.")
    interpolate: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Where the kept weights lie between the parent's (0) and the average (1): less keeps more control.",
    )
    gradient_checkpointing: bool = Field(default=False, description="Trade a third more compute for memory.")


class Trainee:
    """The weights of a model that learn.

    Attributes:
        parameters: by name, `DENOISER.PARAMETER`; sharded when there are several ranks.
        optimizer: steps them.
        ema: their average.
    """

    def __init__(self, model: VideoModel, config: TraineeConfig, total_steps: int, context: StageContext) -> None:
        self.model, self.config, self.context = model, config, context
        world = context.world
        choose_trained(model, config, context.seed)
        if world.size > 1 and len(model.denoisers()) > 1:
            raise ReelignError(
                f"{model.name} has two experts, and a batch may need only one of them on some ranks, which would wait "
                "for ever; train it on one rank."
            )
        for network in model.denoisers().values():
            world.shard(network)
        self.parameters = trained(model)
        self.optimizer = Optimizer(self.parameters.items(), config.optim, total_steps=total_steps)
        self.ema = Ema(self.parameters.items(), config.ema_decay, config.interpolate)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: the weights are the optimiser's masters."""
        return {"optimizer": self.optimizer, "ema": self.ema}

    def write(self, target: Path) -> None:
        """Write the averaged weights as the artifact, from a fresh copy of the parent on the CPU; every rank calls."""
        context = self.context
        averaged = {name: full(value).cpu() for name, value in self.ema.weights.items()}
        if context.world.is_main:
            artifact = load_model(context.parent, dtype=context.dtype, device="cpu")
            choose_trained(artifact, self.config, context.seed)
            with torch.no_grad():
                for name, parameter in trained(artifact).items():
                    parameter.copy_(averaged[name])
            artifact.own_sampler = self.model.own_sampler
            if self.model.causal is not None:
                artifact.make_causal(self.model.causal.config)
            if self.config.method == "lora":
                save_lora(artifact, target, base=context.parent)
            else:
                artifact.save(target)
        context.world.barrier()


def choose_trained(model: VideoModel, config: TraineeConfig, seed: int) -> None:
    """Choose what learns: adapters, which start from `seed`, or every weight of the denoisers.

    Adapters that the parent brings become part of its weights.
    """
    merge_lora(model)
    for network in model.denoisers().values():
        network.requires_grad_(config.method == "full")
        network.train()
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
    if config.method == "lora":
        attach_lora(model, config.lora, seed)


def trained(model: VideoModel) -> dict[str, nn.Parameter]:
    """The weights that ask for a gradient, by name."""
    return {
        f"{part}.{name}": parameter
        for part, network in model.denoisers().items()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
