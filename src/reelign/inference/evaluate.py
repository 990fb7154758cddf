"""Judge one model, or one against another, outside a run: `reelign evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from reelign.enhancer.enhancer import load_enhancer
from reelign.evaluate.battery import BatteryConfig, run_battery
from reelign.evaluate.evaluation import Evaluation
from reelign.evaluate.gsb import compare, retention
from reelign.evaluate.statistics import bootstrap_mean
from reelign.inference.enhance import outcome_rows
from reelign.models.load import enhancer_folder, load_model
from reelign.sampling.sample import SampleConfig, own_sampler

Progress = Callable[[str, int, int, str], None]


class TextTable(NamedTuple):
    """A table ready to be shown."""

    title: str
    header: list[str]
    rows: list[list[str]]


def evaluate_model(
    name: str,
    against: str | None,
    battery: BatteryConfig,
    sampler: SampleConfig,
    out: Path,
    progress: Progress,
    enhanced: bool = True,
) -> list[TextTable]:
    """Run the battery on a model (and on a second one), write `evaluation.json` and clips, and return tables.

    Args:
        name: the model.
        against: the second one.
        battery: the prompts and their judge.
        sampler: the deployment sampler; a distilled model is sampled by its own.
        out: gets `model/` and `against/`.
        progress: told what is judged, and how many clips of how many are done.
        enhanced: whether a model that carries a prompt enhancer is asked through it.

    Returns:
        Scores per axis with 95 % intervals, and what became of the prompts if there was an enhancer; with `against`
        also GSB of the model against it, and retention.
    """
    child = _evaluate(name, battery, sampler, out / "model", progress, enhanced)
    tables = _own_tables(name, child)
    if against is not None:
        parent = _evaluate(against, battery, sampler, out / "against", progress, enhanced)
        tables += _own_tables(against, parent)
        rows = [
            [axis, f"{found.value:+.2f}", f"[{found.low:+.2f}, {found.high:+.2f}]"]
            for axis, found in compare(parent, child).items()
        ]
        tables.append(TextTable(f"GSB of {name} against {against}", ["axis", "GSB", "95 % interval"], rows))
        kept = [
            [attribute, f"{found.value:.2f}", str(found.n)]
            for attribute, found in retention(parent, child).items()
            if found is not None
        ]
        if kept:
            tables.append(TextTable("Retention", ["attribute", "share kept", "checks"], kept))
    return tables


def _evaluate(
    name: str, battery: BatteryConfig, sampler: SampleConfig, out: Path, progress: Progress, enhanced: bool
) -> Evaluation:
    carried = enhancer_folder(name) if enhanced else None
    model = load_model(name)
    found = run_battery(
        model,
        battery,
        own_sampler(model) or sampler,
        "test",
        out,
        lambda done, total: progress(f"judge {name}", done, total, ""),
        enhancer=load_enhancer(str(carried)) if carried else None,
    )
    found.save(out / "evaluation.json")
    return found


def _own_tables(name: str, found: Evaluation) -> list[TextTable]:
    tables = [TextTable(f"Scores of {name}", ["axis", "mean", "95 % interval"], _score_rows(found))]
    if outcomes := [item.outcome for item in found.items if item.outcome]:
        tables.append(TextTable(f"Prompts given to {name}", ["outcome", "prompts", "share"], outcome_rows(outcomes)))
    return tables


def _score_rows(evaluation: Evaluation) -> list[list[str]]:
    rows, prompts = [], [item.prompt for item in evaluation.items]
    for axis in evaluation.axes:
        interval = bootstrap_mean([item.scores[axis] for item in evaluation.items], prompts)
        rows.append([axis, f"{interval.value:.3f}", f"[{interval.low:.3f}, {interval.high:.3f}]"])
    return rows
