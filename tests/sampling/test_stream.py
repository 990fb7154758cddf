"""A stream is the clip that the sampler makes, in pieces, and then goes on in constant memory."""

from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from reelign.data.clip import read_clip
from reelign.errors import ReelignError
from reelign.inference.generate import generate_clip
from reelign.models.base import VideoModel
from reelign.models.kv_cache import CausalConfig, KVCache
from reelign.models.load import load_model
from reelign.sampling.noise import initial_noise
from reelign.sampling.sample import SampleConfig, sample
from reelign.sampling.stream import Stream
from tiny_wan import tiny_wan

FEW = SampleConfig(steps=2, shift=3.0, solver="renoise", guidance_scale=1.0)
RED, BLUE = "a large red circle moving left", "a small blue square that stands still"


@pytest.fixture
def model() -> VideoModel:
    """The miniature made causal: the weights were not trained for it, which no test here needs."""
    made = load_model("miniature", device="cpu")
    made.make_causal(CausalConfig(block=1, window=4, sinks=1))
    return made


def layers(cache: KVCache) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Keys and values of each layer; a stream keeps them in one part."""
    (part,) = cache.parts
    return part.layers


def frames_of(chunks) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


@pytest.mark.parametrize(
    "config",
    [
        CausalConfig(block=1),
        CausalConfig(block=5),
        CausalConfig(block=1, window=2),
        CausalConfig(block=1, memory="last_step"),
    ],
    ids=str,
)
def test_the_first_clip_of_a_stream_is_the_one_that_generate_makes(model, config):
    model.make_causal(config)
    noise = initial_noise([(7, RED, 0)], model.latent_shape(17, 32, 32))
    wanted = model.decode(sample(model, model.encode_text([RED]), noise, FEW).latents)[0].numpy()
    chunks = list(Stream(model, RED, 7, FEW, frames=17))
    assert np.array_equal(frames_of(chunks), wanted)
    assert [chunk.first for chunk in chunks] == ([0] if config.block == 5 else [0, 1, 5, 9, 13])
    model.make_causal(config.model_copy(update={"window": config.window or 5}))
    assert np.array_equal(frames_of(islice(Stream(model, RED, 7, FEW), len(chunks))), wanted)


def test_the_file_that_generate_writes_holds_these_frames(model, tmp_path):
    generate_clip(model, RED, tmp_path / "clip.mp4", FEW, seed=7)
    streamed = frames_of(Stream(model, RED, 7, FEW, frames=17)).astype(int)
    written = read_clip(tmp_path / "clip.mp4").frames.astype(int)
    assert np.abs(streamed - written).mean() < 4  # what H.264 and its half-size colours lose


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 2, 17, 40])
def test_a_stream_has_as_many_frames_as_were_asked_for(model, block, frames):
    model.make_causal(CausalConfig(block=block, window=6))
    chunks = list(Stream(model, RED, 0, FEW, frames=frames))
    assert len(frames_of(chunks)) == frames
    assert all(a.first + len(a.frames) == b.first for a, b in pairwise(chunks))
    assert all(a.seconds < b.seconds and a.work > 0 for a, b in pairwise(chunks))


def test_the_length_does_not_change_the_frames(model):
    short, long = (frames_of(Stream(model, RED, 3, FEW, frames=n)) for n in (11, 30))
    assert np.array_equal(short, long[:11])


def test_later_clips_have_noise_of_their_own(model):
    latents = Stream(model, RED, 3, FEW)._noise
    first, second = latents.take(5), latents.take(5)
    assert torch.equal(first, initial_noise([(3, RED, 0)], latents.shape))
    assert torch.equal(second, initial_noise([(3, RED, 1)], latents.shape))


@pytest.mark.parametrize("refresh", [False, True])
def test_a_switch_changes_the_frames_after_it_and_none_before(model, refresh):
    plain = frames_of(islice(Stream(model, RED, 3, FEW), 6))
    stream = Stream(model, RED, 3, FEW, refresh=refresh)
    chunks = list(islice(stream, 3))
    stream.switch(BLUE)
    chunks += islice(stream, 3)
    assert [chunk.prompt for chunk in chunks] == [RED] * 3 + [BLUE] * 3
    after = chunks[3].first
    changed = (frames_of(chunks) != plain).any((1, 2, 3))
    assert not changed[:after].any()
    assert changed[after:].all()


@pytest.mark.parametrize("memory", ["finished", "last_step"])
def test_a_refresh_brings_the_past_under_the_new_prompt(model, memory):
    """Without it the cached keys and values are those of the old prompt; with it they change."""
    model.causal.config = model.causal.config.model_copy(update={"memory": memory})
    caches = {}
    for refresh in (False, True):
        stream = Stream(model, RED, 3, FEW, refresh=refresh)
        list(islice(stream, 6))
        before = stream.cache
        stream.switch(BLUE)
        stream._listen()
        assert stream.cache.frames == before.frames == (0, 3, 4, 5)
        assert stream.cache.end == before.end
        caches[refresh] = [
            torch.equal(a, b)
            for old, new in zip(layers(before), layers(stream.cache), strict=True)
            for a, b in zip(old, new, strict=True)
        ]
    assert all(caches[False])
    assert not any(caches[True][2:])  # the first layer comes before any word


def test_a_refresh_under_the_same_prompt_gives_the_same_past(model):
    model.make_causal(CausalConfig(block=2, window=20))
    stream = Stream(model, RED, 3, FEW, refresh=True)
    list(islice(stream, 4))
    again = stream._remembered_again()
    assert again.frames == stream.cache.frames == tuple(range(8))
    for old, new in zip(layers(stream.cache), layers(again), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-5)


@pytest.mark.parametrize("refresh", [False, True])
def test_the_memory_of_a_stream_is_that_of_its_window(model, refresh):
    stream, sizes, kept = Stream(model, RED, 0, FEW, refresh=refresh), [], []
    for _ in islice(stream, 30):
        sizes.append(stream.nbytes)
        kept.append((len(stream._past), stream._noise.left.shape[2] <= 5))
    assert sizes[9] == sizes[29] > 0
    assert kept[9] == kept[29] == (4 * refresh, True)


def test_a_stream_goes_on_beyond_the_table_of_positions(tmp_path):
    """The tiny network's table has 32 latent frames, the miniature's 64."""
    model = load_model(tiny_wan(tmp_path / "model"), device="cpu")
    model.make_causal(CausalConfig(block=1, window=3, sinks=1))
    one = SampleConfig(steps=1, solver="renoise", guidance_scale=1.0)
    chunks = list(islice(Stream(model, RED, 0, one, height=32, width=32), 70))
    assert sum(len(chunk.frames) for chunk in chunks) == 1 + 69 * 4
    assert chunks[-1].frames.std() > 5


def test_two_streams_of_one_model_may_take_turns(model):
    alone = [frames_of(islice(Stream(model, prompt, 3, FEW), 4)) for prompt in (RED, BLUE)]
    pairs = list(islice(zip(Stream(model, RED, 3, FEW), Stream(model, BLUE, 3, FEW), strict=True), 4))
    for place, wanted in enumerate(alone):
        assert np.array_equal(frames_of(pair[place] for pair in pairs), wanted)


def test_the_sampler_is_the_models_own(model):
    model.own_sampler = FEW.model_dump(mode="json")
    assert Stream(model, RED).sampler == FEW


def test_what_cannot_stream_is_refused_with_the_way_out(model):
    with pytest.raises(ReelignError, match="without guidance"):
        Stream(model, RED, sampler=SampleConfig(guidance_scale=3.0))
    with pytest.raises(ReelignError, match="use 32 or 40"):
        Stream(model, RED, height=33)
    with pytest.raises(ReelignError, match="at least one frame"):
        Stream(model, RED, frames=0)
    model.make_causal(CausalConfig(block=1))
    with pytest.raises(ReelignError, match=r"fills the memory.*--window"):
        Stream(model, RED)
    with pytest.raises(ReelignError, match=r"not causal.*`distill` stage"):
        Stream(load_model("miniature", device="cpu"), RED)
