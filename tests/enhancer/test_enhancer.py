"""An enhancer from a folder and behind a real HTTP server: asked in its manner, and guarded."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chat_server import ChatServer, serving
from reelign.data.endpoint import EndpointError
from reelign.enhancer import enhancer as module
from reelign.enhancer.enhancer import (
    CARD,
    MINIATURE_MANNER,
    Enhancer,
    Manner,
    load_enhancer,
    read_manner,
    save_enhancer,
    served_enhancer,
)
from reelign.enhancer.language_model import load_language_model
from reelign.enhancer.rewrite import Rewrite
from reelign.enhancer.template import TEMPLATES, Messages
from reelign.errors import ReelignError
from reelign.miniature.captions import stated_values
from tiny_language import tiny_language

PLAIN = Manner("plain-1", (2, 12), "lexical", 24)
VIDEO = Manner("video-1", (2, 12), "lexical", 24)
REWRITE = "A cat sits on the roof of a house at dusk."


class Scripted:
    """A language model whose answers a test writes down; it keeps what it was asked."""

    def __init__(self, *answers: tuple[str, bool]) -> None:
        self.left, self.asked = list(answers), []

    def __call__(self, questions: list[Messages]) -> list[tuple[str, bool]]:
        self.asked += questions
        return [self.left.pop(0) for _ in questions]


def test_every_prompt_gets_what_the_guard_lets_through():
    model = Scripted((REWRITE, True), ("A dog sits on the roof.", True), ("A cat on a", False), ("a cat", True))
    found = Enhancer(model, PLAIN)(["a cat on a roof", "two dogs", "a cat on a wall", "A cat"])
    assert found == [
        Rewrite("a cat on a roof", REWRITE, "rewritten", "", REWRITE),
        Rewrite("two dogs", "two dogs", "fallback", "number", "A dog sits on the roof."),
        Rewrite("a cat on a wall", "a cat on a wall", "fallback", "format", "A cat on a"),
        Rewrite("A cat", "A cat", "unchanged", "", "a cat"),
    ]
    assert model.asked == [PLAIN.build_template().messages(rewrite.prompt) for rewrite in found]


def test_equal_prompts_are_asked_about_once_and_some_not_at_all():
    model, long = Scripted((REWRITE, True)), " ".join(["word"] * 13)
    found = Enhancer(model, PLAIN)(["a cat on a roof", long, " ", "a cat on a roof"])
    assert [rewrite.label for rewrite in found] == ["rewritten", "left alone: long", "left alone: empty", "rewritten"]
    assert [rewrite.text for rewrite in found] == [REWRITE, long, " ", REWRITE]
    assert len(model.asked) == 1
    assert Enhancer(Scripted(), PLAIN)([]) == []


def test_the_rewrite_is_read_out_of_its_tags():
    model = Scripted((f"<prompt>{REWRITE}</prompt>", True), (REWRITE, True))
    found = Enhancer(model, VIDEO)(["a cat on a roof", "a cat"])
    assert [(rewrite.text, rewrite.label) for rewrite in found] == [
        (REWRITE, "rewritten"),
        ("a cat", "fallback: format"),
    ]


def test_a_synonym_counts_when_the_model_vouches_for_it():
    said = ("A ship sails.", True)
    assert Enhancer(Scripted(said), PLAIN)(["a boat"])[0].label == "fallback: word"
    assert Enhancer(Scripted(said), PLAIN, lambda word, others: 0.9)(["a boat"])[0].text == said[0]


def test_the_miniature_rewrites_what_users_type_and_keeps_what_they_asked_for():
    enhancer = load_enhancer("miniature", device="cpu")
    assert enhancer.manner == MINIATURE_MANNER
    prompts = ["crimson ball going left", "box rising quickly", "tiny teal hoop orbiting", "a cat on a roof"]
    found = enhancer(prompts)
    assert [rewrite.prompt for rewrite in found] == prompts
    for rewrite in found:
        if rewrite.outcome == "rewritten":
            assert stated_values(rewrite.prompt).items() <= stated_values(rewrite.text).items()
        else:
            assert rewrite.text == rewrite.prompt
    assert found[3].label == "fallback: word"
    assert enhancer(prompts) == found


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An enhancer folder, and the language model in it."""
    folder = tmp_path_factory.mktemp("saved")
    model, tokenizer = load_language_model(str(tiny_language(folder / "plain", [TEMPLATES["video-1"].system])))
    save_enhancer(folder / "enhancer", model, tokenizer, VIDEO)
    return folder / "enhancer", model, tokenizer


def test_an_enhancer_is_an_ordinary_folder_and_comes_back_as_it_was(saved):
    folder, model, tokenizer = saved
    assert not folder.with_name("enhancer.partial").exists()
    assert json.loads((folder / CARD).read_text()) == {
        "template": "video-1",
        "window": [2, 12],
        "guard": "lexical",
        "tokens": 24,
    }
    assert read_manner(str(folder)) == VIDEO
    again, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert words.chat_template == tokenizer.chat_template
    wanted, found = model.state_dict(), again.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    enhancer = load_enhancer(str(folder), device="cpu")
    assert enhancer.manner == VIDEO
    assert enhancer.guard.window == (2, 12)
    [rewrite] = enhancer(["a cat"])  # an untrained model
    assert rewrite == Rewrite("a cat", "a cat", "fallback", "format", rewrite.answer)


