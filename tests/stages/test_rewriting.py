"""A rollout from inside: whose words are rendered, from which noises, and by whose words the clips are judged.

The language model's answers are written down here, all else is real.
"""

import math
from pathlib import Path

import pytest
import torch

from reelign.data.clip import Clip
from reelign.enhancer.enhancer import MINIATURE_MANNER
from reelign.enhancer.language_model import load_language_model
from reelign.enhancer.rewrite import Rewrite
from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig
from reelign.sampling.sample import SampleConfig
from reelign.stages import rewriting as module
from reelign.stages.context import StageContext
from reelign.stages.enhance_recipe import RewardTraining
from reelign.stages.rewriting import STRUCTURE, Rewriting
from reelign.stages.studio import Shot
from reelign.train.ledger import Ledger
from reelign.train.loop import Interrupt
from reelign.train.parallel import World

BALL, BOX = "crimson ball going left", "box azure rising"
FULL = "a large red circle moving left fast on a white background"
OTHER = "a small red circle moving left slowly on a black background"
LOST = "a large green circle moving left fast on a white background"
SHORT = "red circle moving left"
LIGHT = {"kind": "function", "path": "light_for_rewriting.reward", "dimensions": {"light": [0, 1]}}
SEEN: list[Clip] = []


@pytest.fixture(autouse=True)
def light(tmp_path, monkeypatch):
    """A reward that keeps what it was shown, and finds bright clips good."""
    SEEN.clear()
    (tmp_path / "light_for_rewriting.py").write_text(
        "seen = None\n"
        "def reward(clips):\n"
        "    seen.extend(clips)\n"
        "    return {'light': [clip.frames.mean() / 255 for clip in clips]}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import light_for_rewriting

    monkeypatch.setattr(light_for_rewriting, "seen", SEEN)


@pytest.fixture(scope="module")
def language():
    return load_language_model("miniature")


def rewriting(language, folder: Path, **changes) -> Rewriting:
    settings = {
        "prompts": [{"kind": "miniature", "count": 6, "style": "user"}],
        "rewards": [LIGHT | {"weights": {"light": 1}}],
        "prompts_per_step": 1,
        "group_size": 4,
        "micro_batch": 4,
        "noises": 4,
    }
    context = StageContext(
        folder=folder / "run" / "enhance",
        parent="miniature",
        dataset=None,
        seed=0,
        dtype="float32",
        sampler=SampleConfig(steps=2, guidance_scale=2.0),
        battery=BatteryConfig(count=2, validation_count=2, frames=5),
        world=World(0, 1, torch.device("cpu"), None),
        ledger=Ledger(folder / "ledger.jsonl"),
        interrupt=Interrupt(),
    )
    return Rewriting(*language, MINIATURE_MANNER, RewardTraining.model_validate(settings | changes), context)


@pytest.fixture
def rolled(language, monkeypatch):
    """Rolls out with answers that are written down; one that ends in "..." is cut off there."""

    def rollout(taught: Rewriting, prompts: list[str], answers: list[str]):
        def said(model, tokenizer, questions, most, temperature):
            assert len(questions) == len(answers)
            assert (most, temperature) == (taught.manner.tokens, taught.grpo.temperature)
            words = [tokenizer(answer.removesuffix("..."), add_special_tokens=False)["input_ids"] for answer in answers]
            ends = [[] if answer.endswith("...") else [tokenizer.eos_token_id] for answer in answers]
            return [ids + end for ids, end in zip(words, ends, strict=True)]

        monkeypatch.setattr(module, "answer_ids", said)
        return taught.rollout(language[0], prompts)

    return rollout


def test_the_users_own_words_stand_in_each_group_and_are_not_learned_from(language, rolled, tmp_path):
    taught = rewriting(language, tmp_path, raw=2)
    found = rolled(taught, [BALL] * 4 + [BOX] * 4, [FULL] * 8)
    assert found.learned == [False, False, True, True] * 2
    tokenizer = language[1]
    said = [tokenizer.decode(answer) for answer in found.answers]
    assert said == [f"{words} </s>" for words in (BALL, BALL, FULL, FULL, BOX, BOX, FULL, FULL)]
    assert [rewrite.text for rewrite in found.rewrites[:4]] == [BALL, BALL, FULL, FULL]
    assert found.rewrites[0] == Rewrite(BALL, BALL, "unchanged")
    asked = [tokenizer.decode(question) for question in found.questions]
    assert asked == [f"<user> {words} <prompt>" for words in [BALL] * 4 + [BOX] * 4]


@pytest.mark.parametrize("against", ["original", "rewrite"])
def test_own_words_are_the_users_even_where_the_tokenizer_does_not_know_them(language, rolled, tmp_path, against):
    prompt = f"my wonderful {BALL}, please"
    found = rolled(rewriting(language, tmp_path, against=against), [prompt] * 4, [FULL] * 4)
    assert found.rewrites[0].text == SEEN[0].prompt == SEEN[1].prompt == prompt


def test_all_rewrites_of_a_prompt_start_from_the_same_noises(language, rolled, tmp_path, monkeypatch):
    taught = rewriting(language, tmp_path, clips=2, noises=4)
    asked, film = [], taught.studio.film
    monkeypatch.setattr(taught.studio, "film", lambda shots: asked.extend(shots) or film(shots))
    found = rolled(taught, [BALL] * 4 + [BOX] * 4, [FULL, OTHER, LOST, SHORT] * 2)
    for prompt in (BALL, BOX):
        takes = taught.takes(prompt)
        assert len(set(takes)) == 2
        for rewrite in found.rewrites:
            if rewrite.prompt == prompt:
                assert {Shot(rewrite.text, take) for take in takes} <= set(asked)
    assert asked == [Shot(rewrite.text, take) for rewrite in found.rewrites for take in taught.takes(rewrite.prompt)]
    assert rewriting(language, tmp_path / "again", clips=2, noises=4).takes(BALL) == taught.takes(BALL)
    many = {tuple(taught.takes(f"{BALL} {number}")) for number in range(40)}
    assert len(many) == math.comb(4, 2)  # prompts share few noises, in all combinations


def test_clips_are_judged_by_the_users_words_and_a_refused_rewrite_is_not_rendered(language, rolled, tmp_path):
    taught = rewriting(language, tmp_path)
    found = rolled(taught, [BALL] * 4, [FULL, FULL, LOST, f"{OTHER}..."])
    assert [rewrite.label for rewrite in found.rewrites] == [
        "unchanged",
        "rewritten",
        "fallback: attribute",
        "fallback: format",
    ]
    assert [rewrite.text for rewrite in found.rewrites] == [BALL, FULL, BALL, BALL]
    assert {clip.prompt for clip in SEEN} == {BALL}
    assert len({clip.id for clip in SEEN}) == len(SEEN) == 8
    light = found.scores["light_for_rewriting.reward.light"]
    assert light[0] == light[2] == light[3] != light[1]


def test_the_wrong_way_judges_by_the_rewrite_and_asks_no_guard(language, rolled, tmp_path):
    taught = rewriting(language, tmp_path, against="rewrite")
    found = rolled(taught, [BALL] * 4, [FULL, LOST, f"{OTHER}...", ""])
    texts = [BALL, LOST, OTHER, BALL]
    assert [rewrite.text for rewrite in found.rewrites] == texts
    assert [rewrite.label for rewrite in found.rewrites[1:]] == ["rewritten", "rewritten", "fallback: format"]
    assert [clip.prompt for clip in SEEN] == [text for text in texts for _ in range(2)]


def test_a_rewrites_score_is_the_mean_over_its_clips(language, rolled, tmp_path):
    taught = rewriting(language, tmp_path, clips=3)
    found = rolled(taught, [BALL] * 4, [FULL, FULL, OTHER, SHORT])
    for rewrite, score in zip(found.rewrites, found.scores["light_for_rewriting.reward.light"], strict=True):
        shots = [Shot(rewrite.text, take) for take in taught.takes(BALL)]
        films = taught.studio.film(shots)
        each = [films[shot].mean() / 255 for shot in shots]
        assert score == pytest.approx(sum(each) / 3, abs=1e-9)
        assert max(each) > min(each)


def test_structure_is_for_format_and_length(language, rolled, tmp_path):
    answers = [FULL, FULL, SHORT, f"{FULL}...", f"{FULL} {FULL}", "", LOST, FULL]
    found = rolled(rewriting(language, tmp_path, group_size=8, micro_batch=8), [BALL] * 8, answers)
    # Own words are shorter than the window; what is lost is for the guard and the rewards to judge.
    assert found.scores[STRUCTURE] == [0, 1, 0, -1, 0, -1, 1, 1]


def test_what_is_logged_is_counted_over_the_models_own_rows(language, rolled, tmp_path):
    taught = rewriting(language, tmp_path)
    first = rolled(taught, [BALL] * 4, [FULL, FULL, LOST, BALL])
    numbers = first.numbers
    assert numbers["fallback"] == pytest.approx(1 / 3)
    assert numbers["unchanged"] == pytest.approx(1 / 3)
    assert numbers["words"] == pytest.approx((11 + 4 + 4) / 3)
    assert (numbers["rendered"], numbers["reused"]) == (2 * 2, 0)
    light = first.scores["light_for_rewriting.reward.light"]
    assert numbers["raw/light_for_rewriting.reward.light"] == light[0]
    assert numbers["reward/light_for_rewriting.reward.light"] == pytest.approx(sum(light[1:]) / 3)
    assert (numbers["raw/structure"], numbers["reward/structure"]) == (0, pytest.approx((1 + 1 + 0) / 3))
    assert numbers["seconds/rollout"] > 0
    second = rolled(taught, [BALL] * 4, [FULL, FULL, LOST, BALL])
    assert (second.numbers["rendered"], second.numbers["reused"]) == (0, 4)
    assert second.scores == first.scores


def test_without_own_words_nothing_is_said_of_them(language, rolled, tmp_path):
    found = rolled(rewriting(language, tmp_path, raw=0), [BALL] * 4, [FULL] * 4)
    assert found.learned == [True] * 4
    assert not any(name.startswith("raw/") for name in found.numbers)
    assert all(math.isfinite(value) for value in found.numbers.values())


def test_the_prompts_of_all_steps_are_the_stream_that_rlhf_draws_from(language, tmp_path):
    prompts = rewriting(language, tmp_path, steps=5, prompts_per_step=3, group_size=4).prompts
    assert len(prompts) == 15
    assert sorted(prompts[:6]) == sorted(prompts[6:12])
    assert prompts[:6] != prompts[6:12]
    assert prompts == rewriting(language, tmp_path, steps=9, prompts_per_step=3, group_size=4).prompts[:15]


def test_clips_may_be_smaller_and_cheaper_than_those_of_deployment(language, tmp_path):
    plain = rewriting(language, tmp_path).studio
    assert (plain.size.frames, plain.sampler.steps) == (5, 2)
    cheap = rewriting(language, tmp_path, frames=9, height=24, sampler={"steps": 1}).studio
    assert (cheap.size.frames, cheap.size.height, cheap.size.width, cheap.sampler.steps) == (9, 24, 32, 1)
    assert plain.folder.parent == cheap.folder.parent == tmp_path / "run" / "clips"


def test_no_reward_may_take_the_name_of_the_structure(language, tmp_path):
    own = {"kind": "vlm", "url": "http://127.0.0.1:9", "model": "m", "name": STRUCTURE}
    own |= {"dimensions": {"a": [0, 1]}, "weights": {"a": 1}}
    with pytest.raises(ReelignError, match="may not be called 'structure'"):
        rewriting(language, tmp_path, rewards=[own])
