"""What a clip costs is counted, and the teacher that is run as cheaply is never cheaper than the student."""

import pytest
import torch

from reelign.evaluate.bargain import Offer, bargains, cheaper_teachers, evaluations, prices
from reelign.evaluate.battery import BatteryConfig, run_battery
from reelign.evaluate.drift import TIMES, drift, quarters
from reelign.models.base import VideoModel
from reelign.models.kv_cache import CausalConfig
from reelign.models.load import load_model
from reelign.sampling.sample import SampleConfig

SIZE = BatteryConfig(count=2, validation_count=2, batch_size=2, keep_clips=0)
DEPLOYED = SampleConfig(steps=3, guidance_scale=2.0)
FEW = SampleConfig(steps=2, solver="renoise", guidance_scale=1.0)


@pytest.fixture(scope="module")
def teacher():
    return load_model("miniature", device="cpu")


@pytest.fixture(scope="module")
def student():
    model = load_model("miniature", device="cpu")
    model.make_causal(CausalConfig(block=1, window=3))
    return model


def counted(model: VideoModel, monkeypatch, work) -> float:
    """Network evaluations that happen, each by its share of the frames of a clip."""
    total, velocity = 0.0, type(model).velocity

    def watched(self, latents, sigma, conditions):
        nonlocal total
        total += len(latents) * latents.shape[2] / 5
        return velocity(self, latents, sigma, conditions)

    monkeypatch.setattr(type(model), "velocity", watched)
    work()
    return total


@pytest.mark.parametrize(
    "sampler",
    [DEPLOYED, FEW, SampleConfig(steps=4, guidance_scale=2.0, guidance_interval=(0.5, 1.0))],
    ids=["guided", "few", "interval"],
)
def test_the_price_is_what_the_sampler_spends(teacher, monkeypatch, sampler):
    price = prices([Offer("x", teacher, sampler)], SIZE)["x"]
    spent = counted(teacher, monkeypatch, lambda: run_battery(teacher, SIZE, sampler))
    assert price.nfe == pytest.approx(spent / 2)
    assert price.first_frame > 0


def test_a_causal_student_pays_for_what_it_remembers_and_shows_its_first_frame_early(student, monkeypatch):
    price = prices([Offer("x", student, FEW)], SIZE)["x"]
    spent = counted(student, monkeypatch, lambda: run_battery(student, SIZE, FEW))
    assert price.nfe == pytest.approx(spent / 2) == pytest.approx(2.8)
    assert price.first_frame < price.seconds


def test_the_teacher_gets_as_many_evaluations_in_both_ways(teacher, student):
    own = evaluations(student, FEW, SIZE)
    assert own == prices([Offer("x", student, FEW)], SIZE)["x"].nfe == 2.8
    assert [offer.sampler.steps for offer in cheaper_teachers(teacher, DEPLOYED, own)] == [1, 3]  # of 3 evaluations
    guided, plain = cheaper_teachers(teacher, DEPLOYED, 4)
    assert (guided.sampler.steps, guided.sampler.guidance_scale) == (2, 2.0)
    assert (plain.sampler.steps, plain.sampler.guidance_scale) == (4, 1.0)
    found = prices([guided, plain], SIZE)
    assert [found[offer.name].nfe for offer in (guided, plain)] == [4, 4]


def test_every_row_compares_with_the_teacher_and_with_the_student(teacher, student):
    offers = [Offer("teacher", teacher, DEPLOYED), Offer("student", student, FEW)]
    found = {offer.name: run_battery(offer.model, SIZE, offer.sampler) for offer in offers}
    rows = bargains(found["teacher"], found, prices(offers, SIZE), "student")
    assert [row["name"] for row in rows] == ["teacher", "student"]
    assert rows[0]["gsb"]["overall"]["value"] == 0
    assert rows[1]["student"]["overall"]["value"] == 0
    assert rows[0]["student"] == rows[1]["gsb"]


def test_a_long_rollout_is_judged_in_parts_of_the_trained_length(student):
    found, film = drift(student, SIZE, FEW)
    assert len(found["parts"]) == TIMES
    assert all(0 <= part["value"] <= 1 for part in found["parts"])
    assert found["kept"] == pytest.approx(found["parts"][-1]["value"] / found["parts"][0]["value"])
    assert film.shape == (1 + 4 * (4 * 5 - 1), 32, 32, 3)
    assert sum(len(part) for part in quarters(film)) == len(film)
    assert torch.from_numpy(film).dtype == torch.uint8
