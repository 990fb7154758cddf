"""An evaluation on disk is what it was in memory, and a failure never passes for a score."""

import json
from pathlib import Path
from typing import Any

import pytest

from reelign.errors import ReelignError
from reelign.evaluate.evaluation import Evaluation, Item

ITEM = Item("a", "a red circle", 0, {"text": 1.0, "visual": 0.25}, {"colour": True}, "samples/a.mp4")
OTHER = Item("b", "a blue ring", 0, {"text": 0.5, "visual": 0.75}, {})


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    found = Evaluation({"judge": "miniature"}, ("text", "visual"), (ITEM, OTHER), nfe=80, facts={"note": "x"})
    found.save(tmp_path / "evaluation.json")
    assert Evaluation.load(tmp_path / "evaluation.json") == found


def test_means_are_taken_over_all_clips() -> None:
    assert Evaluation({}, ("text", "visual"), (ITEM, OTHER)).means() == {"text": 0.75, "visual": 0.5}


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None, "0.5", True])
def test_a_score_that_is_no_finite_number_is_refused(score: Any) -> None:
    with pytest.raises(ReelignError, match="'a' has no score on text"):
        Item("a", "a red circle", 0, {"text": score}, {})


def test_a_missing_axis_is_refused() -> None:
    with pytest.raises(ReelignError, match="'a' has no score on motion"):
        Evaluation({}, ("text", "motion"), (ITEM,))


def test_a_clip_judged_twice_is_refused() -> None:
    with pytest.raises(ReelignError, match="'a' with seed 0 was judged twice"):
        Evaluation({}, ("text",), (ITEM, ITEM))


def test_an_evaluation_without_clips_is_refused() -> None:
    with pytest.raises(ReelignError, match="at least one judged clip"):
        Evaluation({}, ("text",), ())


def written(folder: Path, **changes: Any) -> Path:
    raw = {"battery": {}, "axes": ["text"], "items": [{"id": "a", "prompt": "p", "seed": 0, "scores": {"text": 0.5}}]}
    raw["items"][0]["attributes"] = {}
    path = folder / "evaluation.json"
    path.write_text(json.dumps(raw | changes), encoding="utf-8")
    return path


def test_a_file_with_the_documented_keys_alone_is_enough(tmp_path: Path) -> None:
    assert Evaluation.load(written(tmp_path)).means() == {"text": 0.5}


def test_damage_is_reported_with_the_file_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    with pytest.raises(ReelignError, match=r"evaluation\.json"):
        Evaluation.load(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ReelignError, match=r"evaluation\.json"):
        Evaluation.load(path)
    path.write_text('{"axes": ["text"]}', encoding="utf-8")
    with pytest.raises(ReelignError, match="'items' is missing"):
        Evaluation.load(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ReelignError, match=r"evaluation\.json"):
        Evaluation.load(path)


def test_a_failure_written_by_another_program_is_not_read_as_a_number(tmp_path: Path) -> None:
    broken = [{"id": "a", "prompt": "p", "seed": 0, "scores": {"text": float("nan")}, "attributes": {}}]
    with pytest.raises(ReelignError, match=r"evaluation\.json: the clip 'a' has no score on text"):
        Evaluation.load(written(tmp_path, items=broken))
