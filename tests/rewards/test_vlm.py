"""A judge behind a real HTTP server: it looks at the pictures that it is sent, and sometimes misbehaves."""

import base64
import json
import time

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from chat_server import ChatServer, serving
from reelign.data.clip import Clip
from reelign.rewards.base import RewardError, RewardSet, Weighted
from reelign.rewards.recipe import VlmEntry

Reply = tuple[int, str]


def says(words: object, **more: object) -> Reply:
    return 200, json.dumps({"choices": [{"message": {"content": words} | more}]})


def pictures(body: dict) -> list[np.ndarray]:
    """The frames that a request shows."""
    shown = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    return [
        cv2.imdecode(np.frombuffer(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")), np.uint8), 1)
        for url in shown
    ]


def words_of(body: dict) -> str:
    return "\n".join(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")


def brightness(body: dict) -> Reply:
    """Scores light from 0 to 255, as it sees it."""
    return says(json.dumps({"light": float(np.mean(pictures(body)))}))


def brighter(body: dict) -> Reply:
    """Which of two videos is brighter, as it sees them."""
    seen = pictures(body)
    one, other = (np.mean(part) for part in (seen[: len(seen) // 2], seen[len(seen) // 2 :]))
    verdict = "tie" if abs(one - other) < 2 else "first" if one > other else "second"
    return says(json.dumps({"light": verdict}))


@pytest.fixture
def judge():
    found = ChatServer(brightness)
    with serving(found):
        yield found


def entry(judge: ChatServer, **more: object) -> VlmEntry:
    settings = {"dimensions": {"light": [0, 255]}, "weights": {"light": 1}, "frames": 3, "seconds": 20}
    return VlmEntry.model_validate({"kind": "vlm", "url": judge.url, "model": "eyes"} | settings | more)


def clip(name: str, light: int, prompt: str = "a lamp", frames: int = 9) -> Clip:
    return Clip(np.full((frames, 16, 24, 3), light, np.uint8), 8.0, prompt, name)


CLIPS = [clip(name, light) for name, light in (("a", 30), ("b", 200), ("c", 90))]


def test_each_clip_has_the_score_of_its_own_frames(judge, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    found = entry(judge, api_key_variable="JUDGE_KEY", side=8).build()(CLIPS)
    assert found["light"] == pytest.approx([30, 200, 90], abs=1)
    assert len(judge.asked) == 3
    assert set(judge.keys) == {"Bearer secret"}
    assert {picture.shape for body in judge.asked for picture in pictures(body)} == {(8, 12, 3)}
    assert {len(pictures(body)) for body in judge.asked} == {3}


def test_the_judge_is_told_the_prompt_the_ranges_and_the_rubric_and_is_held_to_a_schema(judge):
    asked = 'a "lamp"\nin {braces} \N{ELECTRIC LIGHT BULB}'
    entry(judge, rubric={"light": "How bright it is."}).build()([clip("a", 30, asked)])
    (body,) = judge.asked
    words = words_of(body)
    assert json.dumps(asked, ensure_ascii=False) in words
    assert "- light, from 0 to 255: How bright it is." in words
    assert "3 frames of it in order, evenly spread over 1.0 seconds" in words
    assert (body["model"], body["temperature"]) == ("eyes", 0)
    form = body["response_format"]
    assert (form["type"], form["json_schema"]["name"]) == ("json_schema", "reelign_scores_v1")
    assert form["json_schema"]["schema"]["properties"] == {"light": {"type": "number", "minimum": 0, "maximum": 255}}


@pytest.mark.parametrize("words", ['```json\n{"light": 7}\n```', '```\n{"light": 7}```', ' {"light": 7}\n'])
def test_a_markdown_fence_around_the_answer_is_taken_off(judge, words):
    judge.reply = lambda body: says(words)
    assert entry(judge).build()([CLIPS[0]])["light"].tolist() == [7.0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says("quite bright"), "not one JSON object with light"),
        (says('The scores: ```json\n{"light": 7}\n```'), "not one JSON object"),
        (says("{}"), "not one JSON object"),
        (says("[7]"), "not one JSON object"),
        (says('{"light": 7, "more": 1}'), "not one JSON object"),
        (says('{"light": "7"}'), "light is no number"),
        (says('{"light": true}'), "light is no number"),
        (says('{"light": null}'), "light is no number"),
        (says('{"light": NaN}'), "light is nan, not from 0 to 255"),
        (says('{"light": 256}'), "light is 256, not from 0 to 255"),
        (says("[" * 100_000), "not one JSON object"),
        (says(None, refusal="I do not judge lamps."), "the model refused: I do not judge lamps."),
        (says(None), "holds no words"),
        (says([{"type": "text"}]), "holds no words"),
        ((200, '{"choices": []}'), "no chat completion"),
        ((200, "<html>"), "no JSON object"),
        ((500, "out of memory"), "answers 500: out of memory"),
        ((429, "slowly"), "answers 429: slowly"),
    ],
)
def test_an_answer_that_does_not_serve_names_the_clip_and_is_worth_asking_again(judge, answer, reason):
    judge.reply = lambda body: answer if np.mean(pictures(body)) > 150 else brightness(body)
    with pytest.raises(RewardError, match=reason) as caught:
        entry(judge).build()(CLIPS)
    assert caught.value.clips == ("b",)
    assert caught.value.passing


def test_a_request_that_is_refused_as_such_is_not_repeated(judge):
    judge.reply = lambda body: (401, "who are you?")
    with pytest.raises(RewardError, match=r"answers 401: who are you\?") as caught:
        entry(judge, concurrency=1).build()(CLIPS)
    assert caught.value.clips == ("a", "b", "c")
    assert not caught.value.passing
    assert len(judge.asked) == 1


def test_after_a_stumble_only_what_is_missing_is_asked_again(judge):
    stumbles = iter([True, True])

    def reply(body: dict) -> Reply:
        return (429, "slowly") if np.mean(pictures(body)) > 150 and next(stumbles, False) else brightness(body)

    judge.reply = reply
    waited: list[float] = []
    rewards = RewardSet([Weighted(entry(judge).build(), {"light": 1.0})], wait=waited.append)
    assert rewards(CLIPS)["vlm.light"] == pytest.approx([30, 200, 90], abs=1)
    assert len(waited) == 2
    assert len(judge.asked) == 3 + 2
    rewards(CLIPS)
    assert len(judge.asked) == 3 + 2 + 3, "a later call asks anew"


def test_a_judge_that_hangs_or_is_away_is_a_passing_failure(judge):
    judge.reply = lambda body: (time.sleep(3), brightness(body))[1]
    with pytest.raises(RewardError, match=r"gave no answer within 0\.2 s") as caught:
        entry(judge, seconds=0.2, concurrency=1).build()(CLIPS)
    assert caught.value.passing
    assert len(judge.asked) == 1, "nobody waits for the others"
    away = entry(judge, url="http://127.0.0.1:9/v1").build()
    with pytest.raises(RewardError, match="Connection refused") as caught:
        away(CLIPS)
    assert caught.value.passing
    assert caught.value.clips == ("a", "b", "c")


def pairwise(judge: ChatServer, **more: object) -> VlmEntry:
    return entry(judge, compare="pairwise", dimensions={"light": [0, 1]}, **more)


def test_pairwise_a_score_is_the_share_of_wins_among_the_clips_of_a_prompt(judge):
    judge.reply = brighter
    clips = [CLIPS[0], clip("x", 250, "a sun"), CLIPS[1], CLIPS[2], clip("y", 250, "a sun")]
    found = pairwise(judge, rubric={"light": "How bright it is."}).build()(clips)
    assert found["light"].tolist() == [0.0, 0.5, 1.0, 0.5, 0.5]
    assert len(judge.asked) == 2 * 3 + 2 * 1, "every pair in both orders, and none across prompts"
    body = judge.asked[0]
    assert "- light: How bright it is." in words_of(body)
    form = body["response_format"]["json_schema"]
    assert form["name"] == "reelign_pairs_v1"
    assert form["schema"]["properties"]["light"]["enum"] == ["first", "second", "tie"]


def test_pairwise_a_judge_that_favours_a_place_makes_only_ties(judge):
    judge.reply = lambda body: says('{"light": "first"}')
    assert pairwise(judge).build()(CLIPS)["light"].tolist() == [0.5, 0.5, 0.5]


def test_pairwise_an_order_that_sees_a_tie_makes_a_tie(judge):
    def reply(body: dict) -> Reply:
        return says('{"light": "tie"}') if "first" in brighter(body)[1] else brighter(body)

    judge.reply = reply
    assert pairwise(judge).build()(CLIPS)["light"].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("opponents", "requests"), [(2, 14), (4, 28), (6, 42), (8, 42)])
def test_pairwise_every_clip_meets_as_many_others_and_the_cost_is_known(judge, opponents, requests):
    judge.reply = brighter
    clips = [clip(str(place), 30 * place) for place in range(7)]
    found = pairwise(judge, opponents=opponents).build()(clips)
    assert len(judge.asked) == requests
    assert found["light"][0] == 0.0
    assert found["light"][6] == 1.0
    assert found["light"].sum() == pytest.approx(7 / 2)


def test_pairwise_a_clip_alone_is_an_error_and_a_bad_verdict_names_both(judge):
    judge.reply = brighter
    with pytest.raises(RewardError, match="needs two clips of a prompt") as caught:
        pairwise(judge).build()([*CLIPS, clip("x", 9, "a sun")])
    assert caught.value.clips == ("x",)
    judge.reply = lambda body: says('{"light": "both"}')
    with pytest.raises(RewardError, match="none of first, second, tie") as caught:
        pairwise(judge).build()(CLIPS[:2])
    assert caught.value.clips == ("a", "b")
    assert caught.value.passing


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"rubric": {"ligt": "x"}}, "explains no dimension"),
        ({"dimensions": {"light": [1, 1]}}, "is empty"),
        ({"dimensions": {"light": [0, float("inf")]}}, "finite"),
        ({"compare": "pairwise"}, "win shares"),
        ({"opponents": 3}, "multiple of 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(judge, more, reason):
    with pytest.raises(ValidationError, match=reason):
        entry(judge, **more)
