"""Chat models as they come: their conversations, their answers, and what is said when they cannot be loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reelign.enhancer.language_model import (
    BATCH,
    answer_ids,
    conversation_ids,
    finished,
    load_language_model,
    similarity,
)
from reelign.enhancer.template import TEMPLATES
from reelign.errors import ReelignError
from reelign.miniature.enhancer_pairs import miniature_pairs
from tiny_language import tiny_language

TAGGED, PLAIN = TEMPLATES["video-1"], TEMPLATES["plain-1"]
TEXTS = [TAGGED.system, "a cat on a roof", "two dogs run"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_language(tmp_path_factory.mktemp("language"), TEXTS)


@pytest.fixture(scope="module")
def chat(folder):
    return load_language_model(str(folder))


@pytest.fixture(scope="module")
def miniature():
    return load_language_model("miniature")


def test_a_conversation_is_what_the_models_own_template_makes_of_it(chat):
    _, tokenizer = chat
    ids = conversation_ids(tokenizer, TAGGED.messages("a cat"))
    assert tokenizer.decode(ids) == (
        f"<|im_start|>system\n{TAGGED.system}<|im_end|>\n"
        "<|im_start|>user\n<user_prompt>\na cat\n</user_prompt><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert ids.count(tokenizer.eos_token_id) == 2


def test_the_miniature_is_asked_the_users_words_alone(miniature):
    _, tokenizer = miniature
    ids = conversation_ids(tokenizer, PLAIN.messages("red ball going left"))
    assert tokenizer.decode(ids) == "<user> red ball going left <prompt>"


def test_an_answer_ends_where_the_model_ends_it(miniature):
    model, tokenizer = miniature
    questions = [conversation_ids(tokenizer, PLAIN.messages(pair.prompt)) for pair in miniature_pairs(8, seed=1)]
    answers = answer_ids(model, tokenizer, questions, 24)
    for answer in answers:
        assert answer[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in answer[:-1]
        assert finished(model, tokenizer, answer)
        assert 8 <= len(tokenizer.decode(answer, skip_special_tokens=True).split()) <= 11
    cut = answer_ids(model, tokenizer, questions, 5)
    assert cut == [answer[:5] for answer in answers]
    assert not any(finished(model, tokenizer, answer) for answer in cut)
    assert not finished(model, tokenizer, [])


def test_every_token_that_a_model_says_ends_an_answer_does(chat, monkeypatch):
    model, tokenizer = chat
    questions = [conversation_ids(tokenizer, PLAIN.messages("a cat on a roof"))]
    [long] = answer_ids(model, tokenizer, questions, 12)
    other = long[len(long) // 2]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [tokenizer.eos_token_id, other])
    [short] = answer_ids(model, tokenizer, questions, 12)
    assert short == long[: long.index(other) + 1]
    assert finished(model, tokenizer, short)


@pytest.mark.parametrize("which", ["miniature", "chat"])
def test_questions_of_any_length_are_answered_together_as_one_by_one(which, request):
    model, tokenizer = request.getfixturevalue(which)
    prompts = ["ball left", "a tiny crimson ball going left slowly on a dark background", "ring", "red box rising"]
    questions = [conversation_ids(tokenizer, PLAIN.messages(prompt)) for prompt in prompts]
    assert len({len(question) for question in questions}) > 2
    together = answer_ids(model, tokenizer, questions, 12)
    assert together == [answer_ids(model, tokenizer, [question], 12)[0] for question in questions]


def test_more_questions_than_fit_in_a_batch_keep_their_order(miniature):
    model, tokenizer = miniature
    questions = [conversation_ids(tokenizer, PLAIN.messages(word)) for word in ("red ring", "blue box", "cyan plus")]
    many = [questions[index % 3] for index in range(BATCH + 2)]
    first = answer_ids(model, tokenizer, many[:3], 4)
    assert answer_ids(model, tokenizer, many, 4) == [first[index % 3] for index in range(BATCH + 2)]
    assert answer_ids(model, tokenizer, [], 4) == []


def test_sampled_answers_follow_from_the_seed_and_differ_from_one_another(miniature):
    model, tokenizer = miniature
    question = conversation_ids(tokenizer, PLAIN.messages("red ball going left"))
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(answer_ids(model, tokenizer, [question] * 8, 16, temperature=1.0))
    assert found[0] == found[1] != found[2]
    assert len({tuple(answer) for answer in found[0]}) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_model_ships_for_its_own_sampling_is_not_used(chat, monkeypatch, temperature):
    """Chat models come with settings such as a low temperature; GRPO needs answers of the model as it is."""
    model, tokenizer = chat
    questions = [conversation_ids(tokenizer, PLAIN.messages("a cat on a roof"))] * 4

    def answers() -> list[list[int]]:
        torch.manual_seed(0)
        return answer_ids(model, tokenizer, questions, 12, temperature)

    plain = answers()
    shipped = {"do_sample": True, "temperature": 0.1, "top_k": 2, "top_p": 0.1, "repetition_penalty": 1.8}
    for name, value in shipped.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert answers() == plain


@pytest.mark.parametrize("which", ["miniature", "chat"])
def test_similarity_is_a_cosine_that_is_one_for_the_same_word(which, request):
    similar = similarity(*request.getfixturevalue(which))
    for word in ("red", "box", "cat", "猫"):
        assert similar(word, [word]) == pytest.approx(1, abs=1e-6)
        assert similar(word, ["dogs", word]) == pytest.approx(1, abs=1e-6)
        assert -1 <= similar(word, ["left"]) < 1
    assert similar("red", []) == -1


def test_a_model_without_a_pad_token_is_given_one(tmp_path):
    model, tokenizer = load_language_model(str(tiny_language(tmp_path / "m", TEXTS, pad=False)))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    questions = [conversation_ids(tokenizer, PLAIN.messages(prompt)) for prompt in ("a cat", "two dogs run on a roof")]
    assert answer_ids(model, tokenizer, questions, 6) == [
        answer_ids(model, tokenizer, [question], 6)[0] for question in questions
    ]


def test_bfloat16_is_loaded_as_such(folder):
    model, _ = load_language_model(str(folder), "bfloat16")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def damage(kind: str, folder: Path) -> None:
    """Do to a good folder what the test is about."""
    if kind == "no template":
        (folder / "chat_template.jinja").unlink()
    elif kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "no weights":
        (folder / "model.safetensors").unlink()
    elif kind == "no tokenizer":
        for path in (*folder.glob("tokenizer*"), folder / "chat_template.jinja"):
            path.unlink()
    elif kind == "half the weights":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "a weight missing":
        weights = load_file(folder / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    elif kind == "other weights":
        save_file({"model.embed_tokens.weight": torch.zeros(3, 3)}, folder / "model.safetensors", {"format": "pt"})
    elif kind == "half the tokenizer":
        path = folder / "tokenizer.json"
        path.write_text(path.read_text()[:300])
    elif kind == "half the config":
        (folder / "config.json").write_text('{"model_type": ')
    else:
        kinds = {"a kind unheard of": "qwen99", "no language model": "t5"}
        (folder / "config.json").write_text(json.dumps({"model_type": kinds[kind]}))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no template", "has no chat template"),
        ("no config", "cannot load the language model"),
        ("no weights", "cannot load the language model"),
        ("no tokenizer", "has no chat template"),
        ("half the weights", "cannot load the language model"),
        ("a weight missing", "it has no weights for model.norm.weight"),
        ("other weights", "cannot load the language model"),
        ("half the tokenizer", "cannot load the language model"),
        ("half the config", "cannot load the language model"),
        ("a kind unheard of", "cannot load the language model"),
        ("no language model", "cannot load the language model"),
    ],
)
def test_a_folder_that_does_not_serve_is_named_in_one_sentence(folder, tmp_path, kind, said):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    damage(kind, broken)
    with pytest.raises(ReelignError, match=said) as error:
        load_language_model(str(broken))
    assert str(broken) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nothing", "/no/such/folder", "./none", "~/x/y", "a/b/c"])
def test_what_is_nowhere_is_an_error_that_says_what_to_give(name):
    with pytest.raises(ReelignError, match="Give the word 'miniature', a transformers folder or a hub id"):
        load_language_model(name)


@pytest.mark.parametrize("name", ["reelign-tests/no-such-model", "not a/valid id"])
def test_a_hub_id_that_cannot_be_had_is_an_error(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ReelignError, match=f"cannot load the language model {name}"):
        load_language_model(name)
