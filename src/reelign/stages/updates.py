"""The loop of a training that counts its updates: log, checkpoint, validate, stop early, stop when asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from reelign.errors import ReelignError
from reelign.stages.context import StageContext
from reelign.train.checkpoint import Checkpoints
from reelign.train.track import Sink, Tracker


class Plan(Protocol):
    """What the loop reads of a stage's recipe."""

    updates: int
    validate_every: int
    save_every: int
    track: list[Sink]


class Updates(ABC):
    """The loop and the number of updates done; a subclass says what one update is, and how it is validated.

    Attributes:
        phase: its name in the ledger.
        doing: what people are told that it does.
    """

    phase: str
    doing: str

    def __init__(self, context: StageContext, plan: Plan) -> None:
        self.context, self.plan, self.update = context, plan, 0
        self.checkpoints = Checkpoints(context.folder / "checkpoints")
        self.tracker = Tracker(context.folder, enabled=context.world.is_main, sinks=plan.track)

    @abstractmethod
    def one_update(self) -> dict[str, float]:
        """One update; what is logged of it, with "nfe", the network evaluations over all ranks, where it makes any."""

    @abstractmethod
    def note(self, numbers: dict[str, float]) -> str:
        """Of an update, for people who wait."""

    @property
    @abstractmethod
    def clips_an_update(self) -> int:
        """Clips that an update looks at, over all ranks."""

    @abstractmethod
    def validated(self) -> float:
        """The held-out score of the averaged weights, which is logged; higher is better."""

    @abstractmethod
    def stale(self) -> bool:
        """Whether to end early."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What training goes on from, "update" among it; data and noise follow from the number of updates done."""

    def restore(self, values: dict[str, Any]) -> None:
        """Take the plain values of a checkpoint's state; objects have loaded themselves."""
        self.update = int(values["update"])

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one."""
        latest = self.checkpoints.latest()
        if latest is not None:
            self.restore(self.checkpoints.load(latest, self.state()))
        self.tracker.resume(self.update if latest is not None else -1)

    def train(self) -> None:
        """All updates that are left, unless it has become stale."""
        plan, context = self.plan, self.context
        while self.update < plan.updates and not self.stale():
            until = min(plan.updates, (self.update // plan.validate_every + 1) * plan.validate_every)
            with context.ledger.phase(self.phase) as cost:
                while self.update < until and not context.stopping():
                    numbers = self.one_update()
                    self.update += 1
                    cost.clips += self.clips_an_update
                    cost.nfe += numbers.get("nfe", 0.0)
                    self.write_down(numbers)
                    context.progress(self.doing, self.update, plan.updates, self.note(numbers))
                    if self.update % plan.save_every == 0 and self.update < until:
                        self.checkpoints.save(self.update, self.state())
            score = self.validated() if self.update == until else None
            self.checkpoints.save(self.update, self.state(), score)
            if context.stopping():
                raise ReelignError(f"stopped after update {self.update} as asked; the same command goes on from here.")

    def write_down(self, numbers: dict[str, float]) -> None:
        """Log an update."""
        self.tracker.log(self.update, **numbers)
