"""Exponential moving average of weights, in float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Average of named parameters, plain or sharded.

    The decay warms up as (1 + n) / (10 + n), so that the first steps do not remember the starting point too long.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.parameters, self.decay, self.updates = dict(parameters), decay, 0
        self.average = {name: p.detach().to(torch.float32, copy=True) for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.detach().float(), 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within this context the model has the averaged weights."""
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Tensor | int]:
        """The average by name and the number of updates."""
        return {"updates": self.updates, **{f"average.{name}": value for name, value in self.average.items()}}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Continue from a saved state."""
        self.updates = int(state["updates"])
        with torch.no_grad():
            for name, value in self.average.items():
                value.copy_(torch.as_tensor(state[f"average.{name}"]))