def test_a_chat_model_as_it_comes_is_asked_in_the_default_manner(tmp_path):
    folder = tiny_language(tmp_path / "m", [TEMPLATES["video-1"].system])
    assert load_enhancer(str(folder), device="cpu").manner == Manner()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[",
        "[]",
        "null",
        '"video-1"',
        "{}",
        '{"template": "video-1", "window": [2, 12], "guard": "lexical"}',
        '{"template": "video-1", "window": [2], "guard": "lexical", "tokens": 9}',
        '{"template": "video-1", "window": 12, "guard": "lexical", "tokens": 9}',
        '{"template": "video-1", "window": ["a", "b"], "guard": "lexical", "tokens": 9}',
        '{"template": "video-1", "window": [2, 12], "guard": "lexical", "tokens": null}',
        '{"template": ["video-1"], "window": [2, 12], "guard": "lexical", "tokens": 9}',
    ],
)
def test_a_damaged_card_is_named(tmp_path, content):
    (tmp_path / CARD).write_text(content)
    with pytest.raises(ReelignError, match=r"enhancer\.json is damaged.*Make the enhancer again"):
        read_manner(str(tmp_path))


@pytest.mark.parametrize(
    ("manner", "said"),
    [
        ({"template": "video-9"}, "there is no template 'video-9'; there are plain-1, video-1"),
        ({"guard": "strict"}, "there is no guard 'strict'; there are lexical and miniature"),
    ],
)
def test_a_manner_that_there_is_not_is_an_error_that_lists_what_there_is(tmp_path, manner, said):
    with pytest.raises(ReelignError, match=said):
        Manner(**manner)
    values = {"template": "video-1", "window": [2, 12], "guard": "lexical", "tokens": 9} | manner
    (tmp_path / CARD).write_text(json.dumps(values))
    with pytest.raises(ReelignError, match=said):
        read_manner(str(tmp_path))


@pytest.mark.parametrize("window", [(0, 4), (5, 4)])
def test_a_window_that_holds_no_caption_is_an_error(window):
    with pytest.raises(ReelignError, match="holds no caption"):
        Enhancer(Scripted(), Manner(window=window))


Reply = tuple[int, str]


def says(words: object, **more: object) -> Reply:
    return 200, json.dumps({"choices": [{"message": {"content": words} | more}]})


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "WAITS", (0.0, 0.0))
    found = ChatServer(lambda body: says(f"<prompt>{REWRITE}</prompt>"))
    with serving(found):
        yield found


def test_a_server_is_asked_with_the_templates_system_message_and_the_users_words(server):
    found = served_enhancer(server.url, "words", VIDEO)(["a cat on a roof"])
    assert found == [Rewrite("a cat on a roof", REWRITE, "rewritten", "", f"<prompt>{REWRITE}</prompt>")]
    [body] = server.asked
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("words", 0, 24)
    system, user = body["messages"]
    assert system == {"role": "system", "content": TEMPLATES["video-1"].system}
    assert user["role"] == "user"
    assert user["content"] == [{"type": "text", "text": "<user_prompt>\na cat on a roof\n</user_prompt>"}]


def test_a_template_without_a_system_message_sends_none(server):
    server.reply = lambda body: says(REWRITE)
    assert served_enhancer(server.url, "words", PLAIN)(["a cat on a roof"])[0].text == REWRITE
    assert [message["role"] for message in server.asked[0]["messages"]] == ["user"]


def test_answers_come_back_to_the_prompts_that_they_are_for(server):
    def echo(body: dict) -> Reply:
        asked = body["messages"][0]["content"][0]["text"]
        return says(f"{asked} at dusk")

    server.reply = echo
    prompts = [f"{number} cats" for number in range(2, 30)]
    found = served_enhancer(server.url, "words", PLAIN, concurrency=4)(prompts)
    assert [rewrite.text for rewrite in found] == [f"{prompt} at dusk" for prompt in prompts]


def test_an_answer_that_was_cut_off_is_not_used_and_one_that_came_to_its_end_is(server):
    def cut(reason: str) -> Reply:
        return 200, json.dumps({"choices": [{"message": {"content": REWRITE}, "finish_reason": reason}]})

    for reason, label in (("length", "fallback: format"), ("stop", "rewritten")):
        server.reply = lambda body, reason=reason: cut(reason)
        assert served_enhancer(server.url, "words", PLAIN)(["a cat on a roof"])[0].label == label


def test_a_server_that_is_busy_is_asked_again(server):
    server.reply = lambda body: (503, "busy") if len(server.asked) < 3 else says(REWRITE)
    assert served_enhancer(server.url, "words", PLAIN)(["a cat on a roof"])[0].text == REWRITE
    assert len(server.asked) == 3


def test_an_answer_that_does_not_hold_leaves_the_users_words(server):
    server.reply = lambda body: says("I cannot help with that.")
    assert served_enhancer(server.url, "words", VIDEO)(["a cat"])[0].label == "fallback: format"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((401, "who are you?"), "answers 401: who are you"),
        ((500, "out of memory"), "answers 500: out of memory"),
        ((200, "[]"), "no JSON object"),
        ((200, "{}"), "no chat completion"),
        (says(" "), "holds no words"),
        (says("", refusal="not that"), "the model refused: not that"),
    ],
)
def test_a_server_without_an_answer_is_an_error(server, reply, said):
    server.reply = lambda body: reply
    with pytest.raises(EndpointError, match=said):
        served_enhancer(server.url, "words", VIDEO)(["a cat"])
    assert len(server.asked) == (1 if reply[0] == 401 else 3)  # what lasts is not tried again


def test_a_server_that_is_away_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "WAITS", ())
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1/chat/completions: Connection refused"):
        served_enhancer("http://127.0.0.1:9/v1", "words", VIDEO)(["a cat"])
