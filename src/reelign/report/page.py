"""The page of a run: `RUN/report/index.html`, self-contained, built from what is on disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reelign.files import write_atomically
from reelign.report.feedback import reliability
from reelign.report.films import of_addition, of_stages, showing
from reelign.report.pareto import pareto
from reelign.report.plots import Panel, counts, panel, place
from reelign.report.proxy import proxy_panel
from reelign.report.summary import PARTS, Stage, read_stages, summarise
from reelign.train.track import read_metrics

TITLES = {
    "text": "Text alignment",
    "visual": "Visual quality",
    "motion": "Motion quality",
    "overall": "Overall",
    "kept": "Mean, each axis up to the teacher's",
    "loss": "Training loss",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
    "validation/held_out_loss": "Loss on held-out real clips",
    "validation/nll": "Negative log-likelihood of held-out votes",
    "validation/accuracy": "Share of held-out preferences foreseen",
    "accuracy": "Share of preferences foreseen",
    "margin": "Margin of the implicit reward",
    "reward": "Training reward",
    "diversity": "Distance between the clips of a group",
    "ratio_drift": "Largest distance of the ratio from 1",
    "entropy": "Entropy of the language model",
    "fallback": "Share of rewrites that the guard refused",
    "unchanged": "Share of rewrites that are the user's words",
    "words": "Words of what the generator is given",
    "rendered": "Clips rendered in a step",
    "reused": "Clips found in the cache in a step",
    "learning_rate": "Learning rate",
    "critic_loss": "Loss of the critic",
    "distance": "Distance between teacher and critic",
    "nfe": "Network evaluations of an update",
    "nfe_trained": "Network evaluations of an update that carry a gradient",
}
FAMILIES = {
    "validation": "Validation scores",
    "reward": "Training rewards, one by one",
    "raw": "The same rewards for the user's own words",
    "spread": "Spread of rewards inside groups",
    "zero_spread": "Groups without any spread",
    "seconds": "Seconds of an update",
    "advantage": "Advantages",
}
"""Numbers called FAMILY/NAME are drawn together."""
NOT_DRAWN = ("step", "alarms")
"""Alarms are told in words."""
FIRST = ("reward", "loss", "validation/held_out_loss")
"""The curves that are drawn first."""


def build_report(run: Path) -> Path:
    """Write `summary.json` and `report/index.html` of a run; an unfinished run gives a page that says so.

    Raises:
        ReelignError: the folder is no run, or a file of it is damaged.
    """
    summary, stages = summarise(run), read_stages(run)
    write_atomically(run / "summary.json", json.dumps(summary, indent=1, allow_nan=False))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"title_of": title_of, "duration": duration, "memory": memory, "figure": figure}
    environment.filters["short"] = short
    environment.filters["signed"] = lambda value: figure(value, "+.2f")
    html = environment.get_template("page.html.j2").render(
        summary=summary,
        panels={stage.name: panels(stage) for stage in stages},
        proxies={row["name"]: proxy_panel(row["proxy"]) for row in summary["stages"] if row["proxy"] is not None},
        fitting=drawings(run / "reward"),
        reliability=reliability,
        axes=list(dict.fromkeys(axis for row in summary["stages"] for axis in row["scores"])),
        show=showing(of_stages(stages)),
        added=showing(of_addition(stages)),
        phases=phases(summary["ledger"]),
        audit=(run / "dataset" / "audit.html").exists(),
        place=place,
        counts=counts,
        pareto=pareto,
    )
    page = run / "report" / "index.html"
    write_atomically(page, html)
    return page


def panels(stage: Stage) -> list[Panel]:
    """The drawings of a stage, and after them those of its parts, which say whose they are."""
    found = drawings(stage.folder)
    for part in PARTS:
        name = part.replace("-", " ").capitalize()
        found += [replace(drawing, title=f"{name}: {drawing.title}") for drawing in drawings(stage.folder / part)]
    return found


def drawings(folder: Path) -> list[Panel]:
    """One drawing for each tracked number or family of numbers that changes; NaN is left out."""
    path = folder / "metrics.jsonl"
    rows = read_metrics(path) if path.exists() else []
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in NOT_DRAWN and math.isfinite(value):
                series.setdefault(name, []).append((row["step"], value))
    order = [*FIRST, *(name for name in series if name not in FIRST)]
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name in order:
        family, _, member = name.partition("/")
        alone = name in TITLES or not member or family not in FAMILIES
        if len(points := series.get(name, [])) > 1 and (family == "validation" or len({y for _, y in points}) > 1):
            groups.setdefault(title_of(name) if alone else FAMILIES[family], {})[title_of(member or name)] = points
    titles = list(groups)
    if FAMILIES["validation"] in groups:  # second, after the curve that is trained on
        titles.remove(FAMILIES["validation"])
        titles.insert(1, FAMILIES["validation"])
    return [panel(title, groups[title]) for title in titles]


def phases(ledger: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Phases of the same name added up, in the order of their first appearance.

    `completed` is that of the last attempt: a phase that was stopped and then went on is complete.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in ledger:
        row = found.setdefault(
            entry["phase"], {"phase": entry["phase"], "seconds": 0.0, "nfe": 0, "clips": 0, "peak": 0}
        )
        for name in ("seconds", "nfe", "clips"):
            row[name] += entry[name]
        row["peak"] = max(row["peak"], entry["peak_memory_bytes"])
        row["completed"] = entry["completed"]
    return list(found.values())


def title_of(name: str) -> str:
    """What people call an axis, a metric or an attribute."""
    return TITLES.get(name) or name.replace("_", " ").replace("/", ": ").capitalize()


def figure(value: float, form: str = ".4g") -> str:
    """A number with a real minus sign."""
    return format(value, form).replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever is read most easily."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def short(seconds: float) -> str:
    """Milliseconds or seconds."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def memory(count: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
