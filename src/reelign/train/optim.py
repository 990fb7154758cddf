"""AdamW with float32 master weights under bfloat16 ones, warm-up, schedules and clipping.

An update below half a bfloat16 step (relative 2^-9) would vanish; the master copy adds up such updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reelign.errors import ReelignError
from reelign.train.parallel import full


class OptimConfig(BaseModel):
    """AdamW and its schedule."""

    model_config = ConfigDict(extra="forbid")
    lr: float = Field(default=1e-5, gt=0, description="Peak learning rate.")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="Decay of the two moments.")
    eps: float = Field(default=1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay.")
    warmup_steps: int = Field(default=0, ge=0, description="Steps of linear warm-up.")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="After the warm-up.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this global norm.")


class Optimizer:
    """AdamW over named parameters; plain or sharded (DTensor), of any floating type."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig, total_steps: int) -> None:
        self.config, self.total_steps, self.steps_done = config, total_steps, 0
        self.parameters = {name: parameter for name, parameter in parameters if parameter.requires_grad}
        if not self.parameters:
            raise ReelignError("there is nothing to train: no parameter asks for a gradient.")
        # A float32 parameter is its own master; a bfloat16 one gets a float32 copy that the moments belong to.
        self.masters = {
            name: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())
            for name, p in self.parameters.items()
        }
        self.adamw = torch.optim.AdamW(
            list(self.masters.values()),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )

    @property
    def lr(self) -> float:
        """Learning rate of the step that comes next."""
        config, step = self.config, self.steps_done
        if step < config.warmup_steps:
            return config.lr * (step + 1) / config.warmup_steps
        done = min(1.0, (step - config.warmup_steps) / max(1, self.total_steps - config.warmup_steps))
        if config.schedule == "linear":
            return config.lr * (1 - done)
        if config.schedule == "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * done))
        return config.lr

    def step(self) -> float:
        """Clip, update, clear the gradients; returns the global gradient norm before clipping.

        Raises:
            ReelignError: the norm is not finite; the weights are untouched.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        norm = float(full(norm))
        if not math.isfinite(norm):
            raise ReelignError(
                f"the gradient norm at step {self.steps_done + 1} is {norm}. The weights are unchanged; lower the "
                "learning rate, or look at the batch of this step."
            )
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        for group in self.adamw.param_groups:
            group["lr"] = self.lr
        self.adamw.step()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if self.masters[name] is not parameter:
                    parameter.copy_(self.masters[name])
                parameter.grad = None
        self.steps_done += 1
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Masters and moments by name and the number of steps done; the trained weights follow from the masters."""
        state: dict[str, Any] = {"steps_done": self.steps_done}
        for name, master in self.masters.items():
            state[f"master.{name}"] = master.detach()
            for key, value in self._moments(name).items():
                state[f"{key}.{name}"] = value
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; the parameters become the masters, rounded to their own type."""
        self.steps_done = int(state["steps_done"])
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state[f"master.{name}"])
                self.parameters[name].copy_(master)
                for key, value in self._moments(name).items():
                    value.copy_(state[f"{key}.{name}"])

    def _moments(self, name: str) -> dict[str, Tensor]:
        """The two moments and the count of their updates (a weight without gradient is passed over), made as zeros
        where no step was taken yet, so that a checkpoint can be read into them."""
        master = self.masters[name]
        state = self.adamw.state[master]
        if "exp_avg" not in state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(master)
            state["exp_avg_sq"] = torch.zeros_like(master)
        return {key: state[key] for key in ("exp_avg", "exp_avg_sq", "step")}
