"""Whether a rehearsed update reached every tensor that learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.distributed.tensor import DTensor

from reelign.errors import ReelignError
from reelign.train.optim import Optimizer
from reelign.train.parallel import World


def reached(optimizers: Mapping[str, Optimizer], world: World, again: Callable[[], object], key: str) -> str:
    """Which trained tensors an update did not reach; adapters are looked at twice, because lora_B starts at 0.

    Args:
        optimizers: by whose they are; each has taken its first step.
        world: all ranks look.
        again: makes another update.
        key: path of the stage or part in the recipe.

    Raises:
        ReelignError: some tensors would stay as they are.
    """
    missing = _idle(optimizers, world)
    if waiting := {name for name in missing if ".lora_A." in name}:
        again()
        missing -= waiting - _idle(optimizers, world)
    count, who = sum(len(optimizer.parameters) for optimizer in optimizers.values()), " and ".join(optimizers)
    if missing:
        raise ReelignError(
            f"no gradient reaches {len(missing)} of {count} trained tensors of {who}, which would stay as they are: "
            f"{', '.join(sorted(missing)[:3])}. Find out why the network does not use them, or choose what learns with "
            f"{key}.method=lora and {key}.lora.targets."
        )
    late = f", the {len(waiting)} lora_A after the second update, because lora_B starts at 0" if waiting else ""
    return f"reaches all {count} trained tensors of {who}{late}."


def _idle(optimizers: Mapping[str, Optimizer], world: World) -> set[str]:
    """Names of the tensors that no gradient has reached since the optimisers were made, on all ranks together: their
    first moments are 0."""
    names, counts = [], []
    for who, optimizer in optimizers.items():
        state = optimizer.state_dict()
        for name in optimizer.parameters:
            moment = state[f"exp_avg.{name}"]
            own = moment.to_local() if isinstance(moment, DTensor) else moment
            names.append(f"{who}: {name}")
            counts.append(float(own.count_nonzero()))
    total = world.sum(torch.tensor(counts, dtype=torch.float64, device=world.device)).tolist()
    return {name for name, found in zip(names, total, strict=True) if not found}
