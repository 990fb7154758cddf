"""Votes of a run: what is collected, and when there is a page of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from miniatures import thin_miniature
from reelign.data.clip import read_clip, write_clip
from reelign.feedback.vote import Vote, read_votes, write_votes
from reelign.stages.votes import VotesConfig, run_votes
from voting import SAMPLER, context, vote

SIMULATED = {"kind": "simulated", "prompts": [{"kind": "miniature", "count": 2}], "pairs": 3, "batch_size": 2}


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Votes of two people on clips of two models for each of nine prompts."""
    clips = [str(tmp_path / f"{side}.mp4") for side in "ab"]
    for clip in clips:
        write_clip(Path(clip), np.zeros((5, 32, 32, 3), np.uint8), 8.0)
    votes = [
        vote(f"pair {n}", f"prompt {n}", (clips[0], clips[1]), "good", rater=rater)
        for n in range(9)
        for rater in ("ada", "bob")
    ]
    write_votes(tmp_path / "given.jsonl", [replace(found, source="person") for found in votes])
    return tmp_path / "given.jsonl"


def alike(votes: list[Vote], others: list[Vote]) -> list[bool]:
    """Whether each clip of the pairs, two after each other, is that of the other votes but for rounding."""

    def clips(votes: list[Vote]) -> list[np.ndarray]:
        shown = [side for one in votes if one.axis == "overall" for side in (one.a, one.b)]
        return [read_clip(Path(side.clip), "").frames.astype(float) for side in shown]

    return [bool(np.abs(one - other).mean() < 1) for one, other in zip(clips(votes), clips(others), strict=True)]


def collect(folder: Path, *sources: object) -> Path:
    return run_votes(context(folder), VotesConfig.model_validate({"sources": list(sources)}))


def test_both_clips_of_a_simulated_pair_are_the_parents_and_there_is_nothing_to_compare(tmp_path: Path) -> None:
    path = collect(tmp_path, SIMULATED)
    votes = read_votes(path)
    assert {side.model for found in votes for side in (found.a, found.b)} == {"miniature"}
    assert len({found.pair for found in votes}) == 3 and {found.source for found in votes} == {"simulated"}
    assert all(Path(found.a.clip).is_file() and found.a.clip != found.b.clip for found in votes)
    assert not (path.parent / "report.html").exists()


def test_clips_of_simulated_pairs_are_of_the_models_that_are_named_and_as_each_makes_them(tmp_path: Path) -> None:
    thin = thin_miniature()
    path = collect(tmp_path / "both", SIMULATED | {"pairs": 8, "models": ["parent", str(thin)]})
    both = read_votes(path)
    alone = read_votes(collect(tmp_path / "alone", SIMULATED | {"pairs": 8}))
    models = [side.model for found in both if found.axis == "overall" for side in (found.a, found.b)]
    assert set(models) == {"miniature", thin.name} and len({(v.a.model, v.b.model) for v in both}) > 2
    assert alike(both, alone) == [model == "miniature" for model in models]  # of one noise, by the model that was drawn
    report = json.loads((path.parent / "report.json").read_text(encoding="utf-8"))
    assert report["votes"] == sum(v.a.model != v.b.model for v in both)


def test_clips_of_simulated_pairs_are_sampled_in_all_the_ways_that_are_named(tmp_path: Path) -> None:
    ways = [SAMPLER.model_dump(), SAMPLER.model_copy(update={"steps": 4}).model_dump()]
    mixed = read_votes(collect(tmp_path / "mixed", SIMULATED | {"pairs": 8, "samplers": ways}))
    alone = read_votes(collect(tmp_path / "alone", SIMULATED | {"pairs": 8}))
    found = alike(mixed, alone)
    assert 4 <= sum(found) <= 12 and len({*zip(found[::2], found[1::2], strict=True)}) > 2


def test_votes_on_two_models_get_a_page_to_which_pairs_of_one_model_add_nothing(tmp_path: Path, given: Path) -> None:
    path = collect(tmp_path, {"kind": "file", "path": str(given)}, SIMULATED)
    assert len(read_votes(path)) == 18 + 3 * 4
    found = json.loads((path.parent / "report.json").read_text(encoding="utf-8"))
    assert found["votes"] == 18 and found["simulated_share"] == 0
    assert [(one["a"], one["b"]) for one in found["comparisons"]] == [("model 0", "model 1")]
    assert "model 1" in (path.parent / "report.html").read_text(encoding="utf-8")


def test_votes_of_models_are_no_human_feedback(tmp_path: Path, given: Path) -> None:
    write_votes(given, [replace(found, source="model") for found in read_votes(given)])
    assert not (collect(tmp_path, {"kind": "file", "path": str(given)}).parent / "report.html").exists()
