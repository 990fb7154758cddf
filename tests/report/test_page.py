"""The page holds what the summary says, is well-formed, and needs nothing but itself."""

import base64
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reelign.data.clip import read_clip, write_clip
from reelign.errors import ReelignError
from reelign.feedback.vote import read_votes, write_votes
from reelign.report import films
from reelign.report.page import build_report, duration, memory, phases

VOID = {"meta", "link", "input", "br", "line", "polyline"}


class Reader(HTMLParser):
    """Checks that elements close in order, and gathers text, identifiers and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.words: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def page(run: Path) -> Reader:
    return Reader(build_report(run).read_text(encoding="utf-8"))


def test_the_summary_and_the_page_are_written_where_they_belong(run: Path) -> None:
    assert build_report(run) == run / "report" / "index.html"
    assert json.loads((run / "summary.json").read_text(encoding="utf-8"))["stages"][1]["gsb"]["overall"]["value"] == 1


def test_the_page_shows_what_ran_the_numbers_and_the_cost(run: Path) -> None:
    text = page(run).text
    for words in (
        *("example", "seed 7", "2 CPU cores, no GPU", "torch 2.13.0", "0123456789ab"),
        *("+1.00", "67%", "2.0 min", "reelign run recipes/example.yaml"),
        *("Fine-tuned against Base model", "+0.75", "codec ceiling 0.800", "61 % left to ceiling"),
        *("sft / train", "90 s", "1,800", "3.0 GiB"),
        *("0.25 0.2 to 0.3", "31.5 dB", "The autoencoder alone (PSNR)"),
        *("Left out, by rule blur 2 not a video 1", "Validation scores", "Training loss"),
    ):
        assert words in text, words


def test_alarms_are_told_and_families_of_numbers_are_drawn_together(run: Path) -> None:
    sentence = "While the training reward rose by 0.120, held-out motion fell from 0.60 to 0.41."
    (run / "sft" / "alarms.json").write_text(
        json.dumps({"alarms": [{"update": 20, "name": "motion", "sentence": sentence}]})
    )
    rows = [
        {"step": step, "reward": 0.1 * step, "reward/a": 0.2 * step, "reward/b": 0.5, "seconds/update": 1.0}
        | {"validation/mean": 0.6 - 0.1 * step}
        for step in range(4)
    ]
    (run / "sft" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = page(run)
    assert f"update 20 {sentence}" in found.text
    for words in ("Training reward", "Validation scores", "Training rewards, one by one"):
        assert words in found.text, words
    assert "Seconds of an update" not in found.text  # a number that never changes is no curve


def test_the_same_clips_of_all_stages_are_inside_the_page_unchanged(run: Path) -> None:
    videos = page(run).all("video")
    assert [video["aria-label"] for video in videos[:3]] == [
        "Base model: a red square moving right",
        "Fine-tuned: a red square moving right",
        "Base model: two <b>bold</b> & 'odd' words",
    ]
    assert len(videos) == 6
    data = base64.b64decode((videos[1]["src"] or "").removeprefix("data:video/mp4;base64,"))
    assert data == (run / "sft" / "samples" / "a.mp4").read_bytes()


def test_nothing_is_loaded_from_anywhere_else(run: Path) -> None:
    html = build_report(run).read_text(encoding="utf-8")
    assert not re.search(r"https?:|//cdn|@import|url\(", html)
    assert [link["href"] for link in Reader(html).all("a")] == ["../dataset/audit.html", "../summary.json"]


def test_drawings_and_videos_have_words_for_those_who_cannot_see_them(run: Path) -> None:
    found = page(run)
    for tag, attributes in found.found:
        if attributes.get("role") == "img" or tag in ("video", "input"):
            assert attributes.get("aria-label"), (tag, attributes)


def test_identifiers_are_unique_and_labels_point_at_them(run: Path) -> None:
    attributes = [found for _, found in page(run).found]
    names = [found["id"] for found in attributes if "id" in found]
    assert len(names) == len(set(names))
    assert all(found["aria-labelledby"] in names for found in attributes if "aria-labelledby" in found)


def test_words_of_a_prompt_stay_words(run: Path) -> None:
    assert "two <b>bold</b> & 'odd' words" in page(run).text


def test_small_clips_are_enlarged_as_pixels_and_large_ones_are_not(run: Path) -> None:
    assert "films pixelated" in [found.get("class") for found in page(run).all("div")]
    for stage in ("base", "sft"):
        for path in (run / stage / "samples").iterdir():
            clip = read_clip(path)
            write_clip(path, clip.frames.repeat(8, axis=1).repeat(8, axis=2), clip.fps)
    assert "films pixelated" not in [found.get("class") for found in page(run).all("div")]


def test_an_unfinished_run_has_a_page_that_says_so(run: Path) -> None:
    (run / "sft" / "stage.json").unlink()
    (run / "sft" / "evaluation.json").unlink()
    text = page(run).text
    assert "The stage sft is not complete : it has not been judged yet" in text
    assert "not yet" in text


def test_a_run_that_has_only_just_begun_has_a_page(run: Path) -> None:
    for name in ("base", "sft", "dataset"):
        shutil.rmtree(run / name)
    for name in ("ledger.jsonl", "ceilings.json"):
        (run / name).unlink()
    found = page(run)
    assert "The ledger is empty" in found.text
    assert found.all("video") == []


def test_a_gate_that_did_not_pass_is_on_the_page(run: Path) -> None:
    path = run / "sft" / "stage.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["gate"] = {"passed": False, "reasons": ["shape: only 80% still pass"]}
    path.write_text(json.dumps(facts), encoding="utf-8")
    assert "The gate after Fine-tuned did not pass. shape: only 80% still pass" in page(run).text


def test_clips_that_were_deleted_are_left_out_and_damaged_ones_are_named(run: Path) -> None:
    (run / "sft" / "samples" / "a.mp4").unlink()
    assert len(page(run).all("video")) == 4
    (run / "sft" / "samples" / "b.mp4").write_bytes(b"not a video")
    with pytest.raises(ReelignError, match=r"b\.mp4"):
        build_report(run)


def test_a_page_carries_no_more_video_than_it_can(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "MOST_BYTES", 3 * (run / "sft" / "samples" / "a.mp4").stat().st_size)
    found = page(run)
    assert len(found.all("video")) == 2
    assert "more clips lie in the stages' folders" in found.text


def test_a_loss_that_was_not_finite_leaves_the_drawing_readable(run: Path) -> None:
    with (run / "sft" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 101, "loss": NaN}\n{"step": 102, "loss"')
    html = build_report(run).read_text(encoding="utf-8")
    assert "nan" not in re.findall(r'points="([^"]*)"', html)[0]


def test_enhancement_has_a_section_with_outcomes_lengths_and_both_scores(enhanced: Path) -> None:
    found = page(enhanced)
    for words in (
        *("Prompt enhancement: with it against without", "What became of the prompts"),
        *("rewritten 2 fallback: word 1 unchanged 1", "25.0 % fell back to the user's own words"),
        *("Words of a prompt", "Scores, by what the user typed", "passed without", "100 % of 3"),
        "Fine-tuned against Base model",
    ):
        assert words in found.text, words
    labels = [of.get("aria-label") for _, of in found.found]
    assert "without, Visual quality 0.400" in labels
    assert "with, Visual quality 0.500" in labels
    assert any((label or "").startswith("GSB +0.50 from") for label in labels)


def test_a_prompt_is_shown_with_its_rewrite_and_the_clips_without_and_with_it(enhanced: Path) -> None:
    found = page(enhanced)
    videos = found.all("video")
    assert [video["aria-label"] for video in videos if "As rewritten" in (video["aria-label"] or "")] == [
        "As rewritten: red box right",
        "As rewritten: two <i>odd</i> words",
        "As rewritten: a ring",
    ]
    by_label = {video["aria-label"]: video["src"] or "" for video in videos}
    for label, side in (("As the user typed it", "enhance/without"), ("As rewritten", "enhance")):
        data = base64.b64decode(by_label[f"{label}: red box right"].removeprefix("data:video/mp4;base64,"))
        assert data == (enhanced / side / "samples" / "a.mp4").read_bytes()
    assert "red box right → a large red square moving right on a grey & white background" in found.text
    assert "two <i>odd</i> words left as it is (fallback: word)" in found.text
    assert "a ring left as it is (unchanged)" in found.text


def test_the_stages_own_clips_stay_beside_each_other(enhanced: Path, run: Path) -> None:
    labels = [video["aria-label"] for video in page(run).all("video")]
    assert len(labels) == 3 * 2 + 3 * 2
    assert labels[:2] == ["Base model: a red square moving right", "Fine-tuned: a red square moving right"]


def test_curves_of_enhancement_have_names_that_people_read(enhanced: Path) -> None:
    text = page(enhanced).text
    for words in ("Training rewards, one by one", "The same rewards for the user's own words", "Training loss"):
        assert words in text, words


def test_a_page_without_enhancement_says_nothing_of_it(run: Path) -> None:
    found = page(run)
    for words in ("nhance", "without", "As the user typed it", "→", "left as it is", "became of the prompts"):
        assert words not in found.text, words
    assert "added" not in [of.get("class") for of in found.all("div")]
    assert len(found.all("video")) == 6


def assert_sound(run: Path) -> None:
    """Nothing is loaded from elsewhere, identifiers are unique, and what is drawn has words."""
    html = build_report(run).read_text(encoding="utf-8")
    assert not re.search(r"https?:|//cdn|@import|url\(", html)
    found = Reader(html).found
    names = [of["id"] for _, of in found if "id" in of]
    assert len(names) == len(set(names))
    for tag, attributes in found:
        if attributes.get("role") == "img" or tag in ("video", "input"):
            assert attributes.get("aria-label"), (tag, attributes)


def test_a_page_with_enhancement_is_as_sound_as_any(enhanced: Path) -> None:
    assert_sound(enhanced)


def test_a_run_that_stopped_inside_enhancement_has_a_page(enhanced: Path) -> None:
    for name in ("stage.json", "evaluation.json"):
        (enhanced / "enhance" / name).unlink()
    found = page(enhanced)
    assert "The stage enhance is not complete : it has not been judged yet" in found.text
    assert len(found.all("video")) == 6


def test_human_feedback_has_a_section_that_says_who_was_asked_and_how_far_the_reward_agrees(asked: Path) -> None:
    found = page(asked)
    for words in (
        *("Human feedback simulated raters", "All 9 votes are of simulated raters.", "Votes of simulated raters: 9"),
        *("votes 9 pairs of clips 4 prompts 2 rater 1", "hidden repeats: 1", "Text alignment 4 50 %", "Overall 4 0 %"),
        *("Fitted to 960 votes, tested on 240", "70 % 60 – 80 % of 90 votes", "55 % 45 – 65 % of 120 votes"),
        *("not told from chance : refused as a reward", "not known", "calibration error 4 %; 0.90 nats a vote, 1.05"),
        *("votes: person 70 % of 90 —", "votes: simulated 52 % of 60 —", "fitting a reward to them: 90 s"),
    ):
        assert words in found.text, words
    labels = [of.get("aria-label") for _, of in found.found]
    assert "with a winner 70 %, chance 50 %" in labels
    assert "Overall: 20% promised, 25% came, 30 votes; 90% promised, 100% came, 90 votes" in labels
    assert "../votes/report.html" not in [link["href"] for link in found.all("a")]


def test_votes_of_people_bear_no_badge_and_their_page_is_linked(asked: Path) -> None:
    path = asked / "votes" / "votes.jsonl"
    write_votes(path, [replace(vote, source="person", rater="ada") for vote in read_votes(path)])
    (asked / "votes" / "report.html").write_text("<!doctype html>", encoding="utf-8")
    found = page(asked)
    assert "simulated raters" not in found.text
    assert "Votes of people: 9" in found.text
    assert "../votes/report.html" in [link["href"] for link in found.all("a")]


def test_the_training_reward_is_drawn_against_the_held_out_judge_with_what_was_kept(asked: Path) -> None:
    found = page(asked)
    labels = [of.get("aria-label") or "" for _, of in found.found]
    [drawn] = [label for label in labels if label.startswith("Training reward (proxy) against held-out judge (gold)")]
    # See test_proxy for the unit: gold goes from 0 to -1 deviation.
    assert "held-out judge from 0 to -1 over 8 steps; kept at 4; alarm at 8" in drawn
    assert "Kept is update 4, which pleased it most; from there to the end the training reward moved by +" in found.text
    assert "and the judge by −2.00." in found.text
    assert "update 8 While the training reward rose" in found.text


def test_a_page_with_feedback_is_as_sound_as_any(asked: Path) -> None:
    assert_sound(asked)


def test_votes_without_a_reward_have_a_section_and_no_votes_have_none(asked: Path, run: Path) -> None:
    (asked / "reward" / "agreement.json").unlink()
    assert "Human feedback" in page(asked).text
    assert "agrees with votes" not in page(asked).text
    (asked / "votes" / "votes.jsonl").unlink()
    assert "Human feedback" not in page(asked).text


def test_phases_of_one_name_are_added_up_and_the_last_attempt_decides() -> None:
    stopped = {"phase": "sft/train", "seconds": 2.0, "nfe": 3, "clips": 4, "peak_memory_bytes": 9, "completed": False}
    done = {"phase": "sft/train", "seconds": 1.0, "nfe": 1, "clips": 1, "peak_memory_bytes": 5, "completed": True}
    assert phases([stopped, done]) == [
        {"phase": "sft/train", "seconds": 3.0, "nfe": 4, "clips": 5, "peak": 9, "completed": True}
    ]


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "0 s"), (99, "99 s"), (150, "2.5 min"), (7200, "2.0 h")])
def test_durations_are_easy_to_read(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(0, "0 MiB"), (5 * 2**20, "5 MiB"), (3 * 2**29, "1.5 GiB")])
def test_memory_is_easy_to_read(count: int, words: str) -> None:
    assert memory(count) == words
