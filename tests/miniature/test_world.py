from dataclasses import replace

import numpy as np
import pytest

from reelign.evaluate.battery import BatteryConfig, tasks
from reelign.miniature.captions import NEIGHBOURS, careless_caption, full_caption, full_prompt, user_prompt, vocabulary
from reelign.miniature.judge import judge
from reelign.miniature.pairs import CLEAN, SCRAPED, PairQuality, pairs
from reelign.miniature.render import render
from reelign.miniature.world import FRAMES, MOTIONS, RADII, SIDE, scenes, track


def test_the_split_is_a_partition_and_large_on_both_sides():
    training, held_out = scenes(False), scenes(True)
    assert not set(training) & set(held_out)
    assert len(held_out) >= 200
    assert len(training) > 5 * len(held_out)
    triples = {(s.colour, s.shape, s.motion) for s in held_out}
    assert not triples & {(s.colour, s.shape, s.motion) for s in training}
    for name in ("colour", "shape", "size", "motion", "speed", "background"):
        assert {getattr(s, name) for s in held_out} == {getattr(s, name) for s in training}


@pytest.mark.parametrize("style", ["full", "user"])
def test_no_prompt_scene_or_seed_of_the_battery_occurs_in_training(style):
    config = BatteryConfig(style=style, count=160, validation_count=60)
    asked = [*tasks(config, "test"), *tasks(config, "validation")]
    assert len({task.id for task in asked}) == 220
    prompts, ids = {task.prompt for task in asked}, {task.id for task in asked}
    for quality, seed in ((SCRAPED, 4), (CLEAN, 5), (CLEAN, 11)):
        for pair in pairs(800, quality, seed):
            assert pair.scene.id not in ids
            assert not pair.scene.held_out
            assert pair.caption not in prompts


def test_the_two_halves_of_the_battery_share_no_scene():
    config = BatteryConfig(count=160, validation_count=60)
    assert not {t.id for t in tasks(config, "test")} & {t.id for t in tasks(config, "validation")}


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_object_never_leaves_the_picture(motion):
    generator = np.random.default_rng(0)
    for scene in [s for s in scenes(False) if s.motion == motion][::7]:
        centres = track(scene, generator)
        assert centres.shape == (FRAMES, 2)
        assert centres.min() >= RADII[scene.size] - 1e-6
        assert centres.max() <= SIDE - RADII[scene.size] + 1e-6


def test_a_clip_follows_from_its_seed_alone():
    scene = scenes(True)[3]
    first, again = (render(scene, np.random.default_rng(5)) for _ in range(2))
    assert first.shape == (FRAMES, SIDE, SIDE, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, render(scene, np.random.default_rng(6)))
    some = [pair.frames for pair in pairs(5, SCRAPED, 9)]
    assert np.array_equal(some[4], list(pairs(5, SCRAPED, 9))[4].frames)


def test_every_word_has_a_token_and_full_captions_fit():
    from reelign.miniature.build import TEXT_LENGTH, build_tokenizer

    tokenizer, generator = build_tokenizer(), np.random.default_rng(0)
    unknown = tokenizer.unk_token_id
    for scene in scenes(True)[::5]:
        for prompt in (full_prompt(scene), full_prompt(scene, generator), user_prompt(scene, generator)):
            ids = tokenizer(prompt.text)["input_ids"]
            assert unknown not in ids
            assert len(ids) <= TEXT_LENGTH
    assert len(vocabulary()) == len(set(vocabulary()))


def test_a_user_prompt_states_what_it_is_judged_by():
    generator = np.random.default_rng(1)
    for scene in scenes(True)[::9]:
        prompt = user_prompt(scene, generator)
        assert {"colour", "shape", "motion"} <= set(prompt.stated)
        assert len(prompt.text.split()) <= 14


def test_a_careless_caption_calls_looks_by_their_neighbours_and_names_what_happens_rightly():
    scene = scenes(False)[40]
    captions = [careless_caption(scene, np.random.default_rng(i), confused=0.4, missing=0.0) for i in range(400)]
    for name, neighbours in NEIGHBOURS.items():
        told = getattr(scene, name)
        wrong = [text for text in captions if told not in text.split()]
        assert 0.3 < len(wrong) / len(captions) < 0.5, name
        assert all(any(other in text.split() for other in neighbours[told]) for text in wrong)
    assert all(scene.shape in text and f"moving {scene.motion}" in text and "slowly" in text for text in captions)
    faultless = careless_caption(scene, np.random.default_rng(0), confused=0.0, missing=0.0)
    assert sorted(faultless.split()) == sorted(full_caption(scene).split())


def test_words_are_left_out_at_their_rate():
    scene = scenes(False)[40]
    full = len(full_caption(scene).split())
    words = [len(careless_caption(scene, np.random.default_rng(i), 0.0, missing=0.2).split()) for i in range(300)]
    assert 0.17 < 1 - np.mean(words) / full < 0.23


def test_confusions_never_state_a_held_out_triple():
    near = [scene for scene in scenes(False) if replace(scene, colour=NEIGHBOURS["colour"][scene.colour][0]).held_out]
    assert near
    for scene in near[::5]:
        text = careless_caption(scene, np.random.default_rng(0), confused=1.0, missing=0.0)
        assert scene.colour in text.split()
        assert scene.size not in text.split()


def test_planted_defects_are_of_the_kinds_that_were_asked_for_and_as_many():
    """The light of a clean clip stands still; a flickering one's does not, and nothing else of it is changed."""
    quality = PairQuality(defects=0.6, kinds=("flicker",))
    found = list(pairs(60, quality, seed=3))
    unsteady = [pair.frames[:, 0, 0].astype(float).std(0).max() > 2 for pair in found]
    assert 0.4 < np.mean(unsteady) < 0.8
    assert all(judge(pair.frames, pair.scene).text == 1 for pair in found)
    assert not any(pair.frames[:, 0, 0].std(0).any() for pair in pairs(20, CLEAN, seed=3))


def test_planted_defects_are_as_strong_as_was_asked_for():
    spread = {
        strength: np.mean([pair.frames[:, 0, 0].std(0).max() for pair in pairs(30, quality, seed=3)])
        for strength in ((0.1, 0.2), (0.9, 1.0))
        for quality in [PairQuality(defects=1.0, kinds=("flicker",), strength=strength)]
    }
    assert spread[0.9, 1.0] > 4 * spread[0.1, 0.2] > 0
