"""`make demo` for several seeds: what SFT gains on the miniature, with intervals, retention and cost.

    python benchmarks/demo.py --seeds 0 1 2 --out benchmarks/results/demo

Runs the recipe as it ships, once for each seed, and writes `demo.json` and `demo.md`. A run that is already complete
under `runs/` is read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

AXES = ("text", "visual", "motion", "overall")


def main() -> None:
    """Run, collect, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo"))
    arguments = parser.parse_args()
    rows = [measure(arguments.recipe, seed, arguments.runs) for seed in arguments.seeds]
    facts = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "runs": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


def measure(recipe: Path, seed: int, runs: Path) -> dict:
    """One run of the recipe: the SFT stage of its summary, and the cost of all stages."""
    name = f"benchmark-seed-{seed}"
    command = [sys.executable, "-m", "reelign.cli", "run", str(recipe)]
    subprocess.run([*command, f"seed={seed}", f"name={name}", f"runs={runs}"], check=True)
    summary = json.loads((runs / name / "summary.json").read_text(encoding="utf-8"))
    ledger = [json.loads(line) for line in (runs / name / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    stage = next(stage for stage in summary["stages"] if stage["name"] == "sft")
    return {
        "seed": seed,
        "scores": stage["scores"],
        "gsb": stage["gsb"],
        "retention": stage["retention"],
        "seconds": sum(phase["seconds"] for phase in ledger),
        "peak_memory_bytes": max(phase["peak_memory_bytes"] for phase in ledger),
    }


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "| seed | " + " | ".join(f"GSB {axis}" for axis in AXES) + " | weakest retention | minutes | peak memory |",
        "|---" * (len(AXES) + 4) + "|",
    ]
    for row in rows:
        cells = [f"{g['value']:+.2f} [{g['low']:+.2f}, {g['high']:+.2f}]" for g in (row["gsb"][axis] for axis in AXES)]
        weakest = min(row["retention"], key=lambda name: row["retention"][name])
        kept = f"{weakest} {row['retention'][weakest]:.1%}"
        memory = f"{row['peak_memory_bytes'] / 2**30:.1f} GiB"
        lines.append(f"| {row['seed']} | {' | '.join(cells)} | {kept} | {row['seconds'] / 60:.1f} | {memory} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
