"""Votes of every layout are read, written and read again; what cannot be read is named, and nothing is dropped."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reelign.data.clip import write_clip
from reelign.errors import ReelignError
from reelign.feedback.exchange import import_votes, read_any
from reelign.feedback.imported import UNKNOWN
from reelign.feedback.label_studio import CONFIG, write_label_studio
from reelign.feedback.simulate import RaterConfig, ScoredPair, simulated_votes
from reelign.feedback.videoalign_csv import write_videoalign
from reelign.feedback.vote import Shown, write_votes
from verdicts import vote

VIDEOALIGN = """path_A,path_B,prompt,VQ,MQ,TA,fps_A,num_frames_A,fps_B,num_frames_B
videos/1_A.mp4,./videos/1_B.mp4,"a girl, sitting",B,B,A,24.0,126.0,30.0,152.0
videos/2_A.mp4,./videos/2_B.mp4,an explorer,same,,A,24.0,144.0,24.0,128.0
videos/1_A.mp4,./videos/1_B.mp4,"a girl, sitting",B,B,A,24.0,126.0,30.0,152.0
videos/1_B.mp4,videos/1_A.mp4,"a girl, sitting",B,A,A,30.0,152.0,24.0,126.0
"""
SHARED = Path(__file__).parents[3] / "shared" / "data" / "preferences"


def written(path, text):
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


def study(folder):
    """Votes of two raters on both sides of two pairs, all axes, with names of models, clips inside the folder."""
    scores = {"visual": 0.6, "motion": 0.4, "text": 0.55}, dict.fromkeys(("visual", "motion", "text"), 0.5)
    pairs = [
        ScoredPair(
            f"{n}",
            f'prompt "{n}", quoted',
            Shown("base", str(folder / f"clips/a {n}.mp4")),
            Shown("tuned", str(folder / f"clips/b{n}.mp4")),
            *scores,
        )
        for n in range(4)
    ]
    return simulated_votes(pairs, 2, RaterConfig(), seed=1)


def keyed(votes, *names):
    return sorted(tuple(str(getattr(v, name)) for name in names) for v in votes)


def test_videoalign_labels_become_votes_on_three_axes(tmp_path):
    found = import_votes(written(tmp_path / "x.csv", VIDEOALIGN))
    first = found.votes[:3]
    assert [(v.axis, v.verdict) for v in first] == [("visual", "bad"), ("motion", "bad"), ("text", "good")]
    assert first[0].prompt == "a girl, sitting"
    assert (first[0].a, first[0].b.clip) == (Shown(UNKNOWN, f"{tmp_path}/videos/1_A.mp4"), f"{tmp_path}/videos/1_B.mp4")
    assert (first[0].source, first[0].kind, first[0].seconds != first[0].seconds) == ("person", "plain", True)
    assert found.left_out == []


def test_an_empty_label_is_no_vote_and_a_row_that_only_repeats_is_kept_once_and_said(tmp_path):
    found = import_votes(written(tmp_path / "x.csv", VIDEOALIGN))
    assert [v.axis for v in found.votes if v.prompt == "an explorer"] == ["visual", "text"]
    assert found.notes == ["1 rows repeat another one and are kept once."]


def test_a_contradictory_repeat_is_a_vote_of_somebody_else_in_the_order_of_the_first_row(tmp_path):
    """The last row has the clips in the other order: its B is the first row's A."""
    votes = import_votes(written(tmp_path / "x.csv", VIDEOALIGN)).votes
    again = [v for v in votes if v.rater == "unknown-2"]
    assert [(v.axis, v.verdict) for v in again] == [("visual", "good"), ("motion", "bad"), ("text", "bad")]
    assert {(v.pair, v.a, v.b) for v in again} == {(votes[0].pair, votes[0].a, votes[0].b)}


def test_absent_videos_are_reported(tmp_path):
    found = import_votes(written(tmp_path / "x.csv", VIDEOALIGN))
    assert found.absent == [f"{tmp_path}/videos/{name}.mp4" for name in ("1_A", "1_B", "2_A", "2_B")]


