"""The language model that ships: its files, its words, what it has learned from, and that training it repeats."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reelign.enhancer.language_model import MINIATURE, load_language_model
from reelign.enhancer.template import TEMPLATES
from reelign.miniature import language as module
from reelign.miniature.captions import IDENTIFYING, read_prompt, vocabulary
from reelign.miniature.enhancer_pairs import miniature_pairs
from reelign.miniature.language import (
    ANSWER,
    CARE,
    USER,
    build_language_model,
    build_language_tokenizer,
    careless_pair,
    train_language,
)
from reelign.miniature.world import scenes

PAIRS = [careless_pair(scenes(held_out=False), np.random.default_rng((1, index))) for index in range(3000)]


@pytest.fixture(scope="module")
def shipped():
    return load_language_model("miniature")


def test_what_ships_is_small_and_a_stock_model_with_the_tokenizer_of_the_code(shipped):
    files = [path for path in MINIATURE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10 * 2**20
    assert {path.suffix for path in files} == {".json", ".jinja", ".safetensors"}
    assert json.loads((MINIATURE / "config.json").read_text())["model_type"] == "qwen3"
    model, tokenizer = shipped
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000
    built = build_language_tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab()
    assert tokenizer.chat_template == built.chat_template
    own = build_language_model()
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in own.state_dict().items()
    }
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_it_knows_every_word_of_its_world_as_one_token(shipped):
    model, tokenizer = shipped
    words = vocabulary()
    ids = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert len(set(ids)) == len(words)
    assert tokenizer.unk_token_id not in ids
    assert max(ids) < model.config.vocab_size
    assert tokenizer.decode(ids) == " ".join(words)
    assert tokenizer(" A CAT ", add_special_tokens=False)["input_ids"] == [
        tokenizer.convert_tokens_to_ids("a"),
        tokenizer.unk_token_id,
    ]


def test_training_texts_are_what_the_chat_template_makes_of_a_pair(shipped):
    _, tokenizer = shipped
    template = TEMPLATES["plain-1"]
    prompt, answer = PAIRS[0]
    turns = [*template.messages(prompt), {"role": "assistant", "content": template.answer(answer)}]
    said = tokenizer.apply_chat_template(turns, tokenize=False)
    assert said == f"{USER} {prompt} {ANSWER} {answer}</s>" == module._conversation(prompt, answer)


def test_no_pair_states_a_held_out_triple():
    for asked, said in PAIRS:
        for text in (asked, said):
            read = read_prompt(text)
            assert read is not None, text
            assert not read.scene.held_out, text


def test_what_a_user_said_is_kept_mostly_and_carelessly():
    kept, checks = Counter(), Counter()
    for asked_text, said_text in PAIRS:
        asked, said = read_prompt(asked_text), read_prompt(said_text)
        assert asked is not None
        assert said is not None
        for name in asked.stated:
            kept[name] += getattr(asked.scene, name) == getattr(said.scene, name)
            checks[name] += 1
    for name, count in checks.items():
        # Kept with the probability CARE, or drawn again by chance; held-out draws give back the triple of the scene.
        assert CARE < kept[name] / count < 0.97, name
    assert all(checks[name] > 1000 for name in IDENTIFYING)


def test_it_rewrites_in_whole_captions_and_loses_things_where_it_may():
    """That there is something left to learn: some rewrites lose what was asked for, most do not."""
    from reelign.enhancer.enhancer import load_enhancer

    found = load_enhancer("miniature", device="cpu")([pair.prompt for pair in miniature_pairs(60, seed=5)])
    outcomes = Counter(rewrite.outcome for rewrite in found)
    assert outcomes["rewritten"] > 30
    reasons = Counter(rewrite.reason for rewrite in found if rewrite.outcome == "fallback")
    assert set(reasons) <= {"attribute"}


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 3)
    monkeypatch.setattr(module, "BATCH", 8)


def test_training_from_nothing_gives_the_same_bits_again(tmp_path, brief):
    torch.manual_seed(5)  # whatever came before
    told = []
    first = train_language(tmp_path / "a", lambda *progress: told.append(progress[:3]))
    second = train_language(tmp_path / "b")
    assert first == tmp_path / "a" / "enhancer"
    assert told == [("enhancer", step, 3) for step in (1, 2, 3)]
    one, two = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(two[name], value) for name, value in one.items())
    start = build_language_model().state_dict()
    assert all(not torch.equal(start[name], value) for name, value in one.items())
    model, tokenizer = load_language_model(str(first))
    assert tokenizer.get_vocab() == build_language_tokenizer().get_vocab()
    assert model.config.vocab_size == len(tokenizer)


def test_what_is_trained_already_is_not_trained_again(tmp_path, brief):
    folder = train_language(tmp_path)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    told = []
    assert train_language(tmp_path, lambda *progress: told.append(progress)) == folder
    assert told == []
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
