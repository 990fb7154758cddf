"""What distillation keeps and what it saves, and which of its parts matter, for several seeds.

    python benchmarks/distill.py --parents runs/a/sft/model runs/b/sft/model runs/c/sft/model
    python benchmarks/distill.py --parents runs/a/sft/model --ablate

Runs `recipes/miniature-distill.yaml` for each parent (seed 0, 1, ...); with `--ablate` for the first parent also
without parts of the chain, and with one of its choices changed. A run that is complete is read, not repeated.
Everything is judged by the evaluation judge on the test prompts, against the parent at its 20 guided steps; beside it
stands the parent run with as few evaluations. Writes `benchmarks/results/distill.{json,md}` or
`distill_ablation.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo import together
from reelign.evaluate.bargain import Offer, bargains, prices
from reelign.evaluate.battery import run_battery
from reelign.evaluate.drift import drift
from reelign.evaluate.evaluation import Evaluation
from reelign.evaluate.gsb import retention
from reelign.models.load import load_model
from reelign.recipe import load_recipe
from reelign.sampling.sample import own_sampler
from reelign.terminal import quiet_libraries
from tables import AXES, head, interval, line, weakest

RECIPE = Path("recipes/miniature-distill.yaml")
CHAIN = "unguided, few steps, first weights, self-forcing"
FEWER = 1600
"""Trajectories of the teacher's ODE, which takes ten times the evaluations of the few-step student: a third of the
recipe's, at more than three times their cost."""
ABLATIONS = {
    CHAIN: [],
    "few steps, first weights, self-forcing (guidance is not taken over)": ["distill.unguided=null"],
    "unguided, first weights, self-forcing (no matching of whole clips)": ["distill.few_step=null"],
    "unguided, few steps, self-forcing": ["distill.initialise=null"],
    f"first weights from {FEWER} ways of the teacher's ODE, self-forcing": [
        "distill.unguided=null",
        "distill.few_step=null",
        "distill.initialise.teacher=ode",
        f"distill.initialise.trajectories={FEWER}",
    ],
    "self-forcing alone": ["distill.unguided=null", "distill.few_step=null", "distill.initialise=null"],
    "the chain, one block of all frames": ["distill.causal.block=5"],
    "the chain, finished blocks remembered (4.8 evaluations)": ["distill.causal.memory=finished"],
    "the chain, scores matched at levels of shift 3": [
        "distill.few_step.level_shift=3",
        "distill.self_forcing.level_shift=3",
    ],
}
WINDOWS = ((None, 0), (5, 0), (5, 1), (3, 0), (3, 1))
"""(window, sinks) of long rollouts."""


def main() -> None:
    """Run, collect, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parents", nargs="+", required=True, help="The teacher of each seed.")
    parser.add_argument("--ablate", action="store_true", help="Leave out or change parts, for the first parent.")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.ablate:
        rows = ablated(arguments.parents[0], arguments.runs)
        text, name = ablation_table(rows), "distill_ablation"
    else:
        folders = [run(CHAIN, [], seed, parent, arguments.runs) for seed, parent in enumerate(arguments.parents)]
        rows = [measured(seed, folder) for seed, folder in enumerate(folders)]
        text, name = table(rows, together(folders, "base", "distill")), "distill"
    (arguments.out / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (arguments.out / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def run(way: str, more: list[str], seed: int, parent: str, runs: Path) -> Path:
    """The folder of a finished run."""
    name = f"distill-{list(ABLATIONS).index(way)}-{seed}"
    command = [sys.executable, "-m", "reelign.cli", "run", str(RECIPE), f"model={parent}", f"seed={seed}"]
    subprocess.run([*command, f"name={name}", f"runs={runs}", *more], check=True)
    return runs / name


def judged(folder: Path) -> dict[str, Any]:
    """What a run's report says of its distillation."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))["stages"][-1]


def measured(seed: int, folder: Path) -> dict[str, Any]:
    """What the report says of a seed, and how long streams fare in other windows."""
    stage = judged(folder)
    recipe = load_recipe(folder / "recipe.yaml")
    student = load_model(folder / "distill")
    sampler = own_sampler(student)
    assert student.causal is not None and sampler is not None
    streams = []
    for window, sinks in WINDOWS:
        student.causal.config = student.causal.config.model_copy(update={"window": window, "sinks": sinks})
        found, _ = drift(student, recipe.battery, sampler)
        streams.append({"window": window, "sinks": sinks, **found})
    return {
        "seed": seed,
        "bargain": stage["bargain"],
        "retention": stage["retention"],
        "streams": streams,
        "minutes": stage["cost"]["seconds"] / 60,
        "nfe": stage["cost"]["nfe"],
    }


