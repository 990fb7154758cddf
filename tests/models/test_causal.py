"""Invariant (k): what is made block by block through the cache is what the whole block-causal clip would be."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from reelign.errors import ReelignError
from reelign.models.adapter import LoraSettings, attach_lora, merge_lora, save_lora
from reelign.models.base import VideoModel
from reelign.models.causal import View
from reelign.models.kv_cache import CausalConfig, KVCache, TextCache
from reelign.models.load import load_model
from tiny_wan import KINDS, stir, tiny_wan

FRAMES = 12
SETTINGS = [
    CausalConfig(block=block, window=window, sinks=sinks)
    for block, window, sinks in itertools.product((1, 2, 3), (None, 3, 5), (0, 1, 2))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_wan(tmp_path_factory.mktemp("causal") / "model")


def causal(folder, config: CausalConfig) -> VideoModel:
    model = load_model(folder, device="cpu")
    model.make_causal(config)
    return model


def inputs(model: VideoModel, frames: int = FRAMES, batch: int = 2) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Latents, a level for each block, and conditions."""
    assert model.causal is not None
    random = torch.Generator().manual_seed(3)
    channels = model.latent_shape(9, 64, 64)[0]
    x = torch.randn(batch, channels, frames, 4, 4, generator=random)
    block = model.causal.config.block
    levels = torch.rand(batch, frames // block, generator=random).repeat_interleave(block, 1)
    return x, levels, model.encode_text(["a red circle", "a small blue ring moves left"][:batch])


def rolled_out(model: VideoModel, x: Tensor, levels: Tensor, conditions, text: TextCache | None = None) -> Tensor:
    """Every block once, at its level, through the cache."""
    assert model.causal is not None
    cache, made = KVCache(), []
    for first, end in model.causal.config.blocks(x.shape[2]):
        written: dict[int, tuple[Tensor, Tensor]] = {}
        with model.causal.seeing(View(cache, text, written)):
            made.append(model.velocity(x[:, :, first:end], levels[:, first], conditions))
        cache = cache.extended([written[layer] for layer in sorted(written)], model.causal.config)
    return torch.cat(made, 2)


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_k_the_cached_rollout_is_the_full_forward(folder, config):
    model = causal(folder, config)
    with torch.no_grad():
        whole = model.velocity(*inputs(model))
        blockwise = rolled_out(model, *inputs(model), text=TextCache())
    assert float(whole.std()) > 0.1
    torch.testing.assert_close(blockwise, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "2.2-a14b"])
def test_k_holds_for_every_kind_of_wan_with_one_network(tmp_path, kind):
    model = causal(tiny_wan(tmp_path / "model", kind), CausalConfig(block=3, window=6, sinks=1))
    with torch.no_grad():
        torch.testing.assert_close(rolled_out(model, *inputs(model)), model.velocity(*inputs(model)), rtol=0, atol=1e-5)


def test_a_block_that_is_the_whole_clip_sees_what_the_bidirectional_model_sees(folder):
    model, plain = causal(folder, CausalConfig(block=FRAMES)), load_model(folder, device="cpu")
    x, levels, conditions = inputs(model)
    with torch.no_grad():
        wanted = plain.velocity(x, levels[:, 0], conditions)
        torch.testing.assert_close(model.velocity(x, levels, conditions), wanted, rtol=0, atol=1e-5)


def test_the_future_is_not_seen_and_the_past_is(folder):
    model = causal(folder, CausalConfig(block=3))
    x, levels, conditions = inputs(model)
    changed = x.clone()
    changed[:, :, 6:9] += 1
    with torch.no_grad():
        before, after = (model.velocity(value, levels, conditions) for value in (x, changed))
    same = (before == after).flatten(3).all(3).all(1).all(0)
    assert same[:6].all()
    assert not same[6:].any()


@pytest.mark.parametrize("sinks", [0, 2])
def test_what_left_the_window_is_forgotten_but_for_the_sinks(folder, sinks):
    model = causal(folder, CausalConfig(block=1, window=3, sinks=sinks))
    network = model.pipeline.transformer
    for block in network.blocks[1:]:  # one layer: with more, a frame reaches further through the frames between
        torch.nn.init.zeros_(block.attn1.to_out[0].weight)
    x, levels, conditions = inputs(model)

    def reaches(frame: int) -> bool:
        changed = x.clone()
        changed[:, :, frame] += 1
        with torch.no_grad():
            last = [rolled_out(model, value, levels, conditions)[:, :, -1] for value in (x, changed)]
        return not torch.equal(*last)

    assert [frame for frame in range(FRAMES) if reaches(frame)] == [*range(sinks), 9, 10, 11]


