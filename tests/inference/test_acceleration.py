"""An acceleration is data; it is put on a loaded model and taken off again."""

import importlib.util

import pytest
import torch
from pydantic import ValidationError

from reelign.errors import ReelignError
from reelign.inference.acceleration import Acceleration, accelerate, calibrated
from reelign.models.block_cache import BlockCacheConfig
from reelign.models.kv_cache import CausalConfig
from reelign.models.load import load_model
from reelign.sampling.noise import initial_noise
from reelign.sampling.sample import SampleConfig, sample
from tiny_wan import tiny_wan

SAMPLER = SampleConfig(steps=10, guidance_scale=3.0)
FIRST_BLOCK = BlockCacheConfig(kind="first_block", threshold=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_wan(tmp_path_factory.mktemp("wan") / "wan"), device="cpu")


def clip(model, sampler=SAMPLER):
    noise = initial_noise([(0, "clip", 0)], model.latent_shape(5, 32, 32))
    return sample(model, model.encode_text(["a red ball"]), noise, sampler, model.encode_text([""]))


def test_two_accelerations_together_have_the_parts_of_both():
    both = Acceleration(steps=12, cache=FIRST_BLOCK).joined(Acceleration(steps=10, compile=True))
    assert both == Acceleration(steps=10, cache=FIRST_BLOCK, compile=True)
    assert both.label == "10 steps + cache first_block 10 + compile"
    assert Acceleration().label == "as it is"


def test_steps_and_guidance_belong_to_the_sampler():
    faster = Acceleration(steps=6, guidance_interval=(0.5, 1.0)).sampler(SAMPLER)
    assert faster == SAMPLER.model_copy(update={"steps": 6, "guidance_interval": (0.5, 1.0)})
    assert Acceleration(compile=True).sampler(SAMPLER) == SAMPLER


def test_an_unknown_key_is_an_error():
    with pytest.raises(ValidationError):
        Acceleration.model_validate({"stepps": 4})


def test_a_cache_is_on_within_and_off_after(model):
    plain = clip(model).latents
    with accelerate(model, Acceleration(cache=FIRST_BLOCK), SAMPLER):
        assert not torch.equal(clip(model).latents, plain)
    assert model.block_cache is None
    assert torch.equal(clip(model).latents, plain)


def test_the_cache_mag_is_told_the_models_own_ratios(model):
    wanted = Acceleration(cache=BlockCacheConfig(kind="mag", threshold=0.5))
    with pytest.raises(ReelignError, match="`ratios`, which `reelign plan` measures"):
        accelerate(model, wanted, SAMPLER)
    told = calibrated(wanted, model, lambda: clip(model))
    assert told.cache is not None
    assert len(told.cache.ratios) == SAMPLER.steps
    plain = clip(model).latents
    with accelerate(model, told, SAMPLER):
        assert not torch.equal(clip(model).latents, plain)


def test_an_attention_backend_gives_the_same_up_to_rounding_and_is_taken_back(model):
    plain = clip(model).latents
    with accelerate(model, Acceleration(attention="_native_math"), SAMPLER):
        torch.testing.assert_close(clip(model).latents, plain, atol=1e-4, rtol=1e-4)  # float32, ten guided steps
    assert torch.equal(clip(model).latents, plain)


def test_a_backend_that_is_not_there_is_an_error_that_names_it(model):
    with pytest.raises(ReelignError, match="attention backend 'flash' cannot be used"):
        accelerate(model, Acceleration(attention="flash"), SAMPLER)


def test_what_was_applied_before_an_error_is_taken_off(model):
    plain = clip(model).latents
    with pytest.raises(ReelignError):
        accelerate(
            model, Acceleration(attention="_native_math", cache=BlockCacheConfig(kind="mag", threshold=1)), SAMPLER
        )
    assert torch.equal(clip(model).latents, plain)


def test_blocks_are_marked_for_compilation_and_unmarked(model):
    with accelerate(model, Acceleration(compile=True), SAMPLER):
        assert all(block._compiled_call_impl is not None for block in model.pipeline.transformer.blocks)
    assert all(block._compiled_call_impl is None for block in model.pipeline.transformer.blocks)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed")
def test_quantisation_without_torchao_says_what_to_install(model):
    with pytest.raises(ReelignError, match="pip install torchao"):
        accelerate(model, Acceleration(quantise="int8_weight"), SAMPLER)


def test_quantised_weights_come_back_as_they_were(model):
    pytest.importorskip("torchao")
    plain = clip(model).latents
    with accelerate(model, Acceleration(quantise="int8_weight"), SAMPLER):
        assert not torch.equal(clip(model).latents, plain)
    assert torch.equal(clip(model).latents, plain)


def test_only_a_causal_model_has_a_window(tmp_path):
    model = load_model(tiny_wan(tmp_path / "wan"), device="cpu")
    with pytest.raises(ReelignError, match="is not causal"):
        accelerate(model, Acceleration(window=1), SAMPLER)
    model.make_causal(CausalConfig(block=1))
    assert model.causal is not None
    with accelerate(model, Acceleration(window=1), SAMPLER):
        assert model.causal.config.window == 1
    assert model.causal.config.window is None
