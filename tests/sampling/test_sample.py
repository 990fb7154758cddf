"""Invariant (g): the first replay of a stored transition has ratio 1, for every law, full and LoRA, with guidance."""

import math

import pytest
import torch

from reelign.errors import ReelignError
from reelign.flow.path import to_x0
from reelign.flow.step import NoiseLaw
from reelign.models.adapter import LoraSettings, attach_lora
from reelign.models.base import take
from reelign.models.causal import View
from reelign.models.kv_cache import CausalConfig, KVCache
from reelign.models.load import load_model
from reelign.sampling.noise import generator, initial_noise, noise_after
from reelign.sampling.sample import SampleConfig, remembered, replay, sample
from reelign.sampling.stochastic import Stochastic, joined
from tiny_wan import tiny_wan

LAWS = ["flow", "dance", "linear", "truncated", "cps"]
PROMPTS = ["a large red circle moves left", "a small blue ring stands still", "a cross"]
STEPS = 5


@pytest.fixture(scope="module", params=["full", "lora"])
def model(request, tmp_path_factory):
    model = load_model(tiny_wan(tmp_path_factory.mktemp("wan") / "wan"), device="cpu")
    if request.param == "lora":
        attach_lora(model, LoraSettings(rank=2, alpha=2))
        with torch.no_grad():
            for name, parameter in model.pipeline.transformer.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    else:
        model.pipeline.transformer.requires_grad_(True)
    return model


def start(model, count=3):
    shape = model.latent_shape(5, 32, 32)
    return initial_noise([(0, f"prompt {i}", 0) for i in range(count)], shape)


def chosen_steps(count=3):
    """Each sample takes its own step at random, the first two share one."""
    steps = torch.zeros(count, STEPS, dtype=torch.bool)
    for row, index in enumerate([1, 1, 3][:count]):
        steps[row, index] = True
    return steps


def generators(count=3):
    return [generator("rollout", 0, index) for index in range(count)]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("law", LAWS)
def test_g_the_first_replay_has_ratio_one_and_a_gradient(model, law, guidance):
    config = SampleConfig(steps=STEPS, solver="euler", guidance_scale=guidance)
    conditions, negative = model.encode_text(PROMPTS), model.encode_text([""] * 3)
    stochastic = Stochastic(chosen_steps(), NoiseLaw(law, 0.4), generators())
    found = sample(model, conditions, start(model), config, negative, stochastic)
    assert [t.rows.tolist() for t in found.transitions] == [[0, 1], [2]]
    for transition in found.transitions:
        own, away = ({k: v[transition.rows] for k, v in part.items()} for part in (conditions, negative))
        again = replay(model, own, transition, config, NoiseLaw(law, 0.4), away)
        assert torch.allclose(torch.exp(again.logp - transition.logp), torch.ones(len(transition.rows)), atol=1e-6)
        assert torch.allclose(again.mean, transition.mean, atol=1e-6)
        again.logp.sum().backward()
    norms = [p.grad.norm() for p in model.pipeline.transformer.parameters() if p.grad is not None]
    assert sum(float(norm) for norm in norms) > 0
    model.pipeline.transformer.zero_grad()


def test_the_ratio_moves_when_the_weights_do(model):
    config = SampleConfig(steps=STEPS, solver="euler", guidance_scale=1.0)
    conditions, law = model.encode_text(PROMPTS), NoiseLaw("flow")
    found = sample(model, conditions, start(model), config, None, Stochastic(chosen_steps(), law, generators()))
    trained = [p for p in model.pipeline.transformer.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.2)
        transition = found.transitions[0]
        own = {k: v[transition.rows] for k, v in conditions.items()}
        again = replay(model, own, transition, config, law)
        for parameter in trained:
            parameter.sub_(0.2)
    assert bool(((again.logp - transition.logp).abs() > 1e-5).all())


