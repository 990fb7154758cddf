"""A training that held-out prompts watch: validation, early stop, monitors (`updates.py` is its loop).

Every `validate_every` updates the averaged weights make the validation half of the battery with the deployment sampler.
The best are kept; training ends early when they no longer gain, or when the monitors see harm. The parent is validated
first, so what only does harm ends as its parent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from reelign.evaluate.battery import run_battery
from reelign.evaluate.evaluation import Evaluation
from reelign.models.base import VideoModel
from reelign.stages.context import StageContext
from reelign.stages.monitors import Alarm, alarms, record_alarms
from reelign.stages.trainee import Trainee, TraineeConfig
from reelign.stages.updates import Updates
from reelign.train.ledger import Cost
from reelign.train.track import Sink


class WatchedConfig(TraineeConfig):
    """The part of a stage's recipe that says how long it trains and who watches."""

    updates: int = Field(default=60, ge=1, description="Optimiser steps.")
    validate_every: int = Field(default=10, ge=1, description="Updates between validations on held-out prompts.")
    patience: int | None = Field(default=4, ge=1, description="Validations without a new best before it stops early.")
    alarms_stop: int | None = Field(default=2, ge=1, description="Validations in a row with an alarm that stop it.")
    save_every: int = Field(default=10, ge=1, description="Updates between checkpoints.")
    track: list[Sink] = Field(default_factory=list, description="Besides metrics.jsonl: tensorboard, wandb.")


class WatchedTraining(Updates):
    """Updates that held-out prompts watch; a subclass says what one update is.

    Attributes:
        stage: its name in recipe, ledger and messages.
        followed: what the monitors follow of an update's numbers: the training reward, and the diversity of what is
            sampled where anything is.
    """

    plan: WatchedConfig
    stage: ClassVar[str]
    followed: ClassVar[tuple[str, ...]]

    def __init__(self, model: VideoModel, context: StageContext, plan: WatchedConfig) -> None:
        super().__init__(context, plan)
        self.model, self.phase, self.doing = model, f"{self.stage}/train", f"{self.stage}: train"
        self.trainee = Trainee(model, plan, plan.updates, context)
        self.best, self.since_best, self.alarmed = float("-inf"), 0, 0
        self.history: dict[str, list[float]] = {name: [] for name in self.followed}

    def held_out(self, cost: Cost) -> dict[str, float]:
        """What else a validation measures, with the averaged weights in place, and adds to its cost."""
        return {}

    def state(self) -> dict[str, Any]:
        """What training goes on from; data and noise follow from the number of updates done."""
        return {
            **self.trainee.state(),
            "update": self.update,
            "best": self.best,
            "since_best": self.since_best,
            "alarmed": self.alarmed,
            "history": {"rows": list(self.history.values())},
        }

    def restore(self, values: dict[str, Any]) -> None:
        """Take the plain values of a checkpoint."""
        super().restore(values)
        self.since_best, self.best = int(values["since_best"]), float(values["best"])
        self.alarmed = int(values["alarmed"])
        self.history = dict(zip(self.history, map(list, values["history"]["rows"]), strict=True))

    def train(self) -> None:
        """All updates that are left, unless held-out prompts no longer gain or the monitors see harm."""
        if self.best == float("-inf"):
            score = self.validated()
            self.checkpoints.save(0, self.state(), score)  # what only does harm ends as its parent
        super().train()

    def write_down(self, numbers: dict[str, float]) -> None:
        """Log an update, and remember what the monitors look back at."""
        for name in self.history.keys() & numbers.keys():
            self.history[name].append(numbers[name])
        super().write_down(numbers)

    def stale(self) -> bool:
        """Whether the held-out score has not risen for `patience` validations, or the last ones all raised an alarm."""
        patience, bound = self.plan.patience, self.plan.alarms_stop
        return (patience is not None and self.since_best >= patience) or (bound is not None and self.alarmed >= bound)

    def validated(self) -> float:
        """Mean of all axes of the held-out judge on held-out prompts, with the averaged weights and the deployment
        sampler; remembers whether it is the best so far, and asks the monitors."""
        context, what = self.context, f"{self.stage}: validate"
        with context.ledger.phase(f"{self.stage}/validate") as cost, self.trainee.ema.swapped():
            found = run_battery(
                self.model,
                context.battery,
                context.sampler,
                "validation",
                progress=lambda done, total: context.progress(what, done, total, f"update {self.update}"),
                measured=True,
            )
            cost.nfe, cost.clips = found.nfe, len(found.items)
            more = self.held_out(cost)
        numbers = {f"validation/{axis}": value for axis, value in found.means().items()}
        score = sum(numbers.values()) / len(numbers)
        raised = self.monitored(found)
        self.tracker.log(self.update, **numbers, **{"validation/mean": score, "alarms": len(raised)}, **more)
        self.since_best = 0 if score > self.best else self.since_best + 1
        self.best = max(self.best, score)
        return score

    def monitored(self, now: Evaluation) -> tuple[Alarm, ...]:
        """Compare with the parent's validation, and write down what is alarming."""
        kept = self.context.folder / "validation-parent.json"
        if self.update == 0:
            if self.context.world.is_main:
                now.save(kept)
            self.context.world.barrier()
            return ()
        raised = alarms(Evaluation.load(kept), now, *self.history.values())
        self.alarmed = self.alarmed + 1 if raised else 0
        if self.context.world.is_main:
            record_alarms(self.context.folder / "alarms.json", self.update, raised)
        return raised

    def finish(self) -> Path:
        """Write the averaged weights with the best held-out score as the artifact."""
        best = self.checkpoints.best()
        if best is not None:
            self.checkpoints.load(best, self.state())
        target = self.context.folder / "model"
        self.trainee.write(target)
        self.tracker.close()
        return target
