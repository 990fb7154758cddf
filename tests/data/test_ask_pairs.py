"""A language model behind a real HTTP server, which answers, misbehaves, goes away and comes back."""

import json

import pytest

from chat_server import ChatServer, serving
from reelign.data import ask_pairs as module
from reelign.data.ask_pairs import MANNERS, TEMPLATE_VERSION, UnansweredError, ask_pairs
from reelign.data.endpoint import ChatEndpoint
from reelign.data.pairs import PromptPair, read_pairs, write_pairs
from reelign.errors import ReelignError

CAPTIONS = [f"A {colour} fox walks slowly over the snow, captured from afar." for colour in ("red", "grey", "white")]
Reply = tuple[int, str]


def says(words: object) -> Reply:
    return 200, json.dumps({"choices": [{"message": {"content": words}}]})


def asked_for(body: dict) -> str:
    """The caption that a request is about."""
    return json.loads(body["messages"][0]["content"][0]["text"].splitlines()[1])


def briefly(body: dict) -> Reply:
    return says(json.dumps({"prompt": " ".join(asked_for(body).split()[:3]).lower()}))


def expected(captions: list[str]) -> list[PromptPair]:
    return [PromptPair(" ".join(caption.split()[:3]).lower(), caption) for caption in captions]


class Model(ChatServer):
    @property
    def endpoint(self) -> ChatEndpoint:
        return ChatEndpoint(url=self.url, model="words", seconds=20)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    found = Model(briefly)
    with serving(found):
        yield found


def test_each_caption_gets_its_prompt_in_order_and_on_disk(model, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    out, told = tmp_path / "new" / "pairs.jsonl", []
    pairs = ask_pairs([*CAPTIONS, f" {CAPTIONS[0]}\n", " "], model.endpoint, out, 3, lambda *done: told.append(done))
    assert pairs == expected(CAPTIONS)
    assert set(read_pairs(out)) == set(pairs)  # on disk in the order in which they were answered
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert len(model.asked) == 3
    assert set(model.keys) == {"Bearer secret"}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(row["template"], row["model"]) for row in rows} == {(TEMPLATE_VERSION, "words")}


def test_the_model_is_told_the_caption_as_data_and_is_held_to_a_schema(model, tmp_path):
    caption = 'A sign says "{caption}" \N{ELECTRIC LIGHT BULB} at dusk'
    ask_pairs([caption], model.endpoint, tmp_path / "p.jsonl")
    (body,) = model.asked
    words = body["messages"][0]["content"][0]["text"]
    assert json.dumps(caption, ensure_ascii=False) in words
    assert sum(manner in words for manner in MANNERS) >= 1
    assert (body["model"], body["temperature"]) == ("words", 0)
    form = body["response_format"]["json_schema"]
    assert form["name"] == f"reelign_prompt_v{TEMPLATE_VERSION}"
    assert form["strict"]
    assert form["schema"]["required"] == ["prompt"]


@pytest.mark.parametrize(
    "words", ['```json\n{"prompt": "a fox"}\n```', '{"prompt": " a\\nfox "}', '\n{"prompt":"a fox"}']
)
def test_a_fence_and_spaces_are_taken_off(model, tmp_path, words):
    model.reply = lambda body: says(words)
    assert ask_pairs(CAPTIONS[:1], model.endpoint, tmp_path / "p.jsonl") == [PromptPair("a fox", CAPTIONS[0])]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says("a fox"), "not one JSON object"),
        (says('The prompt: {"prompt": "a fox"}'), "not one JSON object"),
        (says('{"prompt": "a fox", "more": 1}'), "not one JSON object"),
        (says('{"prompt": 7}'), "not one JSON object"),
        (says('["a fox"]'), "not one JSON object"),
        (says("[" * 100_000), "not one JSON object"),
        (says('{"prompt": " "}'), "the prompt is empty"),
        (says(json.dumps({"prompt": "a fox " * 40})), "longer than its caption"),
        (says(" "), "holds no words"),
        ((200, "[]"), "no JSON object"),
        ((503, "busy"), "answers 503: busy"),
    ],
)
def test_an_answer_that_does_not_serve_is_asked_for_twice_more(model, tmp_path, answer, reason):
    model.reply = lambda body: answer if len(model.asked) < 3 else briefly(body)
    assert ask_pairs(CAPTIONS[:1], model.endpoint, tmp_path / "p.jsonl") == expected(CAPTIONS[:1])
    assert [body["temperature"] for body in model.asked] == pytest.approx([0, 1 / 3, 2 / 3])
    model.asked.clear()
    model.reply = lambda body: answer
    with pytest.raises(UnansweredError, match=reason) as error:
        ask_pairs(CAPTIONS[1:2], model.endpoint, tmp_path / "q.jsonl")
    assert len(model.asked) == 3
    assert error.value.captions == CAPTIONS[1:2]
    assert (tmp_path / "q.jsonl").read_text() == ""


