"""The multistep solver of the ODE with which Wan is deployed."""

from __future__ import annotations

import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor


class UniPC:
    """diffusers' UniPC as Wan ships it, for one clip: it remembers the steps before."""

    def __init__(self, steps: int, shift: float) -> None:
        self.scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
        self.scheduler.set_timesteps(steps)
        self.scheduler.set_begin_index(0)

    def level_seen_by_model(self, sigma: Tensor, index: int) -> Tensor:
        """The scheduler hands the network whole timesteps of 1000: the level that the network sees is truncated."""
        return torch.full_like(sigma, float(self.scheduler.timesteps[index]) / 1000)

    def step(self, velocity: Tensor, latents: Tensor, index: int) -> Tensor:
        """The latents after step `index`, from those before it and their velocity."""
        return self.scheduler.step(velocity, self.scheduler.timesteps[index], latents, return_dict=False)[0]
