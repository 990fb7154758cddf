"""`summary.json` holds the numbers that its inputs imply, and says what is missing."""

import json
import shutil
from pathlib import Path

import pytest

from reelign.errors import ReelignError
from reelign.evaluate.evaluation import Evaluation
from reelign.report.summary import summarise

LATER = {"name": "rlhf", "title": "Reinforcement learning", "parent": "sft"}


def test_gsb_against_the_parent_is_counted_pair_by_pair(run: Path) -> None:
    # Pair by pair, text: same, good, same, bad; visual: good, good, same (0.02), good; motion: good, bad, good, good;
    # the means of the three axes: all good.
    sft = summarise(run)["stages"][1]
    assert {axis: found["value"] for axis, found in sft["gsb"].items()} == {
        "text": 0.0,
        "visual": 0.75,
        "motion": 0.5,
        "overall": 1.0,
    }
    assert sft["verdicts"]["text"] == {"good": 1, "same": 2, "bad": 1}
    assert all(found["n"] == 4 and found["low"] <= found["value"] <= found["high"] for found in sft["gsb"].values())


def test_scores_are_means_with_intervals(run: Path) -> None:
    base, sft = summarise(run)["stages"]
    assert base["scores"]["visual"] == {"value": 0.4, "low": 0.4, "high": 0.4, "n": 4}
    assert sft["scores"]["visual"]["value"] == pytest.approx(0.555)
    assert sft["scores"]["visual"]["low"] < 0.555 < sft["scores"]["visual"]["high"]
    assert base["attributes"]["colour"]["value"] == 0.75


def test_retention_is_the_share_of_passed_checks_that_still_pass(run: Path) -> None:
    sft = summarise(run)["stages"][1]
    assert sft["retention"] == {"colour": 2 / 3, "shape": None}
    assert sft["retention_checks"] == {"colour": 3, "shape": 0}


def test_cost_is_the_sum_of_the_ledger_and_an_interrupted_phase_counts(run: Path) -> None:
    found = summarise(run)
    assert found["stages"][1]["cost"] == {"seconds": 102, "nfe": 1960, "clips": 1804, "peak_memory_bytes": 3 * 2**30}
    assert found["stages"][0]["cost"]["nfe"] == 160
    assert found["cost"]["seconds"] == 120
    assert len(found["ledger"]) == 5


def test_headroom_is_what_is_left_of_the_way_to_the_codecs_ceiling(run: Path) -> None:
    base, sft = summarise(run)["stages"]
    assert sft["headroom"] == pytest.approx({"visual": (0.8 - 0.555) / (0.8 - 0.4)})
    assert base["headroom"] == {"visual": 1.0}


def test_the_headline_is_the_gain_the_control_and_the_cost(run: Path) -> None:
    gain, control, cost = summarise(run)["headline"]
    assert gain["value"] == 1.0
    assert gain["figure"] == "+1.00"
    assert control["label"].endswith("colour") and control["figure"] == "67%"
    assert cost["text"] == "2.0 min (2,120 network evaluations)"


def test_the_dataset_is_counted_from_its_tables(run: Path) -> None:
    assert summarise(run)["dataset"] == {
        "kept": 3,
        "seconds": 4.5,
        "captioned": 2,
        "dropped": {"blur": 2, "not_a_video": 1},
    }


def test_run_facts_are_passed_on(run: Path) -> None:
    assert summarise(run)["run"] == json.loads((run / "run.json").read_text(encoding="utf-8"))


def test_a_stage_that_has_not_begun_is_listed_as_not_complete(run: Path) -> None:
    shutil.rmtree(run / "sft")
    found = summarise(run)
    assert [stage["complete"] for stage in found["stages"]] == [True, False]
    assert found["stages"][1]["scores"] == found["stages"][1]["gsb"] == {}
    assert [number["figure"] for number in found["headline"][:2]] == ["not yet", "not yet"]


def test_a_run_that_has_only_just_begun_has_a_summary(run: Path) -> None:
    for name in ("base", "sft", "dataset"):
        shutil.rmtree(run / name)
    for name in ("ledger.jsonl", "ceilings.json"):
        (run / name).unlink()
    found = summarise(run)
    assert found["cost"] == {"seconds": 0, "nfe": 0, "clips": 0, "peak_memory_bytes": 0}
    assert found["dataset"] is None


