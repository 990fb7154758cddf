"""What the RL benchmarks share: the `rlhf` stage run from one parent with some keys changed, and its trainer alone."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from reelign.doctor.rehearsal import context_in
from reelign.models.load import load_model
from reelign.recipe import Recipe
from reelign.rewards.recipe import build_rewards
from reelign.stages.algorithm import Algorithm
from reelign.stages.rlhf import Trainer
from reelign.train.parallel import World

POLICY_GRADIENT = [
    "rlhf.optim.lr=1.2e-4",
    "rlhf.optim.eps=1e-8",
    "rlhf.optim.warmup_steps=5",
    "rlhf.algorithm.denominator=batch",
]
"""What serves a policy gradient; the recipe's optimiser and denominator are those of `reelign-nft`."""
LIGHT = "rlhf.rewards.1.weights.exposure=0.5"
"""The recipe's 2.5 keeps `reelign-nft` from hiding flicker in black; policy gradients turn all grounds grey for it."""
TO_THE_END = [LIGHT, "rlhf.patience=null", "rlhf.alarms_stop=null", "rlhf.optim.schedule=constant"]
"""Runs that are compared differ in what is compared: none stops early, none has a rate that knows its end."""
BACKWARD = 2
"""A backward pass costs about two forward passes, so a trained evaluation counts three."""


@dataclass(frozen=True)
class Point:
    """A validation: what was spent on training until then, and the mean of all held-out axes."""

    update: int
    seconds: float
    forwards: float
    score: float


@dataclass(frozen=True)
class Outcome:
    """A finished stage.

    Attributes:
        points: its validations, the first before any update.
        updates: rows of its log.
        gsb: by axis against the parent, on the test half of the battery.
        retention: by attribute.
        seconds: of the stage with its validations, without the closing battery.
        alarms: sentences, with the update at which they were raised.
    """

    points: list[Point]
    updates: list[dict[str, float]]
    gsb: dict[str, dict[str, float]]
    retention: dict[str, float | None]
    seconds: float
    alarms: list[dict[str, Any]]


def run_stage(name: str, recipe: Path, parent: str, seed: int, runs: Path, changes: list[str]) -> Outcome:
    """Run (or read, when it is complete) the RL stage alone from `parent`; `changes` are overrides of the recipe."""
    folder = runs / name
    alone = ["curate=null", "sft=null", f"model={parent}", f"seed={seed}", f"name={name}", f"runs={runs}"]
    subprocess.run([sys.executable, "-m", "reelign.cli", "rlhf", str(recipe), *alone, *changes], check=True)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    stage = next(stage for stage in summary["stages"] if stage["name"] == "rlhf")
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    alarms = folder / "rlhf" / "alarms.json"
    points, updates = curve(folder / "rlhf" / "metrics.jsonl")
    return Outcome(
        points,
        updates,
        stage["gsb"],
        stage["retention"],
        sum(row["seconds"] for row in ledger if row["phase"] in ("rlhf/train", "rlhf/validate")),
        json.loads(alarms.read_text(encoding="utf-8"))["alarms"] if alarms.exists() else [],
    )


def curve(log: Path) -> tuple[list[Point], list[dict[str, float]]]:
    """Validations of a log with what was spent before each, and its update rows."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    updates = [row for row in rows if "reward" in row]
    points = []
    for row in rows:
        if "validation/mean" in row:
            done = [update for update in updates if update["step"] <= row["step"]]
            seconds = sum(value for update in done for key, value in update.items() if key.startswith("seconds/"))
            points.append(Point(int(row["step"]), seconds, sum(map(forwards, done)), row["validation/mean"]))
    return points, updates


def forwards(update: dict[str, float]) -> float:
    """Cost of an update in forward passes of one clip: a trained evaluation is a forward and a backward pass."""
    return update["nfe"] + BACKWARD * update["nfe_trained"]


def trainer(recipe: Recipe, algorithm: Algorithm, folder: Path) -> Trainer:
    """The stage at its parent, ready for an update."""
    assert recipe.rlhf is not None
    config = recipe.rlhf.model_copy(update={"algorithm": algorithm})
    world = World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"), None)
    model = load_model(recipe.model, dtype=recipe.dtype, device=world.device)
    return Trainer(
        model, build_rewards(config.rewards), ThreadPoolExecutor(1), context_in(folder, recipe, world), config
    )


def write(out: Path, facts: dict[str, Any], table: str) -> None:
    """Keep the figures as JSON with versions, and the table as Markdown."""
    versions = {library: version(library) for library in ("torch", "diffusers", "transformers")}
    about = {"cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(about | facts, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(table, encoding="utf-8")
    sys.stdout.write(table)
