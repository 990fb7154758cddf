"""The learning rate of everything that the miniature is trained from nothing with."""

from __future__ import annotations

import torch


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int, flat: float) -> None:
    """Warm up over 50 steps, hold until `flat` of the run, then go down to 2 % in a straight line."""
    left = 1.0 if step < flat * steps else max(0.02, 1 - (step / steps - flat) / (1 - flat))
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1.0, (step + 1) / 50) * left
