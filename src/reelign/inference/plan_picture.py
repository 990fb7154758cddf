"""The picture of a plan: what everything that was tried gives, over how much faster it is."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from reelign.inference.plan_file import Plan

COLOURS = {
    "steps": "#0072b2",
    "guidance": "#e69f00",
    "cache": "#009e73",
    "attention": "#cc79a7",
    "quantise": "#d55e00",
    "compile": "#56b4e9",
    "window": "#8c564b",
    "together": "#444444",
}
"""Okabe and Ito's, which those who confuse red and green can tell apart."""


def draw(plan: Plan, path: Path) -> None:
    """Write the picture as PNG."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.scatter([1], [0], marker="D", color="black", zorder=3, label="as it is")
    for kind, colour in COLOURS.items():
        trials = [row.validation for row in plan.rows if row.kind == kind and row.validation is not None]
        if not trials:
            continue
        speed, gsb = [trial.speedup.value for trial in trials], [trial.overall for trial in trials]
        reach = [[one.value - one.low for one in gsb], [one.high - one.value for one in gsb]]
        axes.errorbar(
            speed, [one.value for one in gsb], reach, fmt="o", color=colour, label=kind, alpha=0.8, elinewidth=0.6
        )
    front = [row.validation for row in plan.rows if row.front and row.validation is not None]
    front.sort(key=lambda trial: trial.speedup.value)
    axes.plot(
        [1, *(one.speedup.value for one in front)],
        [0, *(one.overall.value for one in front)],
        color="grey",
        linewidth=1,
        zorder=0,
    )
    axes.axhline(plan.target.min_gsb, color="#d55e00", linestyle="--", linewidth=1, label="lowest GSB asked for")
    if plan.target.speedup is not None:
        axes.axvline(plan.target.speedup, color="#0072b2", linestyle="--", linewidth=1, label="speed asked for")
    if plan.prediction is not None and plan.choice is not None:
        own = plan.prediction.overall
        axes.errorbar(
            [plan.prediction.speedup.value],
            [own.value],
            [[own.value - own.low], [own.high - own.value]],
            fmt="*",
            markersize=14,
            color="black",
            label=f"chosen, on the other half:\n{plan.choice.label.replace(' + ', chr(10) + '+ ')}",
        )
    axes.set_xlabel("times faster than without a plan")
    axes.set_ylabel("GSB overall against the plain model")
    axes.set_title(f"{plan.model} on {plan.device}", fontsize=10)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
