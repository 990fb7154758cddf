"""A batch on a CPU is sampled in slices: the clips, the counts and the caller's threads stay what they are."""

import math
import threading

import pytest
import torch

from reelign.flow.step import NoiseLaw
from reelign.models.kv_cache import CausalConfig
from reelign.models.load import load_model
from reelign.sampling import sample as sample_module
from reelign.sampling import slices
from reelign.sampling.noise import generator, initial_noise
from reelign.sampling.sample import SampleConfig, clip_evaluations, sample
from reelign.sampling.slices import ROWS, side_by_side
from reelign.sampling.stochastic import Stochastic
from tiny_wan import tiny_wan

ROWS_IN_ALL = 2 * ROWS + 3


@pytest.fixture(params=[1, 3])
def cores(request):
    """So many threads for torch's operations while the test runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("config", [SampleConfig(steps=3), SampleConfig(steps=2, solver="renoise", guidance_scale=1)])
def test_slices_give_the_clips_of_the_whole_batch(cores, config, tmp_path, monkeypatch):
    model = load_model(tiny_wan(tmp_path / "wan"), device="cpu")
    noise = initial_noise([(0, f"prompt {i}", 0) for i in range(ROWS_IN_ALL)], model.latent_shape(5, 32, 32))
    conditions = model.encode_text([f"{i} red circles" for i in range(ROWS_IN_ALL)])
    negative = model.encode_text(["a blue ring"] * ROWS_IN_ALL)
    whole = sample_module._denoise(model, conditions, noise, config, negative, None)
    ran = []
    denoise = sample_module._denoise

    def watched(model, conditions, noise, *rest):
        assert not torch.is_grad_enabled()
        ran.append((threading.current_thread().name, len(noise), torch.get_num_threads()))
        return denoise(model, conditions, noise, *rest)

    monkeypatch.setattr(sample_module, "_denoise", watched)
    found = sample(model, conditions, noise, config, negative)
    assert sorted(rows for _, rows, _ in ran) == [3, ROWS, ROWS]
    assert all(own == 1 for *_, own in ran)
    assert all(name.startswith("slice") == (cores > 1) for name, *_ in ran)
    assert torch.get_num_threads() == cores
    assert found.nfe == whole.nfe == ROWS_IN_ALL * config.evaluations
    assert torch.allclose(found.latents, whole.latents, atol=1e-5)


def test_a_causal_model_sees_in_each_slice_the_past_of_its_own_rows(cores, tmp_path, monkeypatch):
    model = load_model(tiny_wan(tmp_path / "wan"), device="cpu")
    model.make_causal(CausalConfig(block=1))
    monkeypatch.setattr(slices, "ROWS", 3)  # a block is a third of a clip: slices of nine rows
    config = SampleConfig(steps=2, solver="renoise", guidance_scale=1)
    texts = [f"{i} red circles" for i in range(ROWS_IN_ALL)]
    noise = initial_noise([(0, f"prompt {i}", 0) for i in range(ROWS_IN_ALL)], model.latent_shape(9, 32, 32))
    found = sample(model, model.encode_text(texts), noise, config)
    alone = [
        sample(model, model.encode_text([text]), own[None], config) for text, own in zip(texts, noise, strict=True)
    ]
    assert torch.allclose(found.latents, torch.cat([one.latents for one in alone]), atol=1e-5)
    assert found.nfe == math.ceil(ROWS_IN_ALL * clip_evaluations(config, model.causal.config, 3))
    assert torch.get_num_threads() == cores


@pytest.mark.parametrize("branches", [1, 4])
def test_stochastic_steps_of_slices_are_those_of_the_whole_batch(cores, branches, tmp_path):
    model = load_model(tiny_wan(tmp_path / "wan"), device="cpu")
    config, count = SampleConfig(steps=4, solver="euler", guidance_scale=3.0), 11
    conditions, negative = model.encode_text(["a red circle"] * count), model.encode_text([""] * count)
    noise = initial_noise([(0, f"prompt {i}", 0) for i in range(count)], model.latent_shape(5, 32, 32))
    steps = torch.zeros(count, 4, dtype=torch.bool)
    steps[torch.arange(count), torch.arange(count) % 3] = True
    if branches == 1:
        steps[:, 1] = True

    def stochastic() -> Stochastic:
        own = [generator("rollout", 0, index) for index in range(count * branches)]
        return Stochastic(steps, NoiseLaw("flow"), own, branches)

    whole = sample_module._denoise(model, conditions, noise, config, negative, stochastic())
    found = sample(model, conditions, noise, config, negative, stochastic())
    assert found.nfe == whole.nfe
    assert torch.allclose(found.latents, whole.latents, atol=1e-5)
    assert len(found.transitions) == len(whole.transitions) == 3
    for own, expected in zip(found.transitions, whole.transitions, strict=True):
        assert torch.equal(own.rows, expected.rows)
        assert own.branches == expected.branches == branches
        for name in ("x", "sigma", "sigma_next", "x_next", "logp", "mean"):
            assert torch.allclose(getattr(own, name), getattr(expected, name), atol=1e-4), name


def test_an_error_in_a_slice_is_the_callers_and_the_threads_come_back(cores):
    def work(rows: slice) -> int:
        if rows.start:
            raise RuntimeError(f"rows from {rows.start}")
        return rows.stop

    assert side_by_side(ROWS, 1, work) == [ROWS]
    with pytest.raises(RuntimeError, match=f"rows from {ROWS}"):
        side_by_side(ROWS_IN_ALL, 1, work)
    assert torch.get_num_threads() == cores