def test_evaluations_of_different_batteries_are_not_compared_and_the_reason_is_given(run: Path) -> None:
    path = run / "sft" / "evaluation.json"
    found = Evaluation.load(path)
    Evaluation(found.battery, found.axes, found.items[:2]).save(path)
    sft = summarise(run)["stages"][1]
    assert sft["gsb"] == {} and sft["retention"] == {}
    assert "Not compared with base" in sft["note"] and "only 2 share" in sft["note"]


def test_a_battery_without_attributes_has_no_control_to_keep(run: Path) -> None:
    for name in ("base", "sft"):
        path = run / name / "evaluation.json"
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["items"] = [item | {"attributes": {}} for item in raw["items"]]
        path.write_text(json.dumps(raw), encoding="utf-8")
    assert summarise(run)["headline"][1]["figure"] == "not judged"


def test_a_stage_that_adds_something_is_compared_with_the_same_model_without_it(enhanced: Path) -> None:
    # Pair by pair: text: same, same, same, bad; visual and motion: good, same, same, good.
    found = summarise(enhanced)
    stage = found["stages"][2]
    assert (stage["parent"], stage["note"]) == ("sft", None)
    assert stage["verdicts"]["text"] == {"good": 0, "same": 3, "bad": 1}
    assert stage["verdicts"]["visual"] == stage["verdicts"]["motion"] == {"good": 2, "same": 2, "bad": 0}
    assert stage["gsb"]["overall"]["value"] == 0.5
    assert stage["without"]["scores"]["visual"]["value"] == 0.4
    assert stage["scores"]["visual"]["value"] == 0.5
    assert stage["without"]["attributes"]["colour"]["value"] == 0.75
    assert (stage["retention"], stage["retention_checks"]) == ({"colour": 1.0}, {"colour": 3})
    assert stage["headroom"] == pytest.approx({"visual": (0.8 - 0.5) / (0.8 - 0.4)})


def test_the_headline_is_of_the_generator_whatever_its_prompts_gain(enhanced: Path) -> None:
    gain, control, _ = summarise(enhanced)["headline"]
    assert (gain["label"], gain["figure"]) == ("Overall GSB: Fine-tuned against Base model", "+1.00")
    assert control["figure"] == "67%"


def add_a_stage_that_changes_nothing(run: Path) -> None:
    shutil.copytree(run / "sft", run / "rlhf")
    for path, change in ((run / "run.json", {"stages": ["base", "sft", "rlhf"]}), (run / "rlhf/stage.json", LATER)):
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")


def test_the_gain_of_several_stages_is_counted_from_the_first_model(run: Path) -> None:
    add_a_stage_that_changes_nothing(run)
    found = summarise(run)
    assert found["stages"][2]["gsb"]["overall"]["value"] == 0.0
    assert found["stages"][2]["retention"]["colour"] == 1.0
    gain, control, _ = found["headline"]
    assert (gain["label"], gain["figure"]) == ("Overall GSB: Reinforcement learning against Base model", "+1.00")
    assert control["figure"] == "67%"


def test_where_the_first_model_was_judged_on_something_else_the_gain_is_over_the_parent(run: Path) -> None:
    add_a_stage_that_changes_nothing(run)
    path = run / "base" / "evaluation.json"
    found = Evaluation.load(path)
    Evaluation(found.battery, found.axes, found.items[:2]).save(path)
    gain, control, _ = summarise(run)["headline"]
    assert (gain["label"], gain["figure"]) == ("Overall GSB: Reinforcement learning against Fine-tuned", "+0.00")
    assert control["figure"] == "100%"


def test_where_only_prompts_change_their_gain_is_the_headline(enhanced: Path) -> None:
    for path, change in (
        (enhanced / "run.json", {"stages": ["base", "enhance"]}),
        (enhanced / "enhance/stage.json", {"parent": "base"}),
    ):
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    gain = summarise(enhanced)["headline"][0]
    assert (gain["label"], gain["figure"]) == (
        "Overall GSB: Prompt enhancement against the same model without",
        "+0.50",
    )


def distilled(run: Path, stage: str) -> None:
    rows = [{"name": "teacher", "nfe": 40.0}, {"name": "student", "nfe": 4.0}]
    (run / stage / "bargain.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")


def test_what_a_student_saves_is_said_with_its_price_in_quality(run: Path) -> None:
    add_a_stage_that_changes_nothing(run)
    distilled(run, "rlhf")
    gain, _, saved, _ = summarise(run)["headline"]
    assert (gain["label"], gain["figure"]) == ("Overall GSB: Fine-tuned against Base model", "+1.00")
    assert (saved["figure"], saved["detail"]) == ("10.0x", "overall GSB +0.00, +0.00 to +0.00, against its teacher")


