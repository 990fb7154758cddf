"""A battery whose prompts go through an enhancer: it changes what the generator is given, and nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reelign.data.clip import read_clip
from reelign.enhancer.enhancer import Enhancer, Manner
from reelign.evaluate.battery import BatteryConfig, generate_batch, run_battery, tasks
from reelign.miniature.captions import full_caption
from reelign.miniature.judge import judge
from reelign.models.load import load_model
from reelign.sampling.sample import SampleConfig

BATTERY = BatteryConfig(count=4, validation_count=2, style="user", batch_size=2)
SAMPLER = SampleConfig(steps=2, guidance_scale=2.0)
TASKS = tasks(BATTERY)
FULL = {task.prompt: full_caption(task.scene) for task in TASKS if task.scene is not None}


@pytest.fixture(scope="module")
def model():
    return load_model("miniature", device="cpu")


def enhancer(lost: str) -> Enhancer:
    """Says every prompt in full, but for one of which it says something else."""
    manner = Manner("plain-1", (3, 12), "miniature", 24)
    return Enhancer(
        lambda questions: [
            ("a ring" if question[-1]["content"] == lost else FULL[question[-1]["content"]], True)
            for question in questions
        ],
        manner,
    )


def test_the_generator_is_given_the_rewrites_and_the_clips_are_judged_by_the_users_words(model, tmp_path):
    lost = TASKS[2].prompt
    found = run_battery(model, BATTERY, SAMPLER, folder=tmp_path, enhancer=enhancer(lost))
    assert [item.prompt for item in found.items] == [task.prompt for task in TASKS]
    assert [item.rewrite for item in found.items] == [
        lost if task.prompt == lost else FULL[task.prompt] for task in TASKS
    ]
    outcomes = ["rewritten", "rewritten", "fallback: attribute", "rewritten"]
    assert [item.outcome for item in found.items] == outcomes
    given = [(item.rewrite, item.id) for item in found.items]
    for start in (0, 2):  # in the batches of the battery, for a clip's last bit may depend on them
        films, _ = generate_batch(model, given[start : start + 2], BATTERY, SAMPLER, BATTERY.seed)
        for item, task, film in zip(found.items[start:], TASKS[start:], films, strict=False):
            assert task.scene is not None
            verdict = judge(film, task.scene, task.stated)
            assert (item.scores, item.attributes) == (verdict.scores, verdict.attributes)
            assert item.attributes.keys() <= set(task.stated)
            kept = read_clip(tmp_path / str(item.clip)).frames.astype(int)
            assert np.abs(kept - film.astype(int)).mean() < 8  # an MP4 loses a little


def test_an_enhancer_that_changes_nothing_gives_the_battery_without_one(model, tmp_path: Path):
    plain = run_battery(model, BATTERY, SAMPLER)
    same = run_battery(
        model, BATTERY, SAMPLER, enhancer=Enhancer(lambda qs: [(q[-1]["content"], True) for q in qs], Manner("plain-1"))
    )
    assert {item.outcome for item in same.items} == {"unchanged"}
    assert tuple(replace(item, rewrite="", outcome="") for item in same.items) == plain.items
    assert (same.nfe, same.battery) == (plain.nfe, plain.battery)
    assert {(item.rewrite, item.outcome) for item in plain.items} == {("", "")}
