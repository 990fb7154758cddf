"""Stochastic transitions: which steps of a batch take one, what a trained step stores of it, and the step itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reelign.flow.step import NoiseLaw, sde_step


@dataclass(frozen=True)
class Stochastic:
    """Which transitions are stochastic, and how.

    Attributes:
        steps: bool (B, steps): sample b takes an SDE step at index k.
        law: the noise law of those steps.
        generators: one a sample that comes out; a sample's noise does not depend on its batch.
        branches: how many samples leave each row at its stochastic step, the only one. They share the noise and the
            whole way before it, which is computed once.
        guided: whether the stochastic steps are guided as the others are.
    """

    steps: Tensor
    law: NoiseLaw
    generators: Sequence[torch.Generator]
    branches: int = 1
    guided: bool = True

    def __post_init__(self) -> None:
        if len(self.generators) != len(self.steps) * self.branches:
            raise ValueError(f"{len(self.steps)} rows with {self.branches} branches need as many generators")
        if self.branches > 1 and bool((self.steps.sum(1) != 1).any()):
            raise ValueError("a row that branches takes exactly one stochastic step")

    def only(self, rows: slice) -> Stochastic:
        """Of consecutive rows."""
        results = slice(rows.start * self.branches, rows.stop * self.branches)
        return replace(self, steps=self.steps[rows], generators=self.generators[results])


@dataclass(frozen=True)
class Transition:
    """A stochastic transition of some samples of a batch: what a trained step stores.

    Attributes:
        rows: indices (b,) of the samples in the batch, before they branch.
        x: (b, C, F, h, w).
        sigma, sigma_next: (b,).
        x_next, mean: (b * branches, C, F, h, w); the branches of a row stand together.
        logp: (b * branches,).
        branches: results of each row.
    """

    rows: Tensor
    x: Tensor
    sigma: Tensor
    sigma_next: Tensor
    x_next: Tensor
    logp: Tensor
    mean: Tensor
    branches: int = 1


def branched(
    rows: Tensor, x: Tensor, velocity: Tensor, levels: tuple[Tensor, Tensor], stochastic: Stochastic, grid: Tensor
) -> Transition:
    """Take the SDE step of some rows, each as often as it branches.

    Args:
        rows: indices (b,) in the batch.
        x, velocity: (b, C, F, h, w).
        levels: sigma before and after the step, (b,) each.
        grid: all noise levels of the sampler.
    """
    count = stochastic.branches
    own = [row * count + branch for row in rows.tolist() for branch in range(count)]
    fresh = torch.stack([torch.randn(x.shape[1:], generator=stochastic.generators[index]) for index in own])
    start, moves, sigma, sigma_next = (value.repeat_interleave(count, 0) for value in (x, velocity, *levels))
    step = sde_step(start, moves, sigma, sigma_next, stochastic.law, grid.to(x), noise=fresh.to(x.device))
    return Transition(rows, x, *levels, step.x_next, step.logp, step.mean, count)


def joined(transitions: Sequence[Transition]) -> Transition:
    """Transitions of different rows as one, so that one network evaluation replays them all."""
    order = torch.argsort(torch.cat([t.rows for t in transitions]), stable=True)
    branches = transitions[0].branches
    each = (order[:, None] * branches + torch.arange(branches)).flatten()
    parts = {
        name: torch.cat([getattr(t, name) for t in transitions])[each if name in ("x_next", "logp", "mean") else order]
        for name in ("rows", "x", "sigma", "sigma_next", "x_next", "logp", "mean")
    }
    return Transition(**parts, branches=branches)