def test_the_cache_does_not_grow_and_positions_go_on_beyond_the_table(folder):
    """The tiny network's table of rotations has 32 frames; relative positions stay what they were."""
    model = causal(folder, CausalConfig(block=2, window=4, sinks=2))
    assert model.causal is not None
    x, levels, conditions = inputs(model, frames=2, batch=1)
    cache, sizes, ends = KVCache(), [], []
    with torch.no_grad():
        for _ in range(30):
            written: dict[int, tuple[Tensor, Tensor]] = {}
            with model.causal.seeing(View(cache, None, written)):
                made = model.velocity(x, levels[:, 0], conditions)
            cache = cache.extended([written[layer] for layer in sorted(written)], model.causal.config)
            sizes.append(cache.nbytes)
            ends.append(made)
    assert cache.end == 60
    assert cache.frames == (0, 1, 58, 59)
    assert len(set(sizes[2:])) == 1
    assert all(torch.isfinite(made).all() for made in ends)


def test_only_the_distance_between_frames_counts(folder):
    """The same two blocks, far from the beginning: without sinks the answer is the one at the beginning."""
    model = causal(folder, CausalConfig(block=2, window=4))
    assert model.causal is not None
    x, levels, conditions = inputs(model, frames=4, batch=1)
    with torch.no_grad():
        near = rolled_out(model, x, levels, conditions)
        cache, written = replace(KVCache(), end=90), {}
        with model.causal.seeing(View(cache, None, written)):
            model.velocity(x[:, :, :2], levels[:, 0], conditions)
        cache = cache.extended([written[layer] for layer in sorted(written)], model.causal.config)
        with model.causal.seeing(View(cache)):
            far = model.velocity(x[:, :, 2:], levels[:, 2], conditions)
    torch.testing.assert_close(far, near[:, :, 2:], rtol=0, atol=2e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_k_gradients_of_the_rollout_are_those_of_the_full_forward(folder, method, checkpointing):
    """With checkpointing the blocks are computed again when the cache has moved on; they must see what they saw."""

    def gradients(blockwise: bool) -> dict[str, Tensor]:
        model = causal(folder, CausalConfig(block=3, window=6, sinks=1))
        network = model.pipeline.transformer
        network.requires_grad_(True)
        if method == "lora":
            attach_lora(model, LoraSettings(rank=2))
            stir(model)
        if checkpointing:
            network.enable_gradient_checkpointing()
        network.train()
        x, levels, conditions = inputs(model)
        made = rolled_out(model, x, levels, conditions) if blockwise else stopped(model, x, levels, conditions)
        made.square().sum().backward()
        return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    def stopped(model: VideoModel, x: Tensor, levels: Tensor, conditions) -> Tensor:
        """The full forward, whose past carries no gradient either: one call for each block."""
        blocks = model.causal.config.blocks(FRAMES)  # type: ignore[union-attr]
        made = []
        for first, end in blocks:
            cache = KVCache()
            with torch.no_grad():
                for a, b in blocks:
                    if b <= first:
                        written: dict[int, tuple[Tensor, Tensor]] = {}
                        with model.causal.seeing(View(cache, None, written)):  # type: ignore[union-attr]
                            model.velocity(x[:, :, a:b], levels[:, a], conditions)
                        cache = cache.extended([written[k] for k in sorted(written)], model.causal.config)  # type: ignore[union-attr]
            with model.causal.seeing(View(cache)):  # type: ignore[union-attr]
                made.append(model.velocity(x[:, :, first:end], levels[:, first], conditions))
        return torch.cat(made, 2)

    wanted, found = gradients(False), gradients(True)
    assert wanted.keys() == found.keys()
    assert len(found) > 10
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()) + 1e-7)


def test_k_holds_with_an_adapter_and_after_it_is_saved_and_loaded(folder, tmp_path):
    model = causal(folder, CausalConfig(block=3, window=6, sinks=1))
    attach_lora(model, LoraSettings(rank=2))
    stir(model)
    with torch.no_grad():
        whole = model.velocity(*inputs(model))
        torch.testing.assert_close(rolled_out(model, *inputs(model)), whole, rtol=0, atol=1e-5)
    save_lora(model, tmp_path / "adapter", base=str(folder))
    again = load_model(tmp_path / "adapter", device="cpu")
    assert again.causal is not None
    assert again.causal.config == CausalConfig(block=3, window=6, sinks=1)
    with torch.no_grad():
        torch.testing.assert_close(again.velocity(*inputs(again)), whole, rtol=0, atol=1e-6)
        merge_lora(again)
        torch.testing.assert_close(rolled_out(again, *inputs(again)), whole, rtol=0, atol=1e-5)


