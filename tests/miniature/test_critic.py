"""The critic hears what is asked for, follows tracks, and holds both against what is seen, on held-out scenes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from reelign.errors import ReelignError
from reelign.miniature.captions import full_prompt, user_prompt
from reelign.miniature.critic import FOLLOWED, LEAST_WAY, NAMES, fit, load_critic, read_pixels, spoken_words
from reelign.miniature.eye import EYE, words_of
from reelign.miniature.render import render, spoiled
from reelign.miniature.signals import BOUND
from reelign.miniature.signals import NAMES as SIGNALS
from reelign.miniature.world import FRAMES, MOTIONS, SIDE, SPEEDS, TRAVEL, VALUES, scenes
from reelign.models.load import load_model

HELD_OUT = scenes(held_out=True)


@pytest.fixture(scope="module")
def critic():
    return load_critic()


@pytest.fixture(scope="module")
def model():
    return load_model("miniature", device="cpu")


@torch.no_grad()
def said(critic, model, videos, texts) -> dict[str, np.ndarray]:
    latents = model.encode_video(torch.from_numpy(np.stack(videos)))
    opinions = critic(latents, words_of(model.encode_text(texts)), spoken_words(texts), *read_pixels(videos))
    return dict(zip(NAMES, opinions.T.numpy(), strict=True))


@pytest.mark.parametrize("style", ["full", "user"])
def test_it_hears_every_attribute_of_captions_of_held_out_scenes(critic, style):
    source, right = np.random.default_rng(5), []
    prompts = [full_prompt(scene) if style == "full" else user_prompt(scene, source) for scene in HELD_OUT[::5]]
    heard = critic.asked(spoken_words([prompt.text for prompt in prompts]))
    for name, values in VALUES.items():
        for prompt, place in zip(prompts, heard[name].argmax(-1).tolist(), strict=True):
            asked = getattr(prompt.scene, name) if name in prompt.stated else None
            right.append(asked == (*values, None)[place])
    assert np.mean(right) > 0.98


def test_it_follows_the_tracks_of_held_out_scenes_though_they_tremble(critic):
    shown = HELD_OUT[::6]
    videos = [spoiled(scene, np.random.default_rng(n), {"jerk": 0.4})[0] for n, scene in enumerate(shown)]
    found, _ = critic.followed(read_pixels(videos)[0])
    motions = [MOTIONS[place] == scene.motion for place, scene in zip(found["motion"].argmax(-1), shown, strict=True)]
    speeds = [
        SPEEDS[place] == scene.speed
        for place, scene in zip(found["speed"].argmax(-1), shown, strict=True)
        if scene.motion != "still"
    ]
    assert np.mean(motions) > 0.95
    assert np.mean(speeds) > 0.95


@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_value_lowers_the_opinions_of_its_attribute_most(critic, model, name):
    """The words ask for another value of one attribute than the clip shows."""
    source, videos, right, wrong = np.random.default_rng(8), [], [], []
    for scene in HELD_OUT[:: 11 if name != "speed" else 7]:
        others = [value for value in VALUES[name] if value != getattr(scene, name)]
        if name in ("speed", "motion"):  # what stands still has no speed
            if scene.motion == "still":
                continue
            others = [value for value in others if value != "still"]
        asked = replace(scene, **{name: others[int(source.integers(len(others)))]})
        videos.append(render(scene, source))
        right.append(full_prompt(scene).text)
        wrong.append(full_prompt(asked).text)
    fits, misses = said(critic, model, videos, right), said(critic, model, videos, wrong)
    fall = {opinion: float(np.mean(fits[opinion] - misses[opinion])) for opinion in NAMES if opinion.endswith("fits")}
    own = [opinion for opinion in fall if opinion.startswith(name)]
    assert min(fall[opinion] for opinion in own) > 1
    assert max(fall[opinion] for opinion in fall if opinion not in own) < 0.5
    lower = fits[own[-1]] > misses[own[-1]]
    assert np.mean(lower) > 0.9


def test_the_way_is_the_share_that_the_object_covers(critic):
    """Of an object that goes right by parts of the fast way, and where it is asked to stand still."""
    time = torch.linspace(0, 1, 17)[:, None]
    tracks = torch.stack([16 + part * TRAVEL["fast"] * torch.cat([time, 0 * time], 1) for part in (0.2, 0.6, 0.8, 1.0)])
    texts = ["a large red circle moving right fast on a white background"] * 4
    asked = critic.asked(spoken_words(texts))["motion"].softmax(-1)
    sure = {
        name: torch.full((4, len(values)), -20.0).index_fill(1, torch.tensor(values.index(shown)), 20.0)
        for (name, values), shown in zip(FOLLOWED.items(), ("right", "fast"), strict=True)
    }
    share = critic.way(tracks, sure, asked).exp() - LEAST_WAY
    assert torch.allclose(share, torch.tensor([0.2, 0.6, 0.8, 1.0]), atol=0.06)
    still = critic.asked(spoken_words(["a large red circle standing still on a white background"] * 4))
    assert critic.way(tracks, sure, still["motion"].softmax(-1)).abs().max() < 0.1


def test_what_moves_as_nothing_in_the_world_does_is_astray(critic):
    """A walk at random, and the motions of the world though they tremble."""
    source = np.random.default_rng(3)
    walks = np.cumsum(source.standard_normal((64, FRAMES, 2)), axis=1)
    walks = torch.from_numpy(SIDE / 2 + walks - walks.mean(1, keepdims=True)).float()
    shown = [scene for scene in HELD_OUT[::6] if scene.motion != "still"]
    videos = [spoiled(scene, np.random.default_rng(n), {"jerk": 0.3})[0] for n, scene in enumerate(shown)]
    strays = [
        (one > torch.logsumexp(named["motion"], 1, keepdim=True)).float().mean().item()
        for named, one in map(critic.followed, (walks, read_pixels(videos)[0]))
    ]
    assert strays[0] > 0.7  # some walks go straight
    assert strays[1] < 0.1


def test_held_against_a_clean_clip_that_shows_the_same_contrast_tells_more(critic, model):
    """A yellow object on white has little of it, and nothing is missing."""
    shown = HELD_OUT[::9]
    texts = [full_prompt(scene).text for scene in shown]
    clean, faulty = (
        [spoiled(scene, np.random.default_rng(n), strengths)[0] for n, scene in enumerate(shown)]
        for strengths in ({}, {"low contrast": 0.6})
    )
    pixels = [read_pixels(videos)[1][:, SIGNALS.index("contrast")].numpy() for videos in (clean, faulty)]
    beyond = [said(critic, model, videos, texts)["contrast beyond what is due"] for videos in (clean, faulty)]
    assert apart(*beyond) > 1.2 * apart(*pixels)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """Distance of the means, in deviations."""
    return float(abs(one.mean() - other.mean()) / np.sqrt((one.var() + other.var()) / 2))


def test_what_is_not_mentioned_neither_fits_nor_misses():
    shown = torch.tensor([[3.0, -1.0, 0.0]])
    assert torch.equal(fit(shown, torch.tensor([[0.0, 0.0, 0.0, 1.0]])), torch.zeros(1, 2))
    likely, clear = fit(shown, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))[0]
    assert likely == shown.softmax(-1)[0, 0]
    assert clear == torch.tanh(torch.tensor(3.0 / 4))
    assert torch.allclose(
        fit(shown, torch.tensor([[0.5, 0.5, 0.0, 0.0]])),
        0.5 * (fit(shown, torch.eye(4)[:1]) + fit(shown, torch.eye(4)[1:2])),
    )


def test_opinions_are_bounded_and_those_of_a_clip_do_not_depend_on_the_others(critic, model):
    videos = [render(HELD_OUT[number], np.random.default_rng(number)) for number in range(3)]
    videos.append(np.zeros_like(videos[0]))
    texts = [full_prompt(HELD_OUT[number]).text for number in range(4)]
    together = said(critic, model, videos, texts)
    for number in range(4):
        alone = said(critic, model, videos[number : number + 1], texts[number : number + 1])
        assert all(np.isclose(alone[name][0], together[name][number], atol=1e-3) for name in NAMES)
    assert max(np.abs(value).max() for value in together.values()) <= BOUND


def test_a_missing_critic_is_named(tmp_path):
    for name in ("eye.json", "eye.safetensors"):
        (tmp_path / name).write_bytes((EYE / name).read_bytes())
    with pytest.raises(ReelignError, match="critic is missing"):
        load_critic(tmp_path)
