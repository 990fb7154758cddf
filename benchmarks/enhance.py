"""What prompt enhancement gains, what each of its steps adds, and what it costs, for several seeds.

    python benchmarks/enhance.py --parents runs/a/sft/model runs/b/sft/model runs/c/sft/model

Runs `recipes/miniature-enhance.yaml` for each parent (seed 0, 1, ...) in these ways: supervised training alone, with
GRPO as it ships, and the wrong way, where the clips are scored against the rewrite. A run that is complete is read, not
repeated. 25 steps of the wrong way hardly drift from what was asked, so both ways are also run for 80 steps at a
higher temperature. Everything is judged on the held-out prompts of users, against the scene that they had in mind.
Writes `benchmarks/results/enhance.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from reelign.enhancer.enhancer import load_enhancer
from reelign.enhancer.faithful_miniature import OfTheMiniature
from reelign.enhancer.guard import Guard
from reelign.enhancer.rewrite import Faithfulness, Loss
from reelign.evaluate.battery import run_battery
from reelign.evaluate.evaluation import Evaluation
from reelign.evaluate.gsb import compare
from reelign.models.load import load_model
from reelign.recipe import load_recipe
from reelign.terminal import quiet_libraries
from tables import AXES, head, interval, line

RECIPE = Path("recipes/miniature-enhance.yaml")
LONG = ["enhance.grpo.steps=80", "enhance.grpo.temperature=1.5"]
WAYS = {
    "supervised": ["enhance.grpo=null"],
    "supervised + GRPO": [],
    "the wrong way": ["enhance.grpo.against=rewrite"],
    "long": LONG,
    "long, the wrong way": [*LONG, "enhance.grpo.against=rewrite"],
}


class Anything(Faithfulness):
    """A guard's ear that hears no loss: what the language model alone would do."""

    def loss(self, prompt: str, rewrite: str) -> Loss | None:
        """Never one."""
        return None


