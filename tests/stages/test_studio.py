"""A cache of clips: what is rendered, what is not rendered again, and what gets a place of its own."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from reelign.evaluate.battery import BatteryConfig, generate_batch
from reelign.models.load import load_model
from reelign.sampling.sample import SampleConfig
from reelign.stages import studio as module
from reelign.stages.studio import Shot, Studio
from reelign.train.parallel import World

ALONE = World(0, 1, torch.device("cpu"), None)
SIZE = BatteryConfig(frames=5, batch_size=2)
SAMPLER = SampleConfig(steps=2, guidance_scale=2.0)
RED, BLUE = "a red ball going left", "a blue box going right"
SHOTS = [Shot(RED, 0), Shot(RED, 1), Shot(BLUE, 0)]


@pytest.fixture(scope="module")
def model():
    return load_model("miniature", device="cpu")


@pytest.fixture
def asked(monkeypatch):
    """What was rendered, batch by batch."""
    found = []

    def recorded(model, prompts, *settings):
        found.append(list(prompts))
        return generate_batch(model, prompts, *settings)

    monkeypatch.setattr(module, "generate_batch", recorded)
    return found


def studio(model, cache: Path, sampler=SAMPLER, size=SIZE, seed=0) -> Studio:
    return Studio(model, sampler, size, seed, cache, ALONE)


def test_a_shot_is_rendered_once_and_shots_of_a_take_share_their_noise(model, asked, tmp_path):
    made = studio(model, tmp_path)
    first = made.film(SHOTS)
    assert asked == [[(RED, "take 0"), (RED, "take 1")], [(BLUE, "take 0")]]
    assert (made.rendered, made.reused, made.nfe) == (3, 0, 3 * 2 * 2)  # clips x steps x guidance
    assert list(first) == SHOTS
    assert {film.shape for film in first.values()} == {(5, 32, 32, 3)}
    again = made.film([SHOTS[2], SHOTS[0]])
    assert len(asked) == 2
    assert (made.rendered, made.reused, made.nfe) == (3, 2, 12)
    assert all(np.array_equal(film, first[shot]) for shot, film in again.items())
    assert not np.array_equal(first[SHOTS[0]], first[SHOTS[1]])
    assert not np.array_equal(first[SHOTS[0]], first[SHOTS[2]])


def test_a_request_may_name_a_shot_twice_and_may_be_empty(model, asked, tmp_path):
    made = studio(model, tmp_path)
    found = made.film([SHOTS[0], SHOTS[2], SHOTS[0], SHOTS[0]])
    assert list(found) == [SHOTS[0], SHOTS[2]]
    assert [*chain(*asked)] == [(RED, "take 0"), (BLUE, "take 0")]
    assert (made.rendered, made.reused) == (2, 0)
    assert made.film([]) == {}
    assert len(asked) == 1


def test_another_studio_of_the_same_settings_finds_what_the_first_has_rendered(model, asked, tmp_path):
    first = studio(model, tmp_path).film(SHOTS)
    second = studio(model, tmp_path)
    new = Shot(BLUE, 1)
    found = second.film([*SHOTS, new])
    assert [*chain(*asked)][3:] == [(BLUE, "take 1")]
    assert (second.rendered, second.reused) == (1, 3)
    assert all(np.array_equal(found[shot], first[shot]) for shot in SHOTS)


def test_two_studios_at_work_see_each_others_clips(model, asked, tmp_path):
    one, other = studio(model, tmp_path), studio(model, tmp_path)
    one.film(SHOTS[:1])
    other.film(SHOTS[:2])
    one.film(SHOTS[:2])
    assert [*chain(*asked)] == [(RED, "take 0"), (RED, "take 1")]


def test_the_same_shot_has_the_same_pixels_wherever_it_is_rendered(model, tmp_path):
    first, second = (studio(model, tmp_path / name).film(SHOTS) for name in ("a", "b"))
    assert all(np.array_equal(first[shot], second[shot]) for shot in SHOTS)
    # In a batch of another size the last bit of a sum may differ, and with it the rounding of a pixel.
    alone = studio(model, tmp_path / "c", size=SIZE.model_copy(update={"batch_size": 1})).film(SHOTS)
    for shot in SHOTS:
        assert np.abs(alone[shot].astype(int) - first[shot].astype(int)).max() <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": SampleConfig(steps=3, guidance_scale=2.0)},
        {"sampler": SampleConfig(steps=2, guidance_scale=3.0)},
        {"sampler": SampleConfig(steps=2, guidance_scale=2.0, negative_prompt="grey")},
        {"size": BatteryConfig(frames=9, batch_size=2)},
        {"size": BatteryConfig(frames=5, height=24, batch_size=2)},
        {"size": BatteryConfig(frames=5, width=24, batch_size=2)},
        {"seed": 1},
    ],
    ids=str,
)
def test_what_changes_the_clips_has_a_folder_of_its_own(model, tmp_path, changes):
    assert studio(model, tmp_path, **changes).folder != studio(model, tmp_path).folder


def test_what_does_not_change_the_clips_has_not(model, tmp_path):
    size = BatteryConfig(frames=5, batch_size=7, count=3, keep_clips=0, style="user")
    assert studio(model, tmp_path, size=size).folder == studio(model, tmp_path).folder


def test_other_weights_and_other_types_of_weights_have_a_folder_of_their_own(model, tmp_path):
    other = tmp_path / "other"
    model.save(other)
    [path] = (other / "transformer").glob("*.safetensors")
    weights = load_file(path)
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1e-6}, path, {"format": "pt"})
    models = [model, load_model(other, device="cpu"), load_model("miniature", "bfloat16", "cpu")]
    assert len({studio(made, tmp_path / "clips").folder for made in models}) == 3


def test_half_a_file_is_none_and_is_written_over(model, asked, tmp_path):
    whole = studio(model, tmp_path)
    films = whole.film(SHOTS[:2])
    [path] = whole.folder.iterdir()
    assert path.suffix == ".safetensors"
    path.rename(path.with_suffix(".partial"))
    path.with_suffix(".partial").write_bytes(path.with_suffix(".partial").read_bytes()[:1000])
    again = studio(model, tmp_path)
    found = again.film(SHOTS[:2])
    assert (again.rendered, again.reused) == (2, 0)
    assert all(np.array_equal(found[shot], films[shot]) for shot in SHOTS[:2])
    assert [left.suffix for left in again.folder.iterdir()] == [".safetensors"]