def test_where_only_a_student_was_made_no_two_numbers_say_the_same(run: Path) -> None:
    distilled(run, "sft")
    gain, _, saved, _ = summarise(run)["headline"]
    assert gain["figure"] == "+1.00"
    assert (saved["figure"], saved["detail"]) == ("10.0x", "4 for a clip, 40 for one of its teacher")


def test_what_became_of_the_prompts_is_counted(enhanced: Path) -> None:
    assert summarise(enhanced)["stages"][2]["enhancement"] == {
        "outcomes": {"rewritten": 2, "fallback: word": 1, "unchanged": 1},
        "fallback_rate": 0.25,
        "words": {"asked": [3, 3, 2, 2], "given": [12, 3, 2, 6]},
    }


def test_stages_that_add_nothing_have_no_such_numbers(enhanced: Path) -> None:
    before = summarise(enhanced)["stages"][:2]
    assert [(stage["without"], stage["enhancement"]) for stage in before] == [(None, None)] * 2
    assert before[1]["gsb"]["overall"]["value"] == 1.0


def test_an_enhancement_that_is_half_judged_is_not_complete(enhanced: Path) -> None:
    (enhanced / "enhance" / "evaluation.json").unlink()
    (enhanced / "enhance" / "stage.json").unlink()
    stage = summarise(enhanced)["stages"][2]
    assert (stage["complete"], stage["without"], stage["enhancement"], stage["gsb"]) == (False, None, None, {})


def test_a_damaged_evaluation_of_the_other_side_is_named(enhanced: Path) -> None:
    (enhanced / "enhance" / "without" / "evaluation.json").write_text("[", encoding="utf-8")
    with pytest.raises(ReelignError, match=r"without/evaluation\.json"):
        summarise(enhanced)


@pytest.mark.parametrize("name", ["run.json", "sft/stage.json", "sft/evaluation.json", "dataset/manifest.parquet"])
def test_a_damaged_file_is_an_error_that_names_it(run: Path, name: str) -> None:
    (run / name).write_text("[", encoding="utf-8")
    with pytest.raises(ReelignError, match=Path(name).name):
        summarise(run)


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReelignError, match=r"is no run: run\.json is missing"):
        summarise(tmp_path)


def test_votes_are_counted_and_repeats_tell_nothing_of_the_clips(asked: Path) -> None:
    found = summarise(asked)["votes"]
    # Four pairs on two axes, and one hidden repeat; on text two of four are ties.
    assert found["votes"] == 9 and found["kinds"] == {"plain": 8, "repeat": 1}
    assert (found["pairs"], found["prompts"], found["raters"], found["models"]) == (4, 2, 1, ["base"])
    assert found["axes"] == {"text": {"votes": 4, "ties": 0.5}, "overall": {"votes": 4, "ties": 0.0}}
    assert found["sources"] == {"simulated": 9} and found["simulated_share"] == 1.0
    assert not found["page"]
    assert found["cost"]["nfe"] == 800


def test_what_held_out_votes_say_of_a_fitted_reward_is_there_by_axis(asked: Path) -> None:
    found = summarise(asked)["reward"]
    assert (found["training_votes"], found["test_votes"]) == (960, 240)
    text, overall = found["axes"]["text"], found["axes"]["overall"]
    assert text["usable"] and not overall["usable"]
    assert text["accuracy"] == {"value": 0.7, "low": 0.6, "high": 0.8, "n": 90}
    assert overall["accuracy_with_ties"] is None
    assert (text["calibration_error"], text["nll"], text["chance"]) == (0.04, 0.9, 1.05)
    assert text["bins"][1] == {"promised": 0.9, "came": 1.0, "votes": 90}
    assert text["parts"]["votes: simulated"]["accuracy"]["n"] == 60
    assert found["cost"]["seconds"] == 90


def test_a_run_without_votes_says_so(run: Path) -> None:
    found = summarise(run)
    assert found["votes"] is None and found["reward"] is None
    assert all(stage["proxy"] is None for stage in found["stages"])


def test_a_damaged_verdict_of_a_reward_is_named(asked: Path) -> None:
    (asked / "reward" / "agreement.json").write_text('{"axes": {}}', encoding="utf-8")
    with pytest.raises(ReelignError, match=r"agreement\.json is damaged or unreadable: 'training_votes' is missing"):
        summarise(asked)