def test_without_a_stochastic_step_nothing_is_stored_and_nothing_changes(model):
    config = SampleConfig(steps=STEPS, solver="euler", guidance_scale=1.0)
    conditions = model.encode_text(PROMPTS)
    plain = sample(model, conditions, start(model), config)
    none = Stochastic(torch.zeros(3, STEPS, dtype=torch.bool), NoiseLaw("flow"), generators())
    assert torch.equal(sample(model, conditions, start(model), config, None, none).latents, plain.latents)
    assert plain.transitions == []


def test_a_sample_does_not_depend_on_its_batch(model):
    config = SampleConfig(steps=STEPS, solver="euler", guidance_scale=3.0)
    conditions, negative, law = model.encode_text(PROMPTS), model.encode_text([""] * 3), NoiseLaw("flow")
    together = sample(
        model, conditions, start(model), config, negative, Stochastic(chosen_steps(), law, generators())
    ).latents
    for row in range(3):
        own, away = ({k: v[row : row + 1] for k, v in part.items()} for part in (conditions, negative))
        policy = Stochastic(chosen_steps()[row : row + 1], law, generators()[row : row + 1])
        alone = sample(model, own, start(model)[row : row + 1], config, away, policy).latents
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("law", LAWS)
def test_p_branches_are_the_full_rollouts_and_their_replay_too(model, law, guidance):
    """Two prompts of three clips each: with one shared way to a stochastic step of their own, and each clip alone."""
    config, noise_law, group = SampleConfig(steps=STEPS, solver="euler", guidance_scale=guidance), NoiseLaw(law, 0.4), 3
    conditions, negative = model.encode_text(PROMPTS[:2]), model.encode_text([""] * 2)
    steps = torch.zeros(2, STEPS, dtype=torch.bool)
    steps[0, 3] = steps[1, 1] = True
    policy = Stochastic(steps, noise_law, generators(6), branches=group)
    shared = sample(model, conditions, start(model, 2), config, negative, policy)
    each = torch.arange(2).repeat_interleave(group)
    own, away = take(conditions, each), take(negative, each)
    alone = Stochastic(steps[each], noise_law, generators(6))
    full = sample(model, own, start(model, 2)[each], config, away, alone)
    torch.testing.assert_close(shared.latents, full.latents, rtol=1e-4, atol=1e-5)
    assert shared.latents.shape[0] == 6
    evaluations = 1 if guidance == 1 else 2
    assert full.nfe == 6 * STEPS * evaluations
    assert shared.nfe == ((4 + 3 * 1) + (2 + 3 * 3)) * evaluations
    assert [t.rows.tolist() for t in shared.transitions] == [[1], [0]]
    branched, stored = joined(shared.transitions), joined(full.transitions)
    assert (branched.rows.tolist(), stored.rows.tolist()) == ([0, 1], list(range(6)))
    assert torch.equal(branched.sigma, config.grid[[3, 1]].to(branched.sigma))
    torch.testing.assert_close(branched.logp, stored.logp, rtol=1e-5, atol=1e-5)
    weights = torch.tensor([1.0, -2.0, 0.5, 0.3, 1.0, -1.0])
    gradients = []
    for parts, transition in (((conditions, negative), branched), ((own, away), stored)):
        again = replay(model, parts[0], transition, config, noise_law, parts[1])
        assert torch.allclose((again.logp - transition.logp).exp(), torch.ones(6), atol=1e-6)
        trained = [p for p in model.pipeline.transformer.parameters() if p.requires_grad]
        (weights * again.logp).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))
        model.pipeline.transformer.zero_grad()
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5 * float(gradients[1].abs().max()))


def test_rows_branch_once_and_have_a_generator_each():
    steps = torch.zeros(2, STEPS, dtype=torch.bool)
    steps[0, 1] = True
    with pytest.raises(ValueError, match="exactly one"):
        Stochastic(steps, NoiseLaw("flow"), generators(6), branches=3)
    steps[1, 2] = True
    Stochastic(steps, NoiseLaw("flow"), generators(6), branches=3)
    with pytest.raises(ValueError, match="generators"):
        Stochastic(steps, NoiseLaw("flow"), generators(5), branches=3)
    steps[:, 3] = True
    with pytest.raises(ValueError, match="exactly one"):
        Stochastic(steps, NoiseLaw("flow"), generators(6), branches=3)


