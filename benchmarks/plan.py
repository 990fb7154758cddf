"""Does `reelign plan` find a faster way that keeps the quality, and does it hold what it predicts? Three seeds.

    python benchmarks/plan.py                       # the miniature as it ships, which is not distilled
    python benchmarks/plan.py miniature runs/demo/sft/model

A plan is chosen on 48 prompts and predicts on 48 others. Its prediction is then compared with 64 fresh prompts under
another seed of the noise, which had no part in either. Seeds 0 to 2 found the rule by which plans are chosen, and so
cannot say whether it is right.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from reelign.evaluate.battery import BatteryConfig, tasks
from reelign.inference.plan import PlanConfig, make_plan
from reelign.inference.plan_file import Plan, Target, read_plan
from reelign.inference.plan_request import plan_request
from reelign.inference.trial import Trial, Yardstick
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from reelign.terminal import quiet_libraries
from tables import head, line

SPEEDUP, LEAST = 1.5, -0.05
FRESH_SEED = 1000
COLUMNS = ("model", "seed", "chosen", "s a clip, without", "faster, predicted", "faster, fresh", "GSB, choosing",
           "GSB, predicted", "GSB, fresh", "PSNR", "motion (without)", "minutes")  # fmt: skip


def main() -> None:
    """Plan for each model and seed, measure the choice on fresh prompts, and write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["miniature"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--count", type=int, default=48, help="prompts of each half")
    parser.add_argument("--fresh", type=int, default=64, help="fresh prompts")
    parser.add_argument("--only", nargs="*", default=[], help="kinds of accelerations")
    parser.add_argument("--runs", type=Path, default=Path("runs/plan"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/plan.json"))
    asked = parser.parse_args()
    quiet_libraries()
    rows = []
    for name in asked.models:
        model = load_model(name)
        for seed in asked.seeds:
            folder = asked.runs / f"{name.strip('/').replace('/', '-')}-{seed}"
            rows.append(row(name, model, seed, folder, asked))
            write(rows, asked.out)


def row(name: str, model: VideoModel, seed: int, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """One plan, read where it was made before, and its choice on fresh prompts."""
    config = plan_request(model, Target(speedup=SPEEDUP, min_gsb=LEAST), count=asked.count, seed=seed, kinds=asked.only)
    path, started = folder / "plan.yaml", time.perf_counter()
    done = path.exists()
    plan = read_plan(path) if done else make_plan(name, model, config, path, tell)
    found: dict[str, Any] = {"model": name, "seed": seed, "plan": plan.model_dump(mode="json", exclude_none=True)}
    found["minutes"] = None if done else (time.perf_counter() - started) / 60
    if plan.choice is not None:
        found["fresh"] = fresh(model, config, plan, asked.fresh).model_dump(mode="json")
    return found


def fresh(model: VideoModel, config: PlanConfig, plan: Plan, count: int) -> Trial:
    """The choice on prompts of the battery that the plan did not see, with other noise."""
    settings = config.battery.model_dump() | {"count": 160, "seed": config.battery.seed + FRESH_SEED}
    battery = BatteryConfig.model_validate(settings)
    part = tasks(battery)[config.battery.count :][:count]
    with tempfile.TemporaryDirectory() as folder:
        yardstick = Yardstick(model, config.sampler, battery, {"fresh": part}, Path(folder))
        return yardstick.measure(plan.acceleration, "fresh", lambda done, total: tell("fresh", done, total, ""))


def tell(what: str, done: int, total: int, note: str) -> None:
    """One line for each that is finished."""
    if done == total:
        sys.stderr.write(f"{what} {note}\n")


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """The figures as JSON with versions, and the table as Markdown."""
    about = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {library: version(library) for library in ("torch", "diffusers")},
        "target": {"speedup": SPEEDUP, "min_gsb": LEAST},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    lines = [*head(*COLUMNS), *map(row_of, rows)]
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def row_of(found: dict[str, Any]) -> str:
    """A row of the table."""
    plan = Plan.model_validate(found["plan"])
    took = "" if found["minutes"] is None else f"{found['minutes']:.1f}"
    if plan.choice is None or plan.prediction is None:
        return line(plan.model, found["seed"], "nothing", *[""] * 8, took)
    chosen = next(row.validation for row in plan.rows if row.acceleration == plan.choice)
    assert chosen is not None
    told, new = plan.prediction, Trial.model_validate(found["fresh"])
    seconds, motion = f"{new.seconds:.3f}, {new.plain_seconds:.3f}", f"{new.motion:.3f} ({new.plain_motion:.3f})"
    better = [trial.overall.text for trial in (chosen, told, new)]
    return line(plan.model, found["seed"], plan.choice.label, seconds, times(told), times(new), *better,
                f"{new.psnr:.1f}", motion, took)  # fmt: skip


def times(trial: Trial) -> str:
    """The speed-up with its interval."""
    return f"{trial.speedup.value:.2f} [{trial.speedup.low:.2f}, {trial.speedup.high:.2f}]"


if __name__ == "__main__":
    main()
