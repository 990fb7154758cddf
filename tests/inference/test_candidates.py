"""What is illegal or pointless is known before any time is spent, with the reason."""

import pytest

from reelign.inference.acceleration import Acceleration
from reelign.inference.candidates import KINDS, candidates, refusal
from reelign.models.block_cache import BlockCacheConfig
from reelign.models.kv_cache import CausalConfig
from reelign.models.load import load_model
from reelign.sampling.sample import SampleConfig
from tiny_wan import tiny_wan

GUIDED = SampleConfig(steps=20, guidance_scale=3.0)
FIRST_BLOCK = Acceleration(cache=BlockCacheConfig(kind="first_block", threshold=0.1))
MAG = Acceleration(cache=BlockCacheConfig(kind="mag", threshold=0.1))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_wan(tmp_path_factory.mktemp("wan") / "wan"), device="cpu")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    model = load_model(tiny_wan(tmp_path_factory.mktemp("wan") / "causal"), device="cpu")
    model.make_causal(CausalConfig(block=1))
    return model


def refused(model, sampler, kind, frames=5):
    return {one.label: one.refused for one in candidates(model, sampler, frames, [kind])}


def test_every_kind_has_a_row_and_every_row_can_be_tried_or_says_why_not(model):
    found = candidates(model, GUIDED, 5)
    assert {one.kind for one in found} == set(KINDS)
    assert all(one.refused or one.acceleration for one in found)
    assert len({one.label for one in found}) == len(found)


def test_a_sampler_of_few_steps_gets_no_cache_and_no_step_more(model):
    few = SampleConfig(steps=8, guidance_scale=3.0)
    assert all(refused(model, few, "cache").values())
    assert "8 steps" in refusal(model, few, FIRST_BLOCK)
    assert "8 steps" in refusal(model, GUIDED, FIRST_BLOCK.joined(Acceleration(steps=8)))
    assert not refusal(model, GUIDED, FIRST_BLOCK.joined(Acceleration(steps=9)))
    assert list(refused(model, few, "steps")) == ["6 steps", "5 steps", "4 steps", "3 steps", "2 steps"]
    assert list(refused(model, SampleConfig(steps=2), "steps").values()) == ["the sampler takes 2 already"]


def test_guidance_intervals_cut_the_evaluations_that_they_say(model):
    """65 % of 20 steps are 13, half are 10, and from 10 % to 60 % are 10."""
    guided = [
        sum(low <= sigma <= high for sigma in GUIDED.grid[:-1].tolist())
        for one in candidates(model, GUIDED, 5, ["guidance"])
        if one.acceleration and one.acceleration.guidance_interval
        for low, high in [one.acceleration.guidance_interval]
    ]
    assert guided == [13, 10, 10]


def test_without_guidance_there_is_no_interval_and_pyramid_may_be_tried(model):
    plain = SampleConfig(steps=20, guidance_scale=1.0)
    assert list(refused(model, plain, "guidance").values()) == ["the sampler takes no guidance"]
    assert not refused(model, plain, "cache")["cache pyramid every 2"]
    assert "other's attention" in refused(model, GUIDED, "cache")["cache pyramid every 2"]


def test_caches_that_count_steps_are_refused_where_the_count_would_be_wrong(model, tmp_path):
    late = Acceleration(guidance_interval=(0.2, 0.9))
    assert "begins late" in refusal(model, GUIDED, MAG.joined(late))
    assert not refusal(model, GUIDED, FIRST_BLOCK.joined(late))
    experts = load_model(tiny_wan(tmp_path / "a14b", "2.2-a14b"), device="cpu")
    assert "two experts" in refusal(experts, GUIDED, MAG)
    assert not refusal(experts, GUIDED, FIRST_BLOCK)


def test_a_cache_and_compiled_blocks_exclude_each_other(model):
    assert "breaks what is compiled" in refusal(model, GUIDED, FIRST_BLOCK.joined(Acceleration(compile=True)))


def test_a_causal_model_may_be_compiled_since_its_blocks_share_code_for_any_past(student):
    assert list(refused(student, SampleConfig(steps=4, guidance_scale=1.0), "compile").values()) == [""]


def test_no_compiler_means_no_compiling(model, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in refusal(model, GUIDED, Acceleration(compile=True))


def test_a_network_without_registered_blocks_gets_no_cache(tmp_path):
    model = load_model(tiny_wan(tmp_path / "wan"), device="cpu")
    network = model.pipeline.transformer
    network.blocks[0].__class__ = type("OtherBlock", (type(network.blocks[0]),), {})
    assert refusal(model, GUIDED, FIRST_BLOCK) == "diffusers has no block cache for WanTransformer3DModel"


def test_on_the_cpu_other_backends_and_offload_are_pointless(model):
    assert set(refused(model, GUIDED, "attention").values()) == {"needs a GPU; this model is on the CPU"}
    assert all(refused(model, GUIDED, "offload").values())


def test_only_a_causal_model_is_offered_shorter_windows(model, student):
    plain = SampleConfig(steps=4, guidance_scale=1.0)
    assert list(refused(model, plain, "window").values()) == ["the model is not causal: it keeps no past"]
    assert list(refused(student, plain, "window", frames=3)) == ["window 2", "window 1"]
    assert "its own only" in next(iter(refused(student, plain, "window", frames=1).values()))
    assert "block after block" in refusal(student, SampleConfig(steps=20, guidance_scale=1.0), FIRST_BLOCK)