def test_rows_that_cannot_be_read_are_named_with_their_line_and_reason(tmp_path):
    path = written(
        tmp_path / "x.csv",
        "path_A,path_B,prompt,VQ,Overall\na,b,x,A,left\n,b,x,A,B\na,b,x,,\na,b,x\na,c,y,A,same\n",
    )
    found = import_votes(path)
    assert [(row.where, row.reason) for row in found.left_out] == [
        ("line 2", "overall is 'left', not A, B or same"),
        ("line 3", "path_A is empty"),
        ("line 4", "it has no label"),
        ("line 5", "it has not as many cells as the header"),
    ]
    assert [(v.axis, v.verdict) for v in found.votes] == [("visual", "good"), ("visual", "good"), ("overall", "same")]
    with pytest.raises(ReelignError, match=r"rows that are no votes: line 2: overall is 'left'"):
        read_any(path)


def test_a_written_csv_has_the_columns_of_videoalign_with_rates_and_counts_of_the_files(tmp_path):
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4", np.zeros((9, 32, 32, 3), np.uint8), 8.0)
    sides = {"a": Shown("base", str(tmp_path / "a.mp4")), "b": Shown("tuned", str(tmp_path / "b.mp4"))}
    absent = {"a": Shown("base", str(tmp_path / "gone.mp4")), "b": sides["b"], "pair": "2"}
    votes = [vote("good", axis="visual", **sides), vote("same", axis="text", **sides), vote("bad", **absent)]
    missing = write_videoalign(tmp_path / "votes.csv", [*votes, vote(kind="gold", expected="good", **sides)])
    rows = list(csv.DictReader((tmp_path / "votes.csv").open()))
    assert missing == [str(tmp_path / "gone.mp4")]
    assert len(rows) == 2
    first = {name: rows[0][name] for name in ("path_A", "path_B", "prompt", "VQ", "MQ", "TA", "Overall", "A_model")}
    assert list(first.values()) == ["a.mp4", "b.mp4", "a red ball", "A", "", "same", "", "base"]
    assert [rows[0][f"{fact}_A"] for fact in ("fps", "num_frames")] == ["8.0", "9.0"]
    assert (rows[1]["fps_A"], rows[1]["num_frames_A"], rows[1]["Overall"]) == ("", "", "B")


def test_votes_survive_a_round_trip_through_the_csv_and_stay_simulated(tmp_path):
    votes = study(tmp_path)
    write_videoalign(tmp_path / "votes.csv", votes)
    names = ("pair", "prompt", "a", "b", "axis", "verdict", "rater", "left", "source")
    assert keyed(read_any(tmp_path / "votes.csv"), *names) == keyed(votes, *names)


@pytest.mark.parametrize("source", ["person", "simulated"])
def test_votes_survive_a_round_trip_through_label_studio(tmp_path, source):
    votes = [replace(v, source=source, at=1.6e9 + n, client="firefox") for n, v in enumerate(study(tmp_path))]
    votes[0] = replace(votes[0], kind="gold", expected="good")
    votes[1] = replace(votes[1], seconds=float("nan"))
    write_label_studio(tmp_path / "tasks.json", votes)
    names = ("pair", "prompt", "a", "b", "axis", "verdict", "rater", "seconds", "left", "kind", "source", "at")
    names += ("client", "expected")
    assert keyed(read_any(tmp_path / "tasks.json"), *names) == keyed(votes, *names)


def test_label_studio_sees_left_and_right_as_they_were_shown_and_never_takes_a_simulation_for_a_person(tmp_path):
    votes = [vote("good", left="b"), vote("good", left="b", rater="simulated-1", source="simulated")]
    write_label_studio(tmp_path / "tasks.json", votes)
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert (task["data"]["left_model"], task["data"]["right_model"]) == ("tuned", "base")
    (annotation,), (prediction,) = task["annotations"], task["predictions"]
    assert annotation["result"][0]["value"] == {"choices": ["right"]}
    assert (annotation["lead_time"], prediction["model_version"]) == (5.0, "simulated-1")
    assert all(f'<Choices name="{axis}" toName="left"' in CONFIG for axis in ("visual", "motion", "text", "overall"))


