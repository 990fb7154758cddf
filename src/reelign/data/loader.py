"""Batches: stateful, deterministic, the same global order for any number of ranks.

An epoch is a shuffle that follows from (seed, epoch). Each global batch holds one bucket; rank r of n takes the r-th
part of it, so n ranks see together exactly what one rank would. A bucket's last batch is filled up from the bucket's
beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reelign.errors import ReelignError
from reelign.models.base import Conditions


@dataclass(frozen=True)
class Example:
    """One encoded clip: latents (C, F, h, w) and conditions without batch dimension."""

    id: str
    latents: Tensor
    conditions: Conditions


@dataclass(frozen=True)
class Batch:
    """A rank's part of a global batch: latents (B, C, F, h, w), conditions batch first."""

    ids: list[str]
    latents: Tensor
    conditions: Conditions


class Loader:
    """Endless batches over encoded clips.

    Args:
        examples: all clips; a bucket is the set of clips with the same latent shape.
        batch_size: of the global batch, a multiple of `world_size`.
        seed: of the order.
        rank, world_size: whose part of each batch is given out.
    """

    def __init__(
        self, examples: Sequence[Example], batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if not examples:
            raise ReelignError("there is nothing to train on: every data source is empty.")
        if batch_size % world_size:
            raise ReelignError(f"a batch of {batch_size} does not divide over {world_size} ranks.")
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.position = 0, 0
        self._order = self._batches(0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.position == len(self._order):
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._batches(self.epoch)
        chosen = self._order[self.position]
        self.position += 1
        share = self.batch_size // self.world_size
        mine = [self.examples[int(i)] for i in chosen[self.rank * share : (self.rank + 1) * share]]
        return Batch(
            ids=[example.id for example in mine],
            latents=torch.stack([example.latents for example in mine]).float(),
            conditions={
                name: torch.stack([example.conditions[name] for example in mine]) for name in mine[0].conditions
            },
        )

    def __len__(self) -> int:
        """Global batches in an epoch."""
        return len(self._order)

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """Indices of every global batch of an epoch."""
        generator = np.random.default_rng((self.seed, epoch))
        buckets: dict[tuple[int, ...], list[int]] = {}
        for index in generator.permutation(len(self.examples)):
            buckets.setdefault(tuple(self.examples[index].latents.shape), []).append(int(index))
        batches = []
        for _, members in sorted(buckets.items()):
            count = -(-len(members) // self.batch_size)
            filled = np.resize(np.array(members), count * self.batch_size)
            batches += list(filled.reshape(count, self.batch_size))
        return [batches[index] for index in generator.permutation(len(batches))]

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, and what its order follows from; the same on every rank."""
        order = {"seed": self.seed, "batch_size": self.batch_size, "clips": len(self.examples)}
        return order | {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved place.

        Raises:
            ReelignError: the state was saved with another seed, batch size or number of clips, whose order is another.
        """
        if (state["seed"], state["batch_size"], state["clips"]) != (self.seed, self.batch_size, len(self.examples)):
            raise ReelignError(
                f"the checkpoint was made with seed {state['seed']}, batch size {state['batch_size']} and "
                f"{state['clips']} clips, this run has {self.seed}, {self.batch_size} and {len(self.examples)}: it "
                "cannot go on in the same order. Give this run another name or restore what it was begun with."
            )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._order = self._batches(self.epoch)