@pytest.mark.parametrize("branches", [1, 3])
def test_a_stochastic_step_can_be_unguided_among_guided_ones(model, branches):
    """Its policy is then the plain one: a replay without guidance has ratio 1, and one with guidance has not."""
    config, law = SampleConfig(steps=STEPS, solver="euler", guidance_scale=4.0), NoiseLaw("flow", 0.4)
    conditions, negative = model.encode_text(PROMPTS), model.encode_text([""] * 3)
    own = generators(3 * branches)
    policy = Stochastic(chosen_steps(), law, own, branches, guided=False)
    found = sample(model, conditions, start(model), config, negative, policy)
    stored = joined(found.transitions)
    plain = config.model_copy(update={"guidance_scale": 1.0})
    same = replay(model, conditions, stored, plain, law)
    other = replay(model, conditions, stored, config, law, negative)
    assert torch.allclose((same.logp - stored.logp).exp(), torch.ones(3 * branches), atol=1e-6)
    assert bool(((other.logp - stored.logp).abs() > 1e-4).any())
    guided = sample(model, conditions, start(model), config, negative, Stochastic(chosen_steps(), law, generators(3)))
    assert torch.equal(guided.transitions[0].x, found.transitions[0].x)


def test_guidance_outside_its_interval_is_neither_applied_nor_paid(model):
    conditions, negative = model.encode_text(PROMPTS), model.encode_text([""] * 3)
    inside = SampleConfig(steps=STEPS, solver="euler", guidance_scale=4.0, guidance_interval=(0.3, 0.9))
    levels = inside.grid[:-1]
    guided = int(((levels >= 0.3) & (levels <= 0.9)).sum())
    assert 0 < guided < STEPS
    found = sample(model, conditions, start(model), inside, negative)
    assert found.nfe == 3 * (STEPS + guided)
    never = inside.model_copy(update={"guidance_interval": (2.0, 3.0)})
    off = inside.model_copy(update={"guidance_scale": 1.0})
    assert torch.equal(
        sample(model, conditions, start(model), never, negative).latents,
        sample(model, conditions, start(model), off).latents,
    )


def test_what_cannot_be_sampled_says_why(model):
    conditions = model.encode_text(PROMPTS)
    with pytest.raises(ReelignError, match="negative prompt"):
        sample(model, conditions, start(model), SampleConfig(steps=2, guidance_scale=3.0))
    policy = Stochastic(chosen_steps(), NoiseLaw("flow"), generators())
    with pytest.raises(ReelignError, match="solver=euler"):
        sample(model, conditions, start(model), SampleConfig(steps=STEPS, guidance_scale=1.0), None, policy)


def test_noise_follows_from_its_key_alone():
    first = initial_noise([(0, "a", 0), (0, "b", 0)], (2, 3))
    assert torch.equal(initial_noise([(0, "b", 0)], (2, 3))[0], first[1])
    others = initial_noise([(1, "a", 0), (0, "a", 1), (0, "c", 0)], (2, 3))
    assert all(not torch.equal(other, first[0]) for other in others)
    assert first.dtype == torch.float32


FEW = SampleConfig(steps=4, shift=3.0, solver="renoise", guidance_scale=1.0)


def test_a_few_step_model_predicts_the_clip_and_adds_fresh_noise_of_the_next_level(model):
    conditions, noise = model.encode_text(PROMPTS), start(model)
    found = sample(model, conditions, noise, FEW)
    x, grid = noise, FEW.grid
    assert grid[:-1].tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5], abs=2e-3)
    with torch.no_grad():
        for index in range(4):
            level = torch.full((3,), float(grid[index]))
            clean = to_x0(x, model.velocity(x, level, conditions), level)
            following = float(grid[index + 1])
            x = (1 - following) * clean + following * noise_after(noise, index)
    torch.testing.assert_close(found.latents, clean, rtol=0, atol=1e-5)
    assert found.nfe == 3 * 4


