"""The eye sees on held-out scenes what it learned on others: captions, defects; and it can be made again."""

import numpy as np
import pytest
import torch

from reelign.errors import ReelignError
from reelign.miniature import train_critic, train_eye
from reelign.miniature.captions import full_prompt, user_prompt
from reelign.miniature.critic import WEIGHTS, load_critic
from reelign.miniature.eye import Sight, load_eye, words_of
from reelign.miniature.lessons import AT_ONCE
from reelign.miniature.render import DEFECTS, defective, render, spoiled
from reelign.miniature.world import FRAMES, SIDE, scenes
from reelign.models.load import load_model

HELD_OUT = scenes(held_out=True)


@pytest.fixture(scope="module")
def eye():
    return load_eye()


@pytest.fixture(scope="module")
def model():
    return load_model("miniature", device="cpu")


@torch.no_grad()
def said(eye, model, videos, texts) -> Sight:
    latents = model.encode_video(torch.from_numpy(np.stack(videos)))
    return eye(latents, words_of(model.encode_text(texts)))


@pytest.mark.parametrize("style", ["full", "user"])
def test_it_prefers_the_caption_of_a_clip_to_one_that_names_another_look(eye, model, style):
    """Held-out triples: it has never seen this colour, shape and motion together."""
    videos, right, wrong = [], [], []
    for number in range(48):
        source = np.random.default_rng((1, number))
        scene, other = (HELD_OUT[int(source.integers(len(HELD_OUT)))] for _ in range(2))
        if scene.colour == other.colour or scene.shape == other.shape:
            continue
        videos.append(render(scene, source))
        for words, shown in ((right, scene), (wrong, other)):
            words.append((full_prompt(shown) if style == "full" else user_prompt(shown, source)).text)
    fits = said(eye, model, videos, right).match > said(eye, model, videos, wrong).match
    assert float(fits.float().mean()) > 0.9


@pytest.mark.parametrize("defect", DEFECTS)
def test_it_sees_each_planted_defect_on_scenes_it_has_not_learned_on(eye, model, defect):
    place = DEFECTS.index(defect)
    clean, spoilt, texts = [], [], []
    for number in range(24):
        scene = HELD_OUT[number * 7 % len(HELD_OUT)]
        if scene.motion == "still" and defect == "freeze":
            continue
        clean.append(render(scene, np.random.default_rng((2, number))))
        spoilt.append(defective(scene, np.random.default_rng((2, number)), defect, 1.0))
        texts.append(full_prompt(scene).text)
    higher = said(eye, model, spoilt, texts).defects[:, place] > said(eye, model, clean, texts).defects[:, place]
    assert float(higher.float().mean()) > 0.9


def test_one_defect_alone_is_what_spoiled_and_defective_both_make():
    scene = HELD_OUT[3]
    for defect in DEFECTS:
        one, centres = spoiled(scene, np.random.default_rng(4), {defect: 0.7})
        assert centres.shape == (FRAMES, 2)
        assert one.shape == (FRAMES, SIDE, SIDE, 3)
        assert np.array_equal(one, defective(scene, np.random.default_rng(4), defect, 0.7))


def test_what_it_says_of_a_clip_does_not_depend_on_the_others(eye, model):
    videos = [render(HELD_OUT[number], np.random.default_rng(number)) for number in range(4)]
    texts = [full_prompt(HELD_OUT[number]).text for number in range(4)]
    together = said(eye, model, videos, texts)
    for number in range(4):
        alone = said(eye, model, videos[number : number + 1], texts[number : number + 1])
        assert torch.allclose(alone.match[0], together.match[number], atol=1e-4)
        assert torch.allclose(alone.defects[0], together.defects[number], atol=1e-4)
        for name, logits in together.looks.items():
            assert torch.allclose(alone.looks[name][0], logits[number], atol=1e-3)


@pytest.fixture
def small(monkeypatch):
    """Two steps on two handfuls of lessons, and one scene in twenty for what is usual."""
    for name, value in (("CLIPS", 2 * AT_ONCE), ("BATCH", 8), ("STEPS", 2)):
        monkeypatch.setattr(train_eye, name, value)
    monkeypatch.setattr(train_critic, "STEPS", 2)
    monkeypatch.setattr(train_critic, "scenes", lambda held_out: scenes(held_out=held_out)[::20])


def test_it_can_be_trained_again_from_the_shipped_denoiser_to_the_same_weights(tmp_path, small):
    one, two = (load_critic(train_eye.train_eye(tmp_path / name)).state_dict() for name in ("one", "two"))
    assert all(torch.equal(two[name], value) for name, value in one.items())
    start = load_model("miniature", device="cpu").denoisers()["transformer"].state_dict()
    name = "patch_embedding.weight"
    assert not torch.equal(one[f"eye.denoiser.{name}"], start[name].half().float())


def test_training_that_ended_between_the_eye_and_the_critic_goes_on_with_the_critic(tmp_path, small):
    folder = train_eye.train_eye(tmp_path)
    whole, written = load_critic(folder).state_dict(), (folder / "eye.safetensors").stat().st_mtime_ns
    (folder / WEIGHTS).unlink()
    assert all(
        torch.equal(whole[name], value)
        for name, value in load_critic(train_eye.train_eye(tmp_path)).state_dict().items()
    )
    assert (folder / "eye.safetensors").stat().st_mtime_ns == written


def test_a_missing_eye_is_named(tmp_path):
    with pytest.raises(ReelignError, match="eye is missing"):
        load_eye(tmp_path)
