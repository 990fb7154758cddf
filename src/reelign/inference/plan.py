"""A faster way to run a model that still gives what it gave: `reelign plan`.

Every acceleration is tried by itself, then what was worth it is put together, greedily: the full product would take
days. One half of the prompts says what is tried next and what is chosen. Choosing the best of many is optimistic, so
what is chosen keeps the quality with its whole interval where anything does, and is measured again on the other half,
which had no part in it: that is the prediction. Where it does not hold there, the next is measured, at most
`CONFIRMED`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig, tasks
from reelign.inference.acceleration import Acceleration
from reelign.inference.candidates import KINDS, Candidate, candidates, refusal
from reelign.inference.plan_file import Plan, Row, Target, identity_facts
from reelign.inference.plan_picture import draw
from reelign.inference.plan_table import WORTH
from reelign.inference.trial import Trial, Yardstick
from reelign.models.base import VideoModel
from reelign.sampling.sample import SampleConfig

TRIED = 2
"""Of each kind, how many are tried in a combination before the kind is left out."""
CONFIRMED = 3
"""Plans that are measured on the other half of the prompts, at most."""
Progress = Callable[[str, int, int, str], None]


class PlanConfig(BaseModel):
    """How a plan is made."""

    model_config = ConfigDict(extra="forbid")
    target: Target = Field(description="What is asked of it.")
    sampler: SampleConfig = Field(description="The sampler without acceleration.")
    battery: BatteryConfig = Field(description="Prompts, judge and size of the clips; one clip is sampled at a time.")
    kinds: list[str] = Field(default_factory=list, description="Kinds of accelerations to try; all if empty.")


def make_plan(name: str, model: VideoModel, config: PlanConfig, out: Path, progress: Progress) -> Plan:
    """Measure, choose, and write `out` (YAML) with its picture beside it, also where nothing meets the target.

    Raises:
        ReelignError: a kind is unknown, or the two halves of the prompts overlap.
    """
    if unknown := set(config.kinds) - set(KINDS):
        raise ReelignError(f"there is no kind of acceleration {min(unknown)!r}; kinds: {', '.join(KINDS)}.")
    parts = {"validation": tasks(config.battery, "validation"), "test": tasks(config.battery, "test")}
    if both := set.intersection(*({task.prompt for task in part} for part in parts.values())):
        raise ReelignError(
            f"a plan is chosen on one half of the prompts and checked on the other; {min(both)!r} is in both."
        )
    size = (config.battery.frames, config.battery.height, config.battery.width)
    frames = model.latent_shape(*size)[1]
    with tempfile.TemporaryDirectory() as folder:
        search = Search(Yardstick(model, config.sampler, config.battery, parts, Path(folder)), config.target, progress)
        search.yardstick.plain("validation", lambda done, total: progress("the model as it is", done, total, ""))
        search.singles(candidates(model, config.sampler, frames, config.kinds))
        search.combinations()
        chosen = search.choose()
    _mark_front(search.rows)
    plan = Plan(
        **identity_facts(name, model),
        size=size,
        judge=config.battery.judge,
        prompts={name: len(part) for name, part in parts.items()},
        sampler=config.sampler,
        target=config.target,
        choice=chosen.acceleration if chosen else None,
        prediction=chosen.test if chosen else None,
        rows=search.rows,
    )
    plan.save(out)
    draw(plan, out.with_suffix(".png"))
    return plan


class Search:
    """Goes from single accelerations to combinations, and keeps a row of each."""

    def __init__(self, yardstick: Yardstick, target: Target, progress: Progress) -> None:
        self.yardstick, self.target, self.progress = yardstick, target, progress
        self.rows: list[Row] = []

    def singles(self, found: Sequence[Candidate]) -> None:
        """Each by itself; what is refused is a row without figures."""
        total = sum(not one.refused for one in found)
        done = 0
        for one in found:
            row = Row(kind=one.kind, label=one.label, acceleration=one.acceleration, refused=one.refused)
            self.rows.append(row)
            if not one.refused:
                self._measure(row, "validation")
                done += 1
                self.progress("single accelerations", done, total, "")

    def combinations(self) -> None:
        """From the fastest that is good, and from the surest, add the fastest or surest of each other kind."""
        worth = [row for row in self._good() if _speed(row) >= WORTH]
        if not worth:
            return
        for ordered in (worth, sorted(worth, key=_sureness, reverse=True)):
            current = ordered[0]
            for kind in dict.fromkeys(row.kind for row in ordered[1:] if row.kind != ordered[0].kind):
                for single in [row for row in ordered if row.kind == kind][:TRIED]:
                    better = self._added(current, single)
                    if better is not None:
                        current = better
                        break

    def choose(self) -> Row | None:
        """Of those that meet the target on one half: the first that still does on the other.

        First come those whose whole interval keeps the quality, the fastest first, and then the others, the surest
        first: the fastest whose estimate alone does is the luckiest of many.
        """
        fast = [row for row in self._good() if self.target.fast(_trial(row))]
        proven = [row for row in fast if self.target.proven(_trial(row))]
        others = [row for row in fast if row not in proven]
        for row in [*proven, *sorted(others, key=_sureness, reverse=True)][:CONFIRMED]:
            self._measure(row, "test")
            if row.test is not None and self.target.good(row.test) and self.target.fast(row.test):
                return row
        return None

    def _added(self, current: Row, single: Row) -> Row | None:
        """`current` with one thing more, if that is faster and still good."""
        assert current.acceleration is not None and single.acceleration is not None
        joined = current.acceleration.joined(_untold(single.acceleration))
        row = next((row for row in self.rows if row.label == joined.label), None)
        if row is None:
            why = refusal(self.yardstick.model, self.yardstick.sampler, joined)
            row = Row(kind="together", label=joined.label, acceleration=joined, refused=why)
            self.rows.append(row)
            if not why:
                self._measure(row, "validation")
        faster = row.validation is not None and _speed(row) > _speed(current)
        return row if faster and self.target.good(_trial(row)) else None

    def _measure(self, row: Row, part: str) -> None:
        """Fill the row; what fails on this device is refused with what torch said."""
        assert row.acceleration is not None
        bar, hopeless = ("confirm", None) if part == "test" else ("measure", self._hopeless)
        try:
            if part == "validation":
                row.acceleration = self.yardstick.calibrated(row.acceleration, "validation")
            trial = self.yardstick.measure(
                row.acceleration, part, lambda done, total: self.progress(bar, done, total, row.label), hopeless
            )
        except (RuntimeError, ReelignError) as error:
            row.refused = f"failed: {str(error).strip().splitlines()[0]}"
            return
        if part == "test":
            row.test = trial
        else:
            row.validation = trial

    def _hopeless(self, trial: Trial) -> bool:
        """Below the bound, or no faster, with the whole interval."""
        return trial.overall.high < self.target.min_gsb or trial.speedup.high < WORTH

    def _good(self) -> list[Row]:
        """Rows that keep the quality, the fastest first."""
        good = [row for row in self.rows if row.validation is not None and self.target.good(row.validation)]
        return sorted(good, key=_speed, reverse=True)


def _trial(row: Row) -> Trial:
    assert row.validation is not None
    return row.validation


def _speed(row: Row) -> float:
    return _trial(row).speedup.value


def _sureness(row: Row) -> float:
    """The lower end of the overall GSB."""
    return _trial(row).overall.low


def _untold(acceleration: Acceleration) -> Acceleration:
    """Without what was measured of the model: it is measured again in other company."""
    if acceleration.cache is None:
        return acceleration
    return acceleration.model_copy(update={"cache": acceleration.cache.model_copy(update={"ratios": ()})})


def _mark_front(rows: Sequence[Row]) -> None:
    measured = [row for row in rows if row.validation is not None]
    for row in measured:
        own = _trial(row)
        row.front = own.speedup.value > 1 and not any(
            _trial(other).speedup.value > own.speedup.value and _trial(other).overall.value >= own.overall.value
            for other in measured
        )