def ablated(parent: str, runs: Path) -> list[dict[str, Any]]:
    """A row for each way, and the first causal weights by themselves, which are a part of the whole chain."""
    folders = {way: run(way, more, 0, parent, runs) for way, more in ABLATIONS.items()}
    rows = []
    for way, folder in folders.items():
        stage = judged(folder)
        row = next(row for row in stage["bargain"] if row["name"] == "student")
        rows.append({"way": way, "minutes": stage["cost"]["seconds"] / 60, "retention": stage["retention"], **row})
    chain = folders[CHAIN]
    recipe = load_recipe(chain / "recipe.yaml")
    model = load_model(chain / "distill" / "initialise" / "model")
    sampler = own_sampler(model)
    assert sampler is not None
    offer, battery = Offer("student", model, sampler), recipe.battery.model_copy(update={"keep_clips": 0})
    found = {"student": run_battery(model, battery, sampler)}
    teacher = Evaluation.load(chain / "base" / "evaluation.json")
    [row] = bargains(teacher, found, prices([offer], battery), "student")
    kept = {name: share and share.value for name, share in retention(teacher, found["student"]).items()}
    rows.append(
        {"way": "unguided, few steps, first weights (no self-forcing)", "minutes": None, "retention": kept, **row}
    )
    return rows


def table(rows: list[dict[str, Any]], pooled: dict[str, Any]) -> str:
    """The seeds as Markdown, and the pairs of all of them together."""
    lines = ["**Against the teacher at 20 guided steps** (GSB), **and what a clip costs.**", ""]
    lines += head(
        "seed",
        "way to make a clip",
        *(f"GSB {axis}" for axis in AXES),
        "weakest retention",
        "evaluations",
        "s, one clip",
        "s, of 16",
        "s, first frame",
    )
    for row in rows:
        for way in row["bargain"]:
            cells = [interval(way["gsb"][axis]) if way["name"] != "teacher" else "" for axis in AXES]
            cells.append(weakest(row["retention"]) if way["name"] == "student" else "")
            cost = [f"{way[key]:.3g}" for key in ("nfe", "seconds", "seconds_in_batch", "first_frame")]
            lines.append(line(row["seed"], way["name"], *cells, *cost))
    cells = [*(interval(pooled["gsb"][axis]) for axis in AXES), weakest(pooled["retention"])]
    lines.append(line("all", "student", *cells, "", "", "", ""))
    lines += ["", "**The student against the teacher run as cheaply** (GSB overall).", ""]
    lines += head("seed", "against", "GSB", "minutes of the stage")
    for row in rows:
        for way in row["bargain"]:
            if way["name"].startswith("teacher,"):
                lines.append(
                    line(row["seed"], way["name"], interval(way["student"]["overall"]), f"{row['minutes']:.1f}")
                )
    lines += ["", "**Streams of four clips' length**: quality (looks and visual score) of each quarter.", ""]
    lines += head("seed", "window", "sinks", "first", "second", "third", "last", "last over first")
    for row in rows:
        for stream in row["streams"]:
            parts = [f"{part['value']:.3f}" for part in stream["parts"]]
            lines.append(line(row["seed"], stream["window"] or "all", stream["sinks"], *parts, f"{stream['kept']:.1%}"))
    return "\n".join(lines) + "\n"


def ablation_table(rows: list[dict[str, Any]]) -> str:
    """The ways as Markdown."""
    lines = ["**The student of each way against the teacher at 20 guided steps** (GSB), one seed.", ""]
    lines += head(
        "way", *(f"GSB {axis}" for axis in AXES), "weakest retention", "grounds kept", "first frame, s", "minutes"
    )
    for row in rows:
        cells = [*(interval(row["gsb"][axis]) for axis in AXES), weakest(row["retention"])]
        cells.append(f"{row['retention']['background']:.1%}")
        minutes = "" if row["minutes"] is None else f"{row['minutes']:.1f}"
        lines.append(line(row["way"], *cells, f"{row['first_frame']:.3g}", minutes))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
