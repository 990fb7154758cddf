"""`make demo` for several seeds: what each stage gains over its parent, with intervals, retention and cost.

    python benchmarks/demo.py --seeds 0 1 2 --out benchmarks/results/demo

Runs the recipe as it ships, once for each seed, and writes `demo.json` and `demo.md`. A run that is already complete
under `runs/` is read, not repeated. `--set enhance=null distill=null` leaves the later stages out.

RLHF on the exact training judge, from what those runs fine-tuned, beside the reward that they fitted to votes:

    python benchmarks/demo.py --recipe recipes/miniature-rlhf.yaml --name exact --out benchmarks/results/demo_exact \\
        --set model=runs/benchmark-seed-{seed}/sft/model

The last row of a stage holds the pairs of all seeds, its intervals from whole prompts with their clips of every seed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reelign.evaluate.evaluation import Evaluation
from reelign.evaluate.gsb import retention, verdicts
from reelign.evaluate.statistics import bootstrap_mean
from tables import AXES, head, interval, line, weakest


def main() -> None:
    """Run, collect, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo"))
    parser.add_argument("--name", default="benchmark", help="a run is called NAME-seed-SEED")
    parser.add_argument(
        "--set", dest="changes", nargs="*", default=[], help="overrides of the recipe; {seed} stands for each seed"
    )
    arguments = parser.parse_args()
    rows = [measure(arguments, seed) for seed in arguments.seeds]
    folders = [arguments.runs / f"{arguments.name}-seed-{seed}" for seed in arguments.seeds]
    judged = [stage for stage in rows[0]["stages"] if stage["gsb"]]
    pooled = {stage["name"]: together(folders, stage["parent"], stage["name"]) for stage in judged}
    facts = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "changes": arguments.changes,
        "runs": rows,
        "pooled": pooled,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(table(rows, pooled), encoding="utf-8")
    print(table(rows, pooled))


def measure(arguments: argparse.Namespace, seed: int) -> dict:
    """One run of the recipe: its stages as the summary has them, and the cost of the whole run."""
    name, runs = f"{arguments.name}-seed-{seed}", arguments.runs
    command = [sys.executable, "-m", "reelign.cli", "run", str(arguments.recipe)]
    changes = [change.replace("{seed}", str(seed)) for change in arguments.changes]
    subprocess.run([*command, f"seed={seed}", f"name={name}", f"runs={runs}", *changes], check=True)
    summary = json.loads((runs / name / "summary.json").read_text(encoding="utf-8"))
    kept = ("name", "parent", "scores", "gsb", "retention", "retention_checks", "cost")
    return {
        "seed": seed,
        "stages": [{key: stage[key] for key in kept if key in stage} for stage in summary["stages"]],
        "seconds": summary["cost"]["seconds"],
        "peak_memory_bytes": summary["cost"]["peak_memory_bytes"],
    }


def together(folders: list[Path], parent: str, child: str) -> dict[str, Any]:
    """GSB and retention of a stage against its parent over the pairs of all runs."""
    before, after = (
        [Evaluation.load(folder / name / "evaluation.json") for folder in folders] for name in (parent, child)
    )
    pairs = list(zip(before, after, strict=True))
    found = [verdicts(*pair) for pair in pairs]
    kept = [retention(*pair) for pair in pairs]
    prompts = [item.prompt for evaluation in before for item in evaluation.items]
    return {
        "gsb": {axis: asdict(bootstrap_mean([v for one in found for v in one[axis]], prompts)) for axis in AXES},
        "retention": {
            name: sum(share.value * share.n for share in shares) / sum(share.n for share in shares)
            for name in kept[0]
            if (shares := [share for one in kept if (share := one[name])])
        },
    }


def table(rows: list[dict], pooled: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = head("stage", "seed", *(f"GSB {axis}" for axis in AXES), "weakest retention", "minutes")
    for name, pool in pooled.items():
        for row in rows:
            stage = next(found for found in row["stages"] if found["name"] == name)
            lines.append(line(name, row["seed"], *gains(stage), f"{stage['cost']['seconds'] / 60:.1f}"))
        lines.append(line(name, "all", *gains(pool), ""))
    whole = "; ".join(
        f"seed {row['seed']}: {row['seconds'] / 60:.1f} minutes, {row['peak_memory_bytes'] / 2**30:.1f} GiB"
        for row in rows
    )
    return "\n".join(lines) + f"\n\nWhole runs, curation and batteries included: {whole}.\n"


def gains(found: dict[str, Any]) -> list[str]:
    """The cells of a stage's GSB and of what it keeps least."""
    return [*(interval(found["gsb"][axis]) for axis in AXES), weakest(found["retention"])]


if __name__ == "__main__":
    main()
