"""What watches learning from rewards and votes: is the reward still what was meant?

A policy that learns to please its reward may lose what nobody rewarded. At every validation the held-out clips are
compared, prompt by prompt, with those of the parent: the axes of the held-out judge, the attributes that the parent
controlled, and what can be measured without weights. What has changed for the worse by more than chance is an alarm in
a plain sentence, while the training reward rises and also while it shows no gain; where it falls, learning has failed
in the open. Every update asks other prompts, and rewards differ more between prompts than learning changes them: a
monitor that waited for a certain rise would be silent while the harm is greatest (docs/results/reward.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from reelign.evaluate.evaluation import Evaluation, Item
from reelign.evaluate.gsb import retention
from reelign.evaluate.statistics import Interval, bootstrap_mean
from reelign.files import write_atomically

STILL = 0.02
"""Dynamic degree (frame diagonals a second) below which a clip counts as still."""
LEAST_CHANGE = {"axis": 0.03, "still": 0.08, "slower": 0.1, "exposure": 0.05, "foreground": 0.25, "diversity": 0.35}
"""Changes smaller than this are no alarm, however certain: scores, shares, or relative to the parent's."""
LEAST_RETENTION, LEAST_CHECKS = 0.85, 20
LEAST_UPDATES = 6
"""Below so many nobody can tell whether the reward rises."""
ROUNDING = 1e-12
"""Slope of a reward that never changes, as floating point has it."""


@dataclass(frozen=True)
class Alarm:
    """One thing that went wrong: its name for plots and a sentence for people."""

    name: str
    sentence: str


def alarms(
    parent: Evaluation, now: Evaluation, rewards: Sequence[float], diversity: Sequence[float] = ()
) -> tuple[Alarm, ...]:
    """Everything that drifted while the training reward did not fall; nothing while there are too few updates to say.

    Args:
        parent: the validation before the first update, measured (`run_battery(measured=True)`).
        now: the same battery now.
        rewards: mean training reward of each update so far.
        diversity: mean distance between the clips of a group, of each update so far; empty where none are sampled.
    """
    gained = rise(rewards)
    if gained is None or gained < 0:
        return ()
    found = [*_axes(parent, now), *_motion(parent, now), *_looks(parent, now), *_control(parent, now)]
    if (lost := rise(diversity)) is not None and lost < -LEAST_CHANGE["diversity"] * max(diversity[0], 1e-9):
        first, last = _ends(diversity)
        found.append(Alarm("diversity", f"the clips of a group have become alike: {first:.3f} apart, now {last:.3f}"))
    meanwhile = f"While the training reward rose by {gained:.3f}" if gained else "Without a certain gain in reward"
    return tuple(Alarm(alarm.name, f"{meanwhile}, {alarm.sentence}.") for alarm in found)


def lost_motion(parent: Evaluation, now: Evaluation) -> list[Alarm]:
    """What moved in the parent's clips and moves less now, whatever became of a reward: distilled students fade."""
    return [Alarm(alarm.name, f"{alarm.sentence[0].upper()}{alarm.sentence[1:]}.") for alarm in _motion(parent, now)]


def record_alarms(path: Path, update: int, raised: Sequence[Alarm]) -> None:
    """Write what was raised at an update into `path`; what a resumed run raises again takes the place of the old."""
    before = json.loads(path.read_text(encoding="utf-8"))["alarms"] if path.exists() else []
    rows = [row for row in before if row["update"] < update]
    rows += [{"update": update, **asdict(alarm)} for alarm in raised]
    write_atomically(path, json.dumps({"alarms": rows}, indent=1))


def rise(values: Sequence[float]) -> float | None:
    """How much the line through the values rises from the first to the last, or 0 if that may be chance (its slope is
    within two standard errors of none); None while there are too few."""
    if len(values) < LEAST_UPDATES:
        return None
    line, covariance = np.polyfit(np.arange(len(values)), values, 1, cov=True)
    slope, error = float(line[0]), float(np.sqrt(covariance[0, 0]))
    return slope * (len(values) - 1) if abs(slope) > 2 * error + ROUNDING else 0.0


def _ends(values: Sequence[float]) -> tuple[float, float]:
    size = min(len(values) // 2, 10)
    return float(np.mean(values[:size])), float(np.mean(values[-size:]))


def _axes(parent: Evaluation, now: Evaluation) -> list[Alarm]:
    before, after = parent.means(), now.means()
    found = []
    for axis in parent.axes:
        change = _change(parent, now, lambda item, axis=axis: item.scores[axis])
        if change.high < 0 and change.value < -LEAST_CHANGE["axis"]:
            sentence = f"{axis} of the held-out judge fell from {before[axis]:.3f} to {after[axis]:.3f}"
            found.append(Alarm(f"held-out {axis}", sentence))
    return found


def _motion(parent: Evaluation, now: Evaluation) -> list[Alarm]:
    """Clips that stand still, and clips that still move but less: slower is smoother and sharper to many a reward."""
    found = []
    change = _change(parent, now, lambda item: float(_dynamics(item) < STILL))
    if change.low > 0 and change.value >= LEAST_CHANGE["still"]:
        before, after = (np.mean([_dynamics(item) < STILL for item in e.items]) for e in (parent, now))
        found.append(Alarm("stillness", f"the share of still videos grew from {before:.0%} to {after:.0%}"))
    was = {item.key: _dynamics(item) for item in parent.items}
    moving = tuple(item for item in now.items if min(_dynamics(item), was[item.key]) >= STILL)
    if moving:
        usual = float(np.mean([was[item.key] for item in moving]))
        change = _change(parent, replace(now, items=moving), _dynamics)
        if change.high < 0 and change.value < -LEAST_CHANGE["slower"] * usual:
            found.append(Alarm("slowness", f"what moves has become {-change.value / usual:.0%} slower"))
    return found


def _dynamics(item: Item) -> float:
    return item.measures["dynamic_degree"]


def _looks(parent: Evaluation, now: Evaluation) -> list[Alarm]:
    found = []
    for name, what in (("exposure", "well exposed pixels"), ("foreground", "the picture that the object fills")):
        change = _change(parent, now, lambda item, name=name: item.measures[name])
        before, after = (np.mean([item.measures[name] for item in e.items]) for e in (parent, now))
        bound = LEAST_CHANGE[name] * (before if name == "foreground" else 1.0)
        worse = change.high < 0 or (name == "foreground" and change.low > 0)
        if worse and abs(change.value) > bound:
            found.append(Alarm(name, f"the share of {what} went from {before:.0%} to {after:.0%}"))
    return found


def _control(parent: Evaluation, now: Evaluation) -> list[Alarm]:
    return [
        Alarm(f"retention of {name}", f"only {kept.value:.0%} of the {kept.n} checks of {name} that passed still pass")
        for name, kept in retention(parent, now).items()
        if kept is not None and kept.n >= LEAST_CHECKS and kept.value < LEAST_RETENTION
    ]


def _change(parent: Evaluation, now: Evaluation, value: Callable[[Item], float]) -> Interval:
    """Mean change of a value of an item, clip by clip, with its interval over prompts."""
    before = {item.key: value(item) for item in parent.items}
    return bootstrap_mean([value(item) - before[item.key] for item in now.items], [item.prompt for item in now.items])