def test_captions_that_fail_are_named_the_rest_is_kept_and_only_they_are_asked_again(model, tmp_path):
    out = tmp_path / "p.jsonl"
    model.reply = lambda body: (400, "too rude") if "grey" in asked_for(body) else briefly(body)
    with pytest.raises(UnansweredError, match=r"1 of 3 captions have no prompt: .* answers 400: too rude") as error:
        ask_pairs(CAPTIONS, model.endpoint, out, concurrency=2)
    assert error.value.captions == [CAPTIONS[1]]
    assert "A grey fox" in str(error.value)
    assert len(model.asked) == 3  # what lasts is not tried again
    assert {pair.rewrite for pair in read_pairs(out)} == {CAPTIONS[0], CAPTIONS[2]}
    model.asked.clear()
    model.reply = briefly
    told = []
    pairs = ask_pairs(CAPTIONS, model.endpoint, out, progress=lambda *done: told.append(done))
    assert pairs == expected(CAPTIONS)
    assert [asked_for(body) for body in model.asked] == [CAPTIONS[1]]
    assert told == [(3, 3)]
    before = out.read_bytes()
    assert ask_pairs(CAPTIONS, model.endpoint, out) == pairs
    assert len(model.asked) == 1
    assert out.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 10, 40, 60])
def test_a_line_that_was_torn_off_is_asked_for_again(model, tmp_path, cut):
    out = tmp_path / "p.jsonl"
    ask_pairs(CAPTIONS, model.endpoint, out, concurrency=1)
    whole = out.read_bytes()
    out.write_bytes(whole[:-cut])
    model.asked.clear()
    assert ask_pairs(CAPTIONS, model.endpoint, out) == expected(CAPTIONS)
    assert len(model.asked) == 1
    assert out.read_bytes() == whole


@pytest.mark.parametrize("content", ['[{"prompt": "a"}]', '{"prompt": "a", "rewrite": "b"}\n', "my notes"])
def test_a_file_of_something_else_is_left_alone(model, tmp_path, content):
    out = tmp_path / "p.jsonl"
    out.write_text(content)
    with pytest.raises(ReelignError, match="holds something else"):
        ask_pairs(CAPTIONS, model.endpoint, out)
    assert out.read_text() == content
    assert model.asked == []


def test_answers_of_another_model_or_template_are_not_mixed_in(model, tmp_path, monkeypatch):
    out = tmp_path / "p.jsonl"
    ask_pairs(CAPTIONS[:1], model.endpoint, out)
    with pytest.raises(ReelignError, match=r"answers of other to template"):
        ask_pairs(CAPTIONS, ChatEndpoint(url=model.url, model="other"), out)
    monkeypatch.setattr(module, "TEMPLATE_VERSION", TEMPLATE_VERSION + 1)
    with pytest.raises(ReelignError, match="holds something else"):
        ask_pairs(CAPTIONS, model.endpoint, out)
    write_pairs(out, expected(CAPTIONS))
    with pytest.raises(ReelignError, match="holds something else"):
        ask_pairs(CAPTIONS, model.endpoint, out)


def test_a_refused_key_and_a_server_that_is_away_end_the_asking(model, tmp_path):
    many = [f"A fox number {n} walks over the snow." for n in range(40)]
    model.reply = lambda body: (401, "who are you?")
    with pytest.raises(UnansweredError, match=r"40 of 40 .* answers 401") as error:
        ask_pairs(many, model.endpoint, tmp_path / "p.jsonl", concurrency=2)
    assert error.value.captions == many
    assert "and 35 more" in str(error.value)
    assert len(model.asked) <= 4
    away = ChatEndpoint(url="http://127.0.0.1:9/v1", model="words", seconds=2)
    with pytest.raises(UnansweredError, match="Connection refused"):
        ask_pairs(many, away, tmp_path / "q.jsonl", concurrency=2)


def test_captions_in_any_script_and_half_characters_are_asked_and_continued(model, tmp_path):
    captions = ["一只猫 在雨中 跳舞 慢慢地", "half a \ud83d character in here", "line\u2028separator is a space here"]
    model.reply = lambda body: says(json.dumps({"prompt": asked_for(body)[:6]}))
    pairs = ask_pairs(captions, model.endpoint, tmp_path / "p.jsonl")
    model.asked.clear()
    assert ask_pairs(captions, model.endpoint, tmp_path / "p.jsonl") == pairs
    assert model.asked == []
