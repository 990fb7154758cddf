import numpy as np
import pytest

from reelign.evaluate.battery import BatteryConfig, tasks
from reelign.miniature.captions import full_prompt, user_prompt, vocabulary
from reelign.miniature.pairs import CLEAN, SCRAPED, pairs
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
            if quality is CLEAN:
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
