"""Exponential moving average of weights, in float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Average of named parameters, plain or sharded.

    The decay warms up as (1 + n) / (10 + n), so that the first steps do not remember the starting point too long.

    Args:
        parameters: what is averaged, by name; their values now are where training starts.
        decay: of the average.
        interpolate: share of the way from the start to the average at which `weights` lie. Between the weights before
            and after fine-tuning a model keeps more of what it could before (WiSE-FT, arXiv 2109.01903).
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float, interpolate: float = 1.0) -> None:
        self.parameters, self.decay, self.interpolate, self.updates = dict(parameters), decay, interpolate, 0
        self.average = {name: p.detach().to(torch.float32, copy=True) for name, p in self.parameters.items()}
        self.start = {name: value.clone() for name, value in self.average.items()} if interpolate < 1 else {}

    @property
    def weights(self) -> dict[str, Tensor]:
        """What is validated and kept: the average, or where `interpolate` says between the start and it."""
        if not self.start:
            return self.average
        return {name: self.start[name].lerp(value, self.interpolate) for name, value in self.average.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.detach().float(), 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within this context the model has `weights`."""
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._write(self.weights)
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
