"""The miniature's reward sees a prompt and a clip, nothing else, and judges as the training judge does."""

import numpy as np
import pytest

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.miniature.captions import full_prompt, read_prompt, user_prompt
from reelign.miniature.render import defective, render
from reelign.miniature.training_judge import training_judge
from reelign.miniature.world import FPS, scenes
from reelign.rewards.base import RewardError
from reelign.rewards.miniature import MiniatureReward
from reelign.rewards.pixels import Pixels


def test_every_prompt_is_read_as_it_was_meant():
    generator = np.random.default_rng(0)
    for scene in scenes(False)[::3] + scenes(True):
        for prompt in (full_prompt(scene, generator), user_prompt(scene, generator), user_prompt(scene, generator)):
            found = read_prompt(prompt.text)
            assert found is not None, prompt.text
            assert found.stated == prompt.stated, prompt.text
            assert all(getattr(found.scene, name) == getattr(scene, name) for name in prompt.stated), prompt.text


@pytest.mark.parametrize("text", ["", "going on", "a cat dances on a roof", "a red ball on a roof"])
def test_a_prompt_that_names_nothing_or_something_of_another_world_is_none(text):
    assert read_prompt(text) is None


def test_what_a_prompt_leaves_out_is_not_asked_for():
    found = read_prompt("ball going left")
    assert found is not None
    assert found.stated == ("shape", "motion")
    assert (found.scene.shape, found.scene.motion) == ("circle", "left")
    scene = next(s for s in scenes(False) if s.shape == "circle" and s.motion == "left" and s.colour == "cyan")
    clip = Clip(render(scene, np.random.default_rng(0)), FPS, "ball going left", "any colour")
    assert MiniatureReward()([clip])["text"].tolist() == [1.0]


def test_the_reward_is_the_training_judges_verdict():
    generator = np.random.default_rng(1)
    chosen = scenes(False)[::97]
    videos = [
        defective(scene, generator, "noise") if i % 2 else render(scene, generator) for i, scene in enumerate(chosen)
    ]
    clips = [Clip(v, FPS, full_prompt(s).text, s.id) for s, v in zip(chosen, videos, strict=True)]
    found = MiniatureReward()(clips)
    for row, (scene, video) in enumerate(zip(chosen, videos, strict=True)):
        wanted = training_judge(video, scene).scores
        assert {name: values[row] for name, values in found.items()} == wanted
    assert found["visual"][0] > found["visual"][1]


def test_a_clip_of_another_rate_and_size_is_brought_to_the_worlds():
    scene = next(s for s in scenes(False) if s.motion == "left" and s.speed == "slow")
    video = render(scene, np.random.default_rng(2))
    twice = Clip(
        np.repeat(np.repeat(np.repeat(video, 2, 0), 2, 1), 2, 2)[:-1], 2 * FPS, full_prompt(scene).text, "twice"
    )
    found = MiniatureReward()([twice])
    assert found["text"].tolist() == [1.0]
    assert found["motion"][0] > 0.8


def test_a_prompt_in_other_words_is_an_error_that_names_the_clip():
    scene = scenes(False)[0]
    video = render(scene, np.random.default_rng(0))
    with pytest.raises(RewardError, match="'a cat' says something that is not") as caught:
        MiniatureReward()([Clip(video, FPS, full_prompt(scene).text, "fine"), Clip(video, FPS, "a cat", "cat")])
    assert caught.value.clips == ("cat",)


def test_pixels_measure_without_weights():
    scene = next(s for s in scenes(False) if s.motion == "circling" and s.background == "black")
    generator = np.random.default_rng(3)
    clean, noisy, flickering = (
        Clip(v, FPS, "", name)
        for name, v in {
            "clean": render(scene, generator),
            "noisy": defective(scene, generator, "blur", 1.5),
            "flickering": defective(scene, generator, "flicker", 1.5),
        }.items()
    )
    found = Pixels()([clean, noisy, flickering])
    assert set(found) == {"steadiness", "dynamics", "sharpness", "exposure"}
    assert found["sharpness"][0] > found["sharpness"][1]
    assert found["steadiness"][0] > found["steadiness"][2]


def test_of_the_pixels_only_what_is_asked_for_is_measured(monkeypatch):
    scene = scenes(False)[0]
    clip = Clip(render(scene, np.random.default_rng(0)), FPS, "", "a")
    whole = Pixels()([clip])
    monkeypatch.setattr("reelign.data.metrics.optical_flow", None)  # the dearest part is not needed here
    some = Pixels(("exposure", "sharpness"))([clip])
    assert {name: values.tolist() for name, values in some.items()} == {
        name: whole[name].tolist() for name in ("exposure", "sharpness")
    }
    with pytest.raises(ReelignError, match="no dimension 'beauty'; it scores steadiness"):
        Pixels(("exposure", "beauty"))