def test_an_export_of_label_studio_with_its_own_pairwise_tag_is_read(tmp_path):
    """The fields are those of label-studio's documentation of the JSON format."""
    task = {
        "id": 7,
        "data": {"prompt": "a dog", "left": "https://x.org/1.mp4", "right": "/data/local-files/?d=clips/b%20c.mp4"},
        "annotations": [
            {
                "id": 1001,
                "completed_by": {"id": 3, "email": "ann@x.org"},
                "was_cancelled": False,
                "lead_time": 4.288,
                "created_at": "2021-03-09T22:16:08.728353Z",
                "result": [
                    {"from_name": "pw", "to_name": "l,r", "type": "pairwise", "value": {"selected": "right"}},
                    {"from_name": "motion", "to_name": "l", "type": "choices", "value": {"choices": ["Tie"]}},
                ],
            },
            {"id": 1002, "completed_by": 4, "was_cancelled": True, "result": []},
            {
                "completed_by": 5,
                "result": [
                    {"from_name": "note", "type": "textarea", "value": {"text": ["?"]}},
                    {"from_name": "visual", "type": "choices", "value": {"choices": ["left", "right"]}},
                ],
            },
        ],
    }
    found = import_votes(written(tmp_path / "export.json", [task]))
    first, second = found.votes
    assert (first.axis, first.verdict, second.axis, second.verdict) == ("overall", "bad", "motion", "same")
    assert (first.rater, first.seconds, first.pair, first.source) == ("ann@x.org", 4.288, "7", "person")
    assert (first.a.clip, first.b.clip) == ("https://x.org/1.mp4", f"{tmp_path}/clips/b c.mp4")
    assert first.at == pytest.approx(1615328168.73, abs=0.01)
    assert [(row.where, row.reason) for row in found.left_out] == [
        ("task 7", "skipped by the annotator"),
        ("task 7", "the result of 'note' is none of visual, motion, text, overall"),
        ("task 7", "visual is ['left', 'right'], not one of left, same, tie, right"),
    ]


def test_genai_bench_is_read_with_both_bad_as_a_tie_and_says_so(tmp_path):
    rows = [
        {"id": n, "prompt": "a mansion", "video_left": "l.mp4", "video_right": "r.mp4", "vote_type": said}
        for n, said in enumerate(("leftvote", "rightvote", "tievote", "bothbad_vote", "maybe"))
    ]
    found = import_votes(written(tmp_path / "data.json", rows))
    assert [v.verdict for v in found.votes] == ["good", "bad", "same", "same"]
    assert {v.axis for v in found.votes} == {"overall"}
    assert found.left_out[0].where == "entry 5"
    assert "1 votes of" in found.notes[0]


def test_json_lines_are_votes_as_they_are(tmp_path):
    votes = [vote("good"), vote("same", axis="motion")]
    write_votes(tmp_path / "votes.jsonl", votes)
    read = read_any(tmp_path / "votes.jsonl")
    assert keyed(read, "pair", "verdict", "axis") == keyed(votes, "pair", "verdict", "axis")


@pytest.mark.parametrize("text", ["", "name,age\nann,3\n", '{"prompt": "x"}\n', "[1, 2]", '[{"id": 1}]'])
def test_a_file_of_another_kind_is_refused_with_what_was_expected(tmp_path, text):
    with pytest.raises(ReelignError, match=r"expected JSON lines of votes, a CSV with the columns path_A"):
        read_any(written(tmp_path / "x", text))


def test_a_missing_file_broken_json_and_an_empty_table_are_refused(tmp_path):
    with pytest.raises(ReelignError, match="cannot read the votes"):
        read_any(tmp_path / "no.csv")
    with pytest.raises(ReelignError, match="is no valid JSON"):
        read_any(written(tmp_path / "x.json", "[{"))
    with pytest.raises(ReelignError, match="holds no vote"):
        read_any(written(tmp_path / "x.csv", "path_A,path_B,prompt,VQ\n"))
    with pytest.raises(ReelignError, match="not prompt and VQ"):
        read_any(written(tmp_path / "x.csv", "path_A,path_B\na,b\n"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published files are not beside this checkout")
def test_published_files_are_read_whole():
    example = import_votes(SHARED / "videoalign" / "example.csv")
    assert (len(example.votes), example.left_out, example.absent) == (6, [], [])
    assert {v.verdict for v in example.votes} == {"good", "same", "bad"}
    assert len(read_any(SHARED / "genai_bench_video" / "data.json")) == 1326
