"""What everything of the miniature that is trained from nothing is trained by: optimisers and their rate."""

from __future__ import annotations

import torch
from torch import nn


def muon_and_adamw(network: nn.Module, *inside: str) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    """Muon for the matrices whose names hold one of `inside`, those of the blocks, and AdamW for the rest."""
    matrices, rest = [], []
    for name, parameter in network.named_parameters():
        is_matrix = parameter.ndim == 2 and any(part in name for part in inside) and "bias" not in name
        (matrices if is_matrix else rest).append(parameter)
    muon = torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.0)
    return muon, torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int, flat: float) -> None:
    """Warm up over 50 steps, hold until `flat` of the run, then go down to 2 % in a straight line."""
    left = 1.0 if step < flat * steps else max(0.02, 1 - (step / steps - flat) / (1 - flat))
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1.0, (step + 1) / 50) * left
