"""The recipes for Wan 2.1-1.3B, examined by the doctor on random weights of the same layout, and run in small."""

import json
from pathlib import Path

import numpy as np
import pytest

from command import ROOT, reelign, torchrun
from footage import pan, write
from reelign.data.curate import CurateConfig, curate
from reelign.doctor import examine
from reelign.recipe import load_recipe
from tiny_wan import tiny_wan

SMALL = (
    f"battery.prompts={ROOT / 'recipes' / 'prompts.txt'}",
    "battery.count=2",
    "battery.validation_count=2",
    "battery.frames=9",
    "battery.height=32",
    "battery.width=48",
    "sampler.steps=2",
    "sft.batch_size=2",
    "sft.accumulate=1",
)
RECIPES = ["wan21-1.3b-lora", "wan21-1.3b-full"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny Wan 2.1 and a curated dataset of clips that are long enough."""
    root = tmp_path_factory.mktemp("wan")
    tiny_wan(root / "wan", "2.1")
    for seed in (1, 2, 3):
        write(root / "footage" / f"clip {seed}.mp4", np.concatenate([pan(seed, 70), pan(seed, 70)[::-1]]))
        (root / "footage" / f"clip {seed}.txt").write_text(f"A pan over texture number {seed}.")
    assert curate(root / "footage", root / "dataset", CurateConfig(workers=1)).kept == 3
    return root


def overrides(root: Path) -> list[str]:
    return [
        f"model={root / 'wan'}",
        "dtype=float32",
        f"sft.data=[{{kind: dataset, path: {root / 'dataset'}, held_out: 0.3}}]",
        f"runs={root / 'runs'}",
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_the_doctor_passes_every_line(place, monkeypatch, name):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WORLD_SIZE", "8" if name.endswith("full") else "1")
    findings = examine(load_recipe(ROOT / "recipes" / f"{name}.yaml", overrides(place)))
    assert not [finding for finding in findings if not finding.passed]
    checks = {finding.check: finding.sentence for finding in findings}
    assert checks["battery size"].startswith("81 x 480 x 832 is a latent of 16 x 21 x 60 x 104")
    assert "3 clips, all captioned" in checks["sft.data.0"]
    if name.endswith("lora"):
        assert checks["LoRA coverage"].startswith("20 modules carry an adapter")
    else:
        assert checks["shards"] == "2 blocks over 8 ranks."


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_runs_to_its_report_in_small(place, name):
    small = [
        f"name={name}",
        *SMALL,
        "sft.steps=2",
    ]
    done = reelign("run", ROOT / "recipes" / f"{name}.yaml", *overrides(place), *small, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    run = place / "runs" / name
    assert (run / "report" / "index.html").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["base", "sft"]
    assert summary["stages"][1]["gsb"]


@pytest.mark.parametrize("name", RECIPES)
def test_bfloat16_trains_on_two_ranks_as_on_one(place, name):
    """The recipes' own precision, with real gradients; losses agree as far as bfloat16 lets them."""
    losses = []
    for ranks in (1, 2):
        small = [
            f"name={name}-bf16-{ranks}",
            "dtype=bfloat16",
            *SMALL,
            "sft.steps=3",
        ]
        settings = [*(o for o in overrides(place) if not o.startswith("dtype")), *small]
        arguments = ["run", ROOT / "recipes" / f"{name}.yaml", *settings]
        done = torchrun(2, *arguments) if ranks == 2 else reelign(*arguments, CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 0, done.stderr
        lines = (place / "runs" / f"{name}-bf16-{ranks}" / "sft" / "metrics.jsonl").read_text().splitlines()
        losses.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
