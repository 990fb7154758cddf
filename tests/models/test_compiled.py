"""Compiled blocks give what they gave before, and are compiled a bounded number of times."""

from itertools import islice

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from reelign.models.base import VideoModel
from reelign.models.compiled import compile_blocks
from reelign.models.kv_cache import CausalConfig
from reelign.models.load import load_model
from reelign.sampling.noise import initial_noise
from reelign.sampling.sample import SampleConfig, sample
from reelign.sampling.stream import Stream
from tiny_wan import tiny_wan

FEW = SampleConfig(steps=2, shift=3.0, solver="renoise", guidance_scale=1.0)
CHUNKS = 20


@pytest.fixture(autouse=True)
def fresh():
    """Nothing is compiled yet, and a block that is compiled too often is an error instead of a warning."""
    torch.compiler.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch.compiler.reset()


@pytest.fixture
def model(tmp_path) -> VideoModel:
    return load_model(tiny_wan(tmp_path / "model"), device="cpu")


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def streamed(model: VideoModel, refresh: bool = False) -> list[np.ndarray]:
    """Chunks of a stream that is asked for something else after half of them."""
    frames = None if model.causal.config.window else 1 + 4 * (CHUNKS * model.causal.config.block - 1)
    stream = Stream(model, "a red circle", 3, FEW, frames=frames, height=32, width=32, refresh=refresh)
    found = list(islice(stream, CHUNKS // 2))
    stream.switch("a small blue ring moves left")
    found += islice(stream, CHUNKS // 2)
    assert len(found) == CHUNKS
    return [chunk.frames for chunk in found]


@pytest.mark.parametrize(
    ("config", "refresh", "backend"),
    [(CausalConfig(block=1), False, "eager"), (CausalConfig(block=1, window=5, sinks=1), True, "aot_eager")],
    ids=str,
)
def test_a_stream_is_compiled_for_the_first_block_and_for_all_others(model, config, refresh, backend):
    """At most one unit of brightness apart: compiled sums may be taken in another order."""
    model.make_causal(config)
    plain = streamed(model, refresh)
    restore = compile_blocks(model, backend)
    found = streamed(model, refresh)
    assert graphs() == 2
    for a, b in zip(found, plain, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1
    restore()
    assert all("forward" not in vars(block) for block in model.pipeline.transformer.blocks)


def test_the_blocks_of_a_whole_clip_are_compiled_once(model):
    noise = initial_noise([(0, "clip", 0)], model.latent_shape(5, 32, 32))

    def clip() -> torch.Tensor:
        return sample(model, model.encode_text(["a red circle"]), noise, FEW).latents

    plain = clip()
    restore = compile_blocks(model, "aot_eager")
    torch.testing.assert_close(clip(), plain, rtol=0, atol=1e-5)
    assert graphs() == 1
    restore()
    assert torch.equal(clip(), plain)
