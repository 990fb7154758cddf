"""A complete small run on disk, whose numbers can be worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reelign.data.clip import write_clip
from reelign.data.manifest import DROPPED, DROPPED_COLUMNS, KEPT_COLUMNS, MANIFEST, write_table
from reelign.evaluate.evaluation import Evaluation, Item
from reelign.feedback.vote import Axis, Shown, Verdict, Vote, write_votes

FPS, FRAMES, SIDE = 8.0, 17, 32
PROMPTS = {"a": "a red square moving right", "b": "two <b>bold</b> & 'odd' words", "c": "a ring", "d": "a blue circle"}
SCORES = {
    "base": dict.fromkeys("abcd", (0.5, 0.4, 0.2)),
    "sft": {"a": (0.5, 0.6, 0.5), "b": (0.75, 0.6, 0.1), "c": (0.5, 0.42, 0.5), "d": (0.25, 0.6, 0.5)},
}
LEDGER = (
    ("curate", 5, 0, 3, 50, True),
    ("base/evaluate", 13, 160, 4, 100, True),
    ("sft/train", 30, 600, 600, 2 * 2**30, False),
    ("sft/train", 60, 1200, 1200, 3 * 2**30, True),
    ("sft/evaluate", 12, 160, 4, 100, True),
)
COLUMNS = ("phase", "seconds", "nfe", "clips", "peak_memory_bytes", "completed")
COLOUR = {"base": "aaab", "sft": "abaa"}  # "a": right


def shape_frames(colour: tuple[int, int, int]) -> np.ndarray:
    """A 6-pixel square whose left edge is at pixel 1 + frame: what is on screen tells which frame it is."""
    frames = np.full((FRAMES, SIDE, SIDE, 3), 20, np.uint8)
    for index in range(FRAMES):
        frames[index, 12:18, 1 + index : 7 + index] = colour
    return frames


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def evaluation(stage: str) -> Evaluation:
    items = []
    for index, name in enumerate("abcd"):
        text, visual, motion = SCORES[stage][name]
        scores = {"text": text, "visual": visual, "motion": motion}
        attributes = {"colour": COLOUR[stage][index] == "a", "shape": stage == "sft"}
        clip = f"samples/{name}.mp4" if name != "d" else None
        items.append(Item(name, PROMPTS[name], 0, scores, attributes, clip))
    return Evaluation({"fps": FPS}, ("text", "visual", "motion"), tuple(items), nfe=160)


def write_stage(run: Path, name: str, title: str, parent: str | None, colour: tuple[int, int, int]) -> None:
    folder = run / name
    for item in "abc":
        write_clip(folder / "samples" / f"{item}.mp4", shape_frames(colour), FPS)
    evaluation(name).save(folder / "evaluation.json")
    facts = {"name": name, "title": title, "artifact": f"runs/example/{name}/model", "parent": parent}
    write(folder / "stage.json", facts | {"gate": {"passed": True, "reasons": []}})


def write_dataset(folder: Path) -> None:
    folder.mkdir()
    kept = [{"id": str(i), "path": f"clips/{i}.mp4", "caption": "words" if i else "", "seconds": 1.5} for i in range(3)]
    dropped = [{"source": "x.mp4", "rule": rule} for rule in ("blur", "blur", "not_a_video")]
    write_table(folder / MANIFEST, kept, KEPT_COLUMNS)
    write_table(folder / DROPPED, dropped, DROPPED_COLUMNS)
    (folder / "audit.html").write_text("<!doctype html>", encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "example"
    facts = {
        "name": "example",
        "created": "2026-11-01T12:00:00+00:00",
        "seed": 7,
        "command": "reelign run recipes/example.yaml",
        "recipe": "runs/example/recipe.yaml",
        "stages": ["base", "sft"],
        "versions": {"reelign": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "diffusers": "0.42.1"},
        "hardware": {"cpus": 2, "machine": "x86_64", "system": "Linux"},
        "git": "0123456789ab",
    }
    write(folder / "run.json", facts)
    write(folder / "ceilings.json", {"clean": {"text": 1, "visual": 1, "motion": 1}, "codec": {"visual": 0.8}})
    write_stage(folder, "base", "Base model", None, (200, 60, 60))
    write_stage(folder, "sft", "Fine-tuned", "base", (60, 60, 220))
    rows = [{"step": step, "loss": 1 / (1 + step) + 0.05 * (step % 2), "lr": 1e-4} for step in range(1, 101)]
    rows += [{"step": step, "validation/text": step / 200, "validation/visual": 0.3} for step in (0, 50, 100)]
    (folder / "sft" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    figure = {
        "label": "Loss on held-out real clips, after",
        "value": 0.25,
        "low": 0.2,
        "high": 0.3,
        "unit": "",
        "note": "",
    }
    codec = {"label": "The autoencoder alone", "value": 31.5, "low": None, "high": None, "unit": "dB", "note": "PSNR"}
    write(folder / "sft" / "extra.json", {"figures": [figure, codec]})
    lines = [json.dumps({"tokens": 0, **dict(zip(COLUMNS, row, strict=True))}) for row in LEDGER]
    (folder / "ledger.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_dataset(folder / "dataset")
    return folder


TYPED = {"a": "red box right", "b": "two <i>odd</i> words", "c": "a ring", "d": "azure ball"}
REWRITES = {
    "a": ("a large red square moving right on a grey & white background", "rewritten"),
    "b": (TYPED["b"], "fallback: word"),
    "c": (TYPED["c"], "unchanged"),
    "d": ("a large blue circle standing still", "rewritten"),
}
ENHANCED = {
    "without": dict.fromkeys("abcd", (0.5, 0.4, 0.2)),
    "with": {"a": (0.5, 0.6, 0.5), "b": (0.5, 0.4, 0.2), "c": (0.5, 0.4, 0.2), "d": (0.25, 0.6, 0.5)},
}


@pytest.fixture
def enhanced(run: Path) -> Path:
    """The same run with prompt enhancement as its last stage, judged with and without it by what users typed."""
    folder = run / "enhance"
    for side, place, colour in (("without", folder / "without", (60, 60, 220)), ("with", folder, (60, 200, 60))):
        items = []
        for name, (text, visual, motion) in ENHANCED[side].items():
            scores = {"text": text, "visual": visual, "motion": motion}
            clip = f"samples/{name}.mp4" if name != "d" else None
            rewrite, outcome = REWRITES[name] if side == "with" else ("", "")
            attributes = {"colour": name != "d" or side == "with"}
            items.append(Item(name, TYPED[name], 0, scores, attributes, clip, rewrite=rewrite, outcome=outcome))
            if clip:
                write_clip(place / clip, shape_frames(colour), FPS)
        Evaluation({"fps": FPS, "style": "user"}, ("text", "visual", "motion"), tuple(items), nfe=160).save(
            place / "evaluation.json"
        )
    facts = {"name": "enhance", "title": "Prompt enhancement", "artifact": "runs/example/enhance/model"}
    write(folder / "stage.json", facts | {"parent": "sft", "gate": {"passed": True, "reasons": []}})
    begun = json.loads((run / "run.json").read_text(encoding="utf-8"))
    write(run / "run.json", begun | {"stages": ["base", "sft", "enhance"]})
    rows = [{"step": step, "loss": 1 / step, "entropy": 0.5 / step} for step in range(1, 9)]
    rows += [
        {"step": step, "loss": 0.1, "fallback": 1 / step, "reward/a": step, "raw/a": 2 * step} for step in range(9, 13)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return run


VERDICTS: dict[Axis, tuple[Verdict, ...]] = {"text": ("good", "same", "bad", "same"), "overall": ("good",) * 4}
AGREEMENT = {
    "without_ties": {"value": 0.7, "low": 0.6, "high": 0.8, "n": 90},
    "with_ties": {"value": 0.55, "low": 0.45, "high": 0.65, "n": 120},
    "threshold": 0.1,
    "votes": 120,
    "unscored": 0,
}
CHANCE = AGREEMENT | {"without_ties": {"value": 0.52, "low": 0.4, "high": 0.64, "n": 60}, "with_ties": None}
CALIBRATION = {
    "error": 0.04,
    "nll": 0.9,
    "chance": 1.05,
    "bins": [{"promised": 0.2, "came": 0.25, "votes": 30}, {"promised": 0.9, "came": 1.0, "votes": 90}],
}
REWARDS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
GOLD = {0: 0.5, 4: 0.6, 8: 0.4}


@pytest.fixture
def asked(run: Path) -> Path:
    """The same run with simulated votes, a reward that was fitted to them, and reinforcement learning from it."""
    write_run_votes(run / "votes" / "votes.jsonl")
    parts = {"votes: person": AGREEMENT, "votes: simulated": CHANCE}
    axes = {
        "text": {"agreement": AGREEMENT, "parts": parts, "calibration": CALIBRATION},
        "overall": {"agreement": CHANCE, "parts": {}, "calibration": CALIBRATION},
    }
    verdict = {"axes": axes, "training_votes": 960, "test_votes": 240, "sources": {"simulated": 240}}
    write(run / "reward" / "agreement.json", verdict | {"usable": {"text": True, "overall": False}})
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 9)]
    write_rows(run / "reward" / "metrics.jsonl", rows)
    with (run / "ledger.jsonl").open("a", encoding="utf-8") as file:
        for row in (("votes", 20, 800, 100, 50, True), ("reward/train", 90, 0, 640, 50, True)):
            file.write(json.dumps({"tokens": 0, **dict(zip(COLUMNS, row, strict=True))}) + "\n")
    folder = run / "rlhf"
    evaluation("sft").save(folder / "evaluation.json")
    facts = {"name": "rlhf", "title": "Reinforcement learning", "artifact": "runs/example/rlhf/model", "parent": "sft"}
    write(folder / "stage.json", facts | {"gate": {"passed": True, "reasons": []}})
    # Parent's clips by the mean of their axes: 0.4 and 0.6, a deviation of 0.1 around 0.5.
    items = [Item(str(n), PROMPTS["a"], 0, {"text": v, "visual": v}, {}) for n, v in enumerate((0.4, 0.6))]
    Evaluation({}, ("text", "visual"), tuple(items)).save(folder / "validation-parent.json")
    rows = [{"step": n, "reward": value, "spread/learned.text": 0.1} for n, value in enumerate(REWARDS, 1)]
    rows += [{"step": n, "validation/mean": v, "validation/text": v, "validation/visual": v} for n, v in GOLD.items()]
    write_rows(folder / "metrics.jsonl", sorted(rows, key=lambda row: row["step"]))
    sentence = "While the training reward rose by 0.8, text of the held-out judge fell from 0.500 to 0.400."
    write(folder / "alarms.json", {"alarms": [{"update": 8, "name": "held-out text", "sentence": sentence}]})
    begun = json.loads((run / "run.json").read_text(encoding="utf-8"))
    write(run / "run.json", begun | {"stages": ["base", "sft", "rlhf"]})
    (run / "recipe.yaml").write_text("rlhf: {prompts_per_update: 4}", encoding="utf-8")
    return run


def write_run_votes(path: Path) -> None:
    """Four pairs on two prompts, on two axes, and one hidden repeat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = Shown("base", "clips/a.mp4"), Shown("base", "clips/b.mp4")
    votes = [
        Vote(f"{n}", "ab"[n % 2], *sides, axis, verdict, "simulated-1", 5.0, "a", "plain", "simulated")
        for axis, verdicts in VERDICTS.items()
        for n, verdict in enumerate(verdicts)
    ]
    write_votes(path, [*votes, replace(votes[0], kind="repeat")])


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