def main() -> None:
    """Run, collect, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parents", nargs="+", required=True, help="The generator of each seed.")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/enhance"))
    arguments = parser.parse_args()
    quiet_libraries()
    rows = []
    for seed, parent in enumerate(arguments.parents):
        runs = {
            way: run(way, more, seed, parent, arguments.runs) for way, more in WAYS.items() if way in arguments.ways
        }
        supervised = runs["supervised"]
        if isinstance(supervised, str):
            raise SystemExit(f"supervised training alone failed: {supervised}")
        for way, folder in runs.items():
            stopped = isinstance(folder, str)
            rows.append(
                {"way": way, "seed": seed, "stopped": folder} if stopped else measure(way, seed, folder, supervised)
            )
    arguments.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(report(rows), encoding="utf-8")
    print(report(rows))


def run(way: str, more: list[str], seed: int, parent: str, runs: Path) -> Path | str:
    """The folder of a finished run; or why it stopped: a drifting model may write what no reward can judge."""
    name = f"enhance-{re.sub('[^a-z]+', '-', way.lower())}-{seed}"
    command = [sys.executable, "-m", "reelign.cli", "run", str(RECIPE), f"model={parent}", f"seed={seed}"]
    done = subprocess.run(
        [*command, f"name={name}", f"runs={runs}", *more], check=False, stderr=subprocess.PIPE, text=True
    )
    sys.stderr.write(done.stderr)
    if done.returncode:
        return " ".join(done.stderr.split("reelign: ")[-1].split())
    return runs / name


def measure(way: str, seed: int, folder: Path, supervised: Path) -> dict:
    """What the run's battery found, the comparison with supervised training alone, and the model without a guard."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    stage = next(found for found in summary["stages"] if found["name"] == "enhance")
    own = Evaluation.load(folder / "enhance" / "evaluation.json")
    first = Evaluation.load(supervised / "enhance" / "evaluation.json")
    ledger = [row for row in summary["ledger"] if row["phase"] == "enhance/grpo" and row["completed"]]
    metrics = [json.loads(line) for line in (folder / "enhance" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in metrics if "rendered" in row]
    return {
        "way": way,
        "seed": seed,
        "without": {axis: found["value"] for axis, found in stage["without"]["scores"].items()},
        "with": {axis: found["value"] for axis, found in stage["scores"].items()},
        "gsb": {axis: stage["gsb"][axis] for axis in AXES},
        "full_captions": next(f for f in stage["figures"] if "full captions" in f["label"]),
        "against_supervised": {axis: asdict(found) for axis, found in compare(first, own).items()},
        "fallback_rate": stage["enhancement"]["fallback_rate"],
        "faithful": sum(OfTheMiniature().loss(i.prompt, i.rewrite) is None for i in own.items) / len(own.items),
        "alone": alone(folder),
        "seconds_a_step": ledger[-1]["seconds"] / len(steps) if steps else None,
        "rendered_a_step": sum(row["rendered"] for row in steps) / len(steps) if steps else None,
        "cache_hit_rate": hit_rate(steps),
        "minutes": stage["cost"]["seconds"] / 60,
    }


def hit_rate(steps: list[dict]) -> float | None:
    """Share of the different clips asked for that had been rendered before."""
    asked = sum(row["rendered"] + row["reused"] for row in steps)
    return sum(row["reused"] for row in steps) / asked if asked else None


def alone(folder: Path) -> dict:
    """The language model without its guard: how often everything said survives, and what its clips score."""
    recipe = load_recipe(folder / "recipe.yaml")
    artifact = folder / "enhance" / "model"
    enhancer = load_enhancer(str(artifact / "enhancer"))
    enhancer.guard = Guard(Anything(), enhancer.manner.window)
    battery = recipe.battery.model_copy(update={"style": "user", "keep_clips": 0})
    found = run_battery(load_model(artifact), battery, recipe.sampler, enhancer=enhancer)
    kept = [OfTheMiniature().loss(item.prompt, item.rewrite) is None for item in found.items]
    return {"keeps_all": sum(kept) / len(kept), **found.means()}


def report(rows: list[dict]) -> str:
    """The rows as Markdown; a run that stopped is a sentence below the tables."""
    stopped, rows = [row for row in rows if "stopped" in row], [row for row in rows if "stopped" not in row]
    lines = ["**With the enhancer against the same generator without it, on users' prompts** (GSB).", ""]
    lines += head("way", "seed", *(f"GSB {axis}" for axis in AXES), "overall, full captions", "minutes")
    for row in rows:
        cells = [interval(row["gsb"][axis]) for axis in AXES]
        lines.append(line(row["way"], row["seed"], *cells, interval(row["full_captions"]), f"{row['minutes']:.1f}"))
    lines += added(rows)
    lines += ["", "**Faithfulness behind the guard, and cost.**", ""]
    lines += head("way", "seed", "faithful", "fallback", "seconds a step", "clips rendered a step", "cache hits")
    for row in rows:
        cost = [row["seconds_a_step"], row["rendered_a_step"]]
        cells = [
            f"{row['faithful']:.1%}",
            f"{row['fallback_rate']:.1%}",
            *("" if c is None else f"{c:.1f}" for c in cost),
        ]
        hits = row["cache_hit_rate"]
        lines.append(line(row["way"], row["seed"], *cells, "" if hits is None else f"{hits:.1%}"))
    lines += [f"\n{row['way']}, seed {row['seed']}, did not end: {row['stopped']}" for row in stopped]
    return "\n".join(lines) + "\n"


def added(rows: list[dict]) -> list[str]:
    """What a way adds to supervised training alone, as Markdown."""
    lines = ["", "**What GRPO adds to supervised training** (GSB), **and the language model without its guard.**", ""]
    lines += head("way", "seed", "text", "visual", "motion", "overall", "keeps all, no guard", "text, no guard")
    for row in rows:
        cells = [interval(row["against_supervised"][axis]) for axis in AXES]
        own = row["alone"]
        lines.append(line(row["way"], row["seed"], *cells, f"{own['keeps_all']:.1%}", f"{own['text']:.3f}"))
    return lines


if __name__ == "__main__":
    main()
