"""The page of a run: `RUN/report/index.html`, self-contained, built from what is on disk."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from reelign.data.manifest import DROPPED, MANIFEST, read_dropped, read_manifest
from reelign.errors import ReelignError
from reelign.files import write_atomically
from reelign.report.plots import curve, interval_plot
from reelign.report.summary import Stage, read_stages, summarise
from reelign.train.track import read_metrics

CURVES = ("loss", "validation/text", "validation/visual", "validation/motion", "validation/held_out_loss", "grad_norm")
SHOWN = 8
"""Prompts shown side by side."""


def build_report(run: Path) -> Path:
    """Write `summary.json` and `report/index.html` of a run; an unfinished run gives a page that says so.

    Raises:
        ReelignError: the folder is no run, or a file of it is damaged.
    """
    summary = summarise(run)
    write_atomically(run / "summary.json", json.dumps(summary, indent=1))
    stages = read_stages(run, summary["run"])
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters |= {"minutes": _minutes, "mib": lambda n: f"{n / 2**20:,.0f}", "thousands": lambda n: f"{n:,}"}
    html = environment.get_template("page.html.j2").render(
        run=summary["run"],
        headline=summary["headline"],
        stages=[_view(row, stage) for row, stage in zip(summary["stages"], stages, strict=True)],
        axes=_axes(summary["stages"]),
        ceilings=summary["ceilings"],
        pairs=_pairs(stages),
        fps=_fps(stages),
        cost=summary["cost"],
        ledger=_ledger(summary["ledger"]),
        audit=_audit(run),
    )
    page = run / "report" / "index.html"
    write_atomically(page, html)
    return page


def _view(row: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """A stage's numbers with its drawings."""
    drawings = {}
    if row["gsb"]:
        drawings["gsb"] = interval_plot(list(row["gsb"].items()), -1.0, 1.0)
    metrics = stage.folder / "metrics.jsonl"
    rows = read_metrics(metrics) if metrics.exists() else []
    curves: list[tuple[str, Markup]] = []
    for name in CURVES:
        points = [(found["step"], found[name]) for found in rows if name in found]
        if len(points) > 1:
            curves.append((name.replace("/", ": ").replace("_", " "), curve(points, name)))
    return row | {"drawings": drawings, "curves": curves}


def _axes(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(axis for row in rows for axis in row["scores"]))


def _pairs(stages: list[Stage]) -> list[dict[str, Any]]:
    """The same prompts and seeds in every stage, as data addresses."""
    judged = [stage for stage in stages if stage.evaluation is not None]
    if not judged:
        return []
    found = []
    first = judged[0].evaluation
    assert first is not None
    for item in [item for item in first.items if item.clip][:SHOWN]:
        clips = []
        for stage in judged:
            assert stage.evaluation is not None
            twin = next((other for other in stage.evaluation.items if (other.id, other.seed) == (item.id, item.seed)), None)
            if twin is not None and twin.clip and (stage.folder / twin.clip).exists():
                clips.append(
                    {
                        "title": stage.facts.get("title", stage.name),
                        "source": _video(stage.folder / twin.clip),
                        "scores": twin.scores,
                        "missed": [name for name, ok in twin.attributes.items() if not ok],
                    }
                )
        found.append({"prompt": item.prompt, "clips": clips})
    return found


def _fps(stages: list[Stage]) -> float:
    return next((float(s.evaluation.battery["fps"]) for s in stages if s.evaluation is not None), 8.0)


def _video(path: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def _ledger(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Phases of the same name added up, in the order of their first appearance."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        row = found.setdefault(
            entry["phase"], {"phase": entry["phase"], "seconds": 0.0, "nfe": 0, "clips": 0, "peak": 0, "completed": True}
        )
        row["seconds"] += entry["seconds"]
        row["nfe"] += entry["nfe"]
        row["clips"] += entry["clips"]
        row["peak"] = max(row["peak"], entry["peak_memory_bytes"])
        row["completed"] = entry["completed"]
    return list(found.values())


def _audit(run: Path) -> dict[str, Any] | None:
    """Counts of the dataset that the run curated."""
    dataset = run / "dataset"
    if not ((dataset / MANIFEST).exists() and (dataset / DROPPED).exists()):
        return None
    try:
        kept = read_manifest(dataset)
    except ReelignError:
        kept = []
    dropped = read_dropped(dataset)
    return {
        "kept": len(kept),
        "seconds": sum(row["seconds"] for row in kept),
        "captioned": sum(bool(row["caption"]) for row in kept),
        "rules": Counter(row["rule"] for row in dropped).most_common(),
    }


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
