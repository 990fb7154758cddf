"""`summary.json` of a run: every number of the report, for programs. Documented in docs/summary.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelign.errors import ReelignError
from reelign.evaluate.evaluation import Evaluation
from reelign.evaluate.gsb import compare, retention
from reelign.evaluate.statistics import Interval, bootstrap_mean
from reelign.train.ledger import Ledger


@dataclass(frozen=True)
class Stage:
    """A stage as found on disk; `evaluation` is None when it did not get that far."""

    name: str
    folder: Path
    facts: dict[str, Any]
    evaluation: Evaluation | None


def read_stages(run: Path, facts: dict[str, Any]) -> list[Stage]:
    """The stages that `run.json` names, in order."""
    found = []
    for name in facts["stages"]:
        folder = run / name
        marker, judged = folder / "stage.json", folder / "evaluation.json"
        stage = _read(marker) if marker.exists() else {"name": name, "title": name, "artifact": None, "parent": None}
        found.append(Stage(name, folder, stage, Evaluation.load(judged) if judged.exists() else None))
    return found


def summarise(run: Path) -> dict[str, Any]:
    """All numbers of a run.

    Raises:
        ReelignError: the folder is no run.
    """
    if not (run / "run.json").exists():
        raise ReelignError(f"{run} is no run: run.json is missing. A run is made with: reelign run recipes/demo.yaml")
    facts = _read(run / "run.json")
    ledger = Ledger(run / "ledger.jsonl").read()
    stages = read_stages(run, facts)
    by_name = {stage.name: stage for stage in stages}
    rows = [_stage(stage, by_name, ledger) for stage in stages]
    ceilings = _read(run / "ceilings.json") if (run / "ceilings.json").exists() else {}
    total = _cost(ledger)
    return {
        "run": facts,
        "ceilings": ceilings,
        "stages": rows,
        "cost": total,
        "ledger": ledger,
        "headline": _headline(rows, total),
    }


def _stage(stage: Stage, by_name: dict[str, Stage], ledger: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = stage.evaluation
    parent = by_name.get(stage.facts.get("parent") or "")
    row: dict[str, Any] = {
        "name": stage.name,
        "title": stage.facts.get("title", stage.name),
        "artifact": stage.facts.get("artifact"),
        "parent": stage.facts.get("parent"),
        "complete": "fingerprint" in stage.facts,
        "gate": stage.facts.get("gate"),
        "scores": {},
        "gsb": {},
        "retention": {},
        "figures": _figures(stage.folder / "extra.json"),
        "cost": _cost(entry for entry in ledger if entry["phase"].split("/")[0] == stage.name),
    }
    if found is not None:
        prompts = [item.prompt for item in found.items]
        row["scores"] = {
            axis: _interval(bootstrap_mean([item.scores[axis] for item in found.items], prompts)) for axis in found.axes
        }
        if parent is not None and parent.evaluation is not None:
            row["gsb"] = {axis: _interval(value) for axis, value in compare(parent.evaluation, found).items()}
            kept = retention(parent.evaluation, found)
            row["retention"] = {name: value.value if value is not None else None for name, value in kept.items()}
            row["retention_checks"] = {name: value.n if value is not None else 0 for name, value in kept.items()}
    return row


def _headline(rows: Sequence[dict[str, Any]], total: dict[str, Any]) -> list[dict[str, str]]:
    """The three numbers that matter: how much better, what control was kept, what it cost."""
    judged = [row for row in rows if row["gsb"]]
    found = []
    if judged:
        last = judged[-1]
        overall = last["gsb"]["overall"]
        found.append(
            {
                "label": f"{last['title']} against its parent, overall GSB",
                "text": f"{overall['value']:+.2f} [{overall['low']:+.2f}, {overall['high']:+.2f}]",
            }
        )
        kept = {name: value for name, value in last["retention"].items() if value is not None}
        if kept:
            weakest = min(kept, key=lambda name: kept[name])
            found.append({"label": f"Control kept, weakest attribute ({weakest})", "text": f"{kept[weakest]:.0%}"})
    minutes = total["seconds"] / 60
    found.append({"label": "Cost of the whole run", "text": f"{minutes:.1f} min, {total['nfe']:,} network evaluations"})
    return found


def _cost(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    rows = list(entries)
    return {
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "nfe": sum(row["nfe"] for row in rows),
        "clips": sum(row["clips"] for row in rows),
        "peak_memory_bytes": max((row["peak_memory_bytes"] for row in rows), default=0),
    }


def _interval(found: Interval) -> dict[str, float | int]:
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def _figures(path: Path) -> list[dict[str, Any]]:
    return _read(path)["figures"] if path.exists() else []


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReelignError(f"{path} is damaged or unreadable: {error}") from error