def test_fresh_noise_belongs_to_the_clip_and_not_to_its_batch():
    initial = torch.randn(3, 4, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    first, second = noise_after(initial, 0), noise_after(initial, 1)
    assert torch.equal(noise_after(initial[1:2], 0), first[1:2])
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert float(first.std()) == pytest.approx(1, abs=0.05)
    assert abs(float((first * initial).mean())) < 0.05


def test_a_few_step_clip_does_not_depend_on_its_batch(model):
    together = sample(model, model.encode_text(PROMPTS), start(model), FEW).latents
    alone = sample(model, model.encode_text(PROMPTS[1:2]), start(model)[1:2], FEW).latents
    torch.testing.assert_close(alone, together[1:2], rtol=0, atol=1e-5)


def test_renoising_takes_no_stochastic_steps(model):
    stochastic = Stochastic(chosen_steps(), NoiseLaw("flow", 0.4), generators())
    config = SampleConfig(steps=STEPS, solver="renoise", guidance_scale=1.0)
    with pytest.raises(ReelignError, match="a noise of its own"):
        sample(model, model.encode_text(PROMPTS), start(model), config, None, stochastic)


def causal(folder, memory):
    found = load_model(tiny_wan(folder / "wan"), device="cpu")
    found.make_causal(CausalConfig(block=2, window=4, memory=memory))
    return found


@pytest.mark.parametrize("memory", ["finished", "last_step"])
def test_a_causal_model_makes_block_after_block_each_from_those_before_as_they_are_remembered(tmp_path, memory):
    """Clean, by an evaluation of their own, or as their last step saw them, without one."""
    model = causal(tmp_path, memory)
    conditions = model.encode_text(PROMPTS[:2])
    noise = torch.randn(2, 16, 6, 4, 4, generator=torch.Generator().manual_seed(2))
    found = sample(model, conditions, noise, FEW)
    cache, made = KVCache(), []
    for first in (0, 2, 4):
        part, x = noise[:, :, first : first + 2], noise[:, :, first : first + 2]
        for index in range(4):
            level, following = (float(FEW.grid[k]) for k in (index, index + 1))
            levels = torch.full((2,), level)
            with torch.no_grad(), model.causal.seeing(View(cache)):
                clean = to_x0(x, model.velocity(x, levels, conditions), levels)
            seen, x = x, (1 - following) * clean + following * noise_after(part, index)
        made.append(clean)
        past, at = (clean, 0.0) if memory == "finished" else (seen, float(FEW.grid[3]))
        cache = remembered(model, conditions, past, cache, level=at)
    torch.testing.assert_close(found.latents, torch.cat(made, 2), rtol=0, atol=1e-5)
    assert cache.frames == (4, 5)
    own = 2 if memory == "finished" else 0  # in clips: four steps of each block, and two blocks remembered
    assert found.nfe == math.ceil(2 * (3 * 4 + own) / 3)


def test_the_last_step_of_one_sees_nothing_to_remember(tmp_path):
    model = causal(tmp_path, "last_step")
    with pytest.raises(ReelignError, match=r"two steps at least.*nothing but noise"):
        noise = torch.zeros(1, 16, 2, 4, 4)
        sample(model, model.encode_text(PROMPTS[:1]), noise, FEW.model_copy(update={"steps": 1}))


def test_a_causal_model_is_not_guided(tmp_path):
    model = causal(tmp_path, "finished")
    conditions, noise = model.encode_text(PROMPTS[:1]), torch.zeros(1, 16, 2, 4, 4)
    with pytest.raises(ReelignError, match="without guidance"):
        sample(model, conditions, noise, SampleConfig(steps=2), conditions)


def test_unipc_with_a_grid_of_another_solver_is_refused():
    with pytest.raises(ValueError, match="brings its own grid"):
        SampleConfig(solver="unipc", spacing="euler")
    assert SampleConfig(solver="euler", spacing="unipc").grid.equal(SampleConfig(solver="unipc").grid)
