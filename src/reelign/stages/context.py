"""What a run hands to each of its stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from reelign.evaluate.battery import BatteryConfig
from reelign.sampling.sample import SampleConfig
from reelign.train.ledger import Ledger
from reelign.train.loop import Interrupt
from reelign.train.parallel import World

Progress = Callable[[str, int, int, str], None]
"""Told what is being done, how much is done, of how much, and a short note (a loss, a score)."""


def silent(what: str, done: int, total: int, note: str = "") -> None:
    """A `Progress` that shows nothing."""


@dataclass(frozen=True)
class StageContext:
    """Where a stage works and what it may use.

    Attributes:
        folder: the stage's own folder, `RUN/STAGE`.
        parent: name or path of the model that the stage starts from.
        dataset: the dataset that the run curated, if it did.
        seed: every random number of the stage follows from it.
        dtype: "float32" or "bfloat16".
        sampler: the deployment sampler.
        battery: the battery of validation and evaluation.
        world: the ranks that train together.
        ledger: where costs are written.
        progress: where progress is told.
        interrupt: set when the user asked to stop.
    """

    folder: Path
    parent: str
    dataset: Path | None
    seed: int
    dtype: str
    sampler: SampleConfig
    battery: BatteryConfig
    world: World
    ledger: Ledger
    interrupt: Interrupt
    progress: Progress = field(default=silent)

    def stopping(self) -> bool:
        """Whether the user asked any rank to stop; all ranks get the same answer."""
        asked = torch.tensor(float(self.interrupt.requested), device=self.world.device)
        return bool(self.world.sum(asked) > 0)
