"""A cache saves block evaluations, never mixes clips or the two sides of guidance, and leaves no trace."""

import pytest
import torch
from pydantic import ValidationError

from reelign.models.block_cache import BlockCache, BlockCacheConfig, Magnitudes
from reelign.models.load import load_model
from reelign.sampling.noise import initial_noise
from reelign.sampling.sample import SampleConfig, sample
from tiny_wan import tiny_wan

STEPS = 10
NEVER = [
    BlockCacheConfig(kind="first_block", threshold=0),
    BlockCacheConfig(kind="mag", threshold=0, ratios=(1.0, *[0.9] * (STEPS - 1))),
]
FIRES = [
    BlockCacheConfig(kind="first_block", threshold=10),
    BlockCacheConfig(kind="mag", threshold=10, ratios=(1.0, *[0.9] * (STEPS - 1))),
    BlockCacheConfig(kind="taylorseer", interval=2),
]
BOTH_SIDES = pytest.mark.parametrize("config", FIRES, ids=lambda config: config.kind)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny_wan(tmp_path_factory.mktemp("wan") / "wan"), device="cpu")


def clip(model, prompt="a red ball", negative="", scale=3.0, steps=STEPS):
    """Latents, and how often the last block was computed."""
    counted = []
    handle = model.pipeline.transformer.blocks[-1].ffn.register_forward_pre_hook(lambda *_: counted.append(1))
    noise = initial_noise([(0, "clip", 0)], model.latent_shape(5, 32, 32))
    config = SampleConfig(steps=steps, guidance_scale=scale)
    away = model.encode_text([negative])
    latents = sample(model, model.encode_text([prompt]), noise, config, away).latents
    handle.remove()
    return latents, len(counted)


def cached(model, config, steps=STEPS, guided=True):
    cache = BlockCache(model.denoisers().values(), config, steps, guided)
    model.block_cache = cache
    return cache


@pytest.fixture
def attach(model):
    """Attach a cache, and take it off after the test."""
    attached = []

    def on(config, **settings):
        attached.append(cached(model, config, **settings))

    yield on
    for cache in attached:
        cache.remove()
    model.block_cache = None


@pytest.mark.parametrize("config", NEVER, ids=lambda config: config.kind)
def test_a_cache_that_never_fires_changes_no_bit(model, attach, config):
    plain, _ = clip(model)
    attach(config)
    found, computed = clip(model)
    assert computed == 2 * STEPS
    assert torch.equal(found, plain)


@BOTH_SIDES
def test_a_cache_fires_on_both_sides_of_guidance(model, attach, config):
    plain, _ = clip(model)
    attach(config)
    found, computed = clip(model)
    assert computed < 2 * STEPS
    assert computed % 2 == 0
    assert not torch.equal(found, plain)
    assert torch.isfinite(found).all()


@BOTH_SIDES
def test_the_two_sides_of_guidance_have_a_cache_each(model, attach, config):
    """Led away from its own prompt a clip is led nowhere: v + s (v - v) = v, cached or not, unless the sides mix."""
    attach(config)
    alone, computed = clip(model, scale=1.0)
    beside, both = clip(model, negative="a red ball")
    assert torch.equal(alone, beside)
    assert both == 2 * computed


@BOTH_SIDES
def test_a_clip_does_not_depend_on_the_one_before(model, attach, config):
    attach(config)
    first, _ = clip(model)
    clip(model, prompt="two blue squares that move left")
    again, _ = clip(model)
    assert torch.equal(first, again)


def test_a_guidance_interval_leaves_nothing_behind_for_the_next_clip(model, attach):
    """The unconditional side ends early, so a cache that resets itself after the last step would not."""
    attach(FIRES[1])
    noise = initial_noise([(0, "clip", 0)], model.latent_shape(5, 32, 32))
    config = SampleConfig(steps=STEPS, guidance_scale=3.0, guidance_interval=(0.7, 1.0))
    text, away = model.encode_text(["a red ball"]), model.encode_text([""])
    first, again = (sample(model, text, noise, config, away).latents for _ in range(2))
    assert torch.equal(first, again)


def test_what_is_taken_off_leaves_no_trace(model):
    plain, _ = clip(model)
    for config in FIRES:
        cached(model, config).remove()
        model.block_cache = None
    found, computed = clip(model)
    assert computed == 2 * STEPS
    assert torch.equal(found, plain)


def test_pyramid_computes_attention_at_every_second_step_without_guidance(model, attach):
    attach(BlockCacheConfig(kind="pyramid", interval=2), guided=False)
    counted = []
    handle = model.pipeline.transformer.blocks[0].attn1.to_q.register_forward_pre_hook(lambda *_: counted.append(1))
    clip(model, scale=1.0)
    handle.remove()
    assert 0 < len(counted) < STEPS


def test_cache_dit_fires_on_both_sides_and_forgets_between_clips(model, attach):
    pytest.importorskip("cache_dit")
    attach(BlockCacheConfig(kind="cache_dit", threshold=10.0))
    (first, computed), (again, _) = clip(model), clip(model)
    assert computed < 2 * STEPS
    assert torch.equal(first, again)


def test_the_magnitudes_are_those_of_the_conditional_side(model):
    plain, _ = clip(model)
    found = Magnitudes(model.pipeline.transformer)
    model.block_cache = found
    latents, _ = clip(model)
    model.block_cache = None
    found.remove()
    assert torch.equal(latents, plain)
    assert len(found.ratios) == STEPS
    assert found.ratios[0] == 1.0
    assert all(0.1 < ratio < 10 for ratio in found.ratios)


@pytest.mark.parametrize(
    "values", [{"kind": "first_block"}, {"kind": "taylorseer", "threshold": 0.1}, {"kind": "mag", "interval": 2}]
)
def test_each_kind_asks_for_its_own_number(values):
    with pytest.raises(ValidationError, match="a cache of kind"):
        BlockCacheConfig.model_validate(values)