def test_a_causal_model_comes_back_from_its_folder(folder, tmp_path):
    model = causal(folder, CausalConfig(block=2, window=4))
    model.own_sampler = {"steps": 4, "shift": 3.0, "solver": "renoise", "guidance_scale": 1.0}
    model.save(tmp_path / "saved")
    again = load_model(tmp_path / "saved", device="cpu")
    assert again.causal is not None
    assert again.causal.config == CausalConfig(block=2, window=4)
    assert again.own_sampler == model.own_sampler
    with torch.no_grad():
        assert torch.equal(again.velocity(*inputs(again)), model.velocity(*inputs(model)))


def test_a_prompt_is_read_once(folder):
    model = causal(folder, CausalConfig(block=3))
    x, levels, conditions = inputs(model, frames=3)
    embedded: list[int] = []
    embedder = model.pipeline.transformer.condition_embedder.text_embedder
    embedder.register_forward_hook(lambda module, inputs, output: embedded.append(output.shape[1]))
    text = TextCache()
    assert model.causal is not None
    with torch.no_grad(), model.causal.seeing(View(KVCache(), text)):
        first, again = (model.velocity(x, levels[:, 0], conditions) for _ in range(2))
    assert torch.equal(first, again)
    with model.causal.seeing(View(KVCache(), text)):  # with gradients, the prompt is a part of the graph
        model.velocity(x, levels[:, 0], conditions)
    words = conditions["text"].shape[1]
    assert embedded == [words, 0, words]


def test_a_place_is_found_once_and_holds_in_half_precision(folder):
    """The angles stay in float32 where everything else is narrower."""
    model = causal(folder, CausalConfig(block=3))
    x, levels, conditions = inputs(model, frames=3)
    view = View(KVCache(end=90))
    assert model.causal is not None
    with torch.no_grad(), model.causal.seeing(view):
        model.velocity(x, levels[:, 0], conditions)
        place = view.place
        model.velocity(x, levels[:, 0], conditions)
    assert place is not None
    assert view.place is place
    torch.testing.assert_close(place.turn.square().sum(-1), torch.ones(place.turn.shape[:-1]))
    model.pipeline.transformer.to(torch.bfloat16)
    model.compute_dtype = torch.bfloat16  # type: ignore[attr-defined]
    narrow = View(KVCache(end=90))
    with torch.no_grad(), model.causal.seeing(narrow):
        assert torch.isfinite(model.velocity(x, levels[:, 0], conditions)).all()
    assert narrow.place is not None
    assert narrow.place.turn.dtype == torch.float32


def test_a_twin_has_denoisers_of_its_own_and_shares_the_rest(folder):
    model = load_model(folder, device="cpu")
    twin = model.twin()
    assert twin.pipeline.vae is model.pipeline.vae
    assert twin.pipeline.text_encoder is model.pipeline.text_encoder
    with torch.no_grad():
        next(twin.pipeline.transformer.parameters()).add_(1)
    assert not torch.equal(next(twin.pipeline.transformer.parameters()), next(model.pipeline.transformer.parameters()))
    twin.make_causal(CausalConfig())
    with pytest.raises(ReelignError, match="only a plain model is copied"):
        twin.twin()


@pytest.mark.parametrize("backward", [CausalConfig(block=5), CausalConfig(block=24)])
def test_a_block_that_does_not_divide_the_clip_is_refused(folder, backward):
    model = causal(folder, CausalConfig(block=1))
    arguments = inputs(model)
    model.make_causal(backward)
    with pytest.raises(ReelignError, match="block sizes that do: 1, 2, 3, 4, 6, 12"):
        model.velocity(*arguments)


def test_a_window_smaller_than_a_block_is_refused():
    with pytest.raises(ValidationError, match="a block must see itself"):
        CausalConfig(block=3, window=2)


def test_two_experts_are_refused(tmp_path):
    model = load_model(tiny_wan(tmp_path / "model", "2.2-a14b"), device="cpu")
    with pytest.raises(ReelignError, match="two experts"):
        model.make_causal(CausalConfig())


def test_a_damaged_description_is_named(folder, tmp_path):
    model = causal(folder, CausalConfig(block=2))
    model.save(tmp_path / "saved")
    (tmp_path / "saved" / "causal.json").write_text('{"block": 0}')
    with pytest.raises(ReelignError, match=r"causal\.json"):
        load_model(tmp_path / "saved", device="cpu")
