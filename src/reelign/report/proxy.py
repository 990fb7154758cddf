"""Proxy against gold: what training maximises beside what a judge says that never trains (arXiv 2210.10760, figure 1).

Both as gains since the start, in deviations between clips before training, so that rewards of any range share a plot:

    proxy(update) = (mean reward of the update - that of the first updates) / deviation of the reward, at first
    gold(update)  = (held-out score - that of the parent) / deviation of the parent's held-out scores

A reward that is followed too far rises while gold falls. Of the reward no single clip is logged. Its variance is that
inside groups (of several dimensions the mean spread, which is the most that it can be) and that between prompts: P
times half the mean square step from one update to the next, which a trend hardly moves, for P prompts an update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import yaml

from reelign.errors import ReelignError
from reelign.evaluate.evaluation import Evaluation
from reelign.report.plots import Panel, panel
from reelign.train.track import read_metrics

TITLE = "Training reward (proxy) against held-out judge (gold)"
FIRST_UPDATES = 10
"""The beginning of a training and its end are means over so many updates: each update asks for other prompts."""
Points = list[list[float]]
"""(update, value)."""


def proxy_of(folder: Path, alarms: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Both series of a stage that learns from rewards; None where there is too little to draw."""
    metrics, parent = folder / "metrics.jsonl", folder / "validation-parent.json"
    if not (metrics.exists() and parent.exists()):
        return None
    rows = read_metrics(metrics)
    reward, held_out = _series(rows, "reward"), _series(rows, "validation/mean")
    if len(reward) < 2 or len(held_out) < 2:
        return None
    before = Evaluation.load(parent)
    unit = {
        "reward": _deviation(rows, reward, _prompts_per_update(folder)),
        "held_out": pstdev([fmean(item.scores.values()) for item in before.items]),
    }
    if not all(unit.values()):
        return None
    start = {"reward": fmean(value for _, value in reward[: _window(reward)]), "held_out": held_out[0][1]}
    series = {"reward": reward, "held_out": held_out}
    gains = {
        name: [[update, (value - start[name]) / unit[name]] for update, value in points]
        for name, points in series.items()
    }
    kept = max((value, update) for update, value in held_out)[1]
    return {
        **series,
        "axes": {axis: _series(rows, f"validation/{axis}") for axis in before.axes},
        "start": start,
        "unit": unit,
        "gains": gains,
        "kept": kept,
        "after": _after(gains, kept),
        "alarms": sorted({alarm["update"] for alarm in alarms}),
    }


def proxy_panel(found: Mapping[str, Any]) -> Panel:
    """The two gains in one drawing, with the kept checkpoint and the alarms."""
    lines = {"training reward": found["gains"]["reward"], "held-out judge": found["gains"]["held_out"]}
    marks = [("kept", found["kept"]), *(("alarm", update) for update in found["alarms"])]
    return panel(TITLE, lines, marks)


def _series(rows: Sequence[Mapping[str, float]], name: str) -> Points:
    return [[row["step"], row[name]] for row in rows if math.isfinite(row.get(name, math.nan))]


def _deviation(rows: Sequence[Mapping[str, float]], reward: Points, prompts: int) -> float:
    """Of the reward between the clips of the first updates; 0 where nothing differs, or spreads were not logged."""
    first = [row for row in rows if "reward" in row][: _window(reward)]
    spreads = [value for row in first for name, value in row.items() if name.startswith("spread/")]
    steps = [(after[1] - before[1]) ** 2 for before, after in pairwise(reward[: _window(reward)])]
    found = math.sqrt(fmean(spreads) ** 2 + prompts * fmean(steps) / 2) if spreads else 0.0
    return found if math.isfinite(found) else 0.0


def _prompts_per_update(folder: Path) -> int:
    path = folder.parent / "recipe.yaml"
    try:
        return int(yaml.safe_load(path.read_text(encoding="utf-8"))[folder.name]["prompts_per_update"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ReelignError(f"{path} does not say how many prompts an update of {folder.name} had: {error}") from error


def _window(rows: Sequence[Any]) -> int:
    return max(2, min(FIRST_UPDATES, len(rows) // 2))


def _after(gains: Mapping[str, Points], kept: float) -> dict[str, float] | None:
    """By how much both changed from the kept checkpoint to the end; None where it is the last one."""
    last, final = gains["held_out"][-1]
    if kept == last:
        return None
    rewards = [value for _, value in gains["reward"]]
    upto = [value for update, value in gains["reward"] if update <= kept]
    size = max(1, min(FIRST_UPDATES, len(rewards) - len(upto)))
    at = next(value for update, value in gains["held_out"] if update == kept)
    return {"reward": fmean(rewards[-size:]) - (fmean(upto[-size:]) if upto else 0.0), "held_out": final - at}
