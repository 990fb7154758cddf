"""Lessons and their losses: invariants (g), (j) and (m) of the method on a toy flow whose optimum is known."""

from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from reelign.flow.policy import group_advantages
from reelign.flow.step import gradient_scale
from reelign.sampling.noise import generator
from reelign.sampling.sample import SampleConfig, sample
from reelign.sampling.stochastic import Stochastic, joined
from reelign.stages.algorithm import Algorithm
from reelign.stages.objectives import Told, forward_process_loss, lessons, trajectory_loss
from reelign.stages.rollout import Rollout
from reelign.train.parallel import World

SAMPLER = SampleConfig(steps=10, shift=3.0, solver="euler", guidance_scale=1.0)
SHAPE = (1, 1, 2, 2)


class ToyFlow(nn.Module):
    """Exact velocity of data N(mean, 0.3^2) in every dimension; the mean is what a policy can change."""

    causal = block_cache = None
    device, stateless = torch.device("cpu"), True

    def __init__(self, mean: float = 0.0) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))

    def branch(self, name):
        return nullcontext()

    def velocity(self, latents, sigma, conditions):
        sigma = sigma.view(-1, 1, 1, 1, 1)
        variance = (1 - sigma) ** 2 * 0.09 + sigma**2
        data = self.mean + (1 - sigma) * 0.09 / variance * (latents - (1 - sigma) * self.mean)
        return (latents - data) / sigma.clamp(min=1e-3)


@dataclass
class Alone:
    """The world of one rank."""

    rank, size, device, mesh = 0, 1, torch.device("cpu"), None
    sum = World.sum


def rolled_out(model, algorithm: Algorithm, prompts: int, group: int, update: int = 0) -> Rollout:
    branches = group if algorithm.branches else 1
    rows = prompts * group // branches
    keys = [(update, row * branches // group, *([] if algorithm.iso_temporal else [row])) for row in range(rows)]
    names = [f"{update} {row if not algorithm.shared_noise else row * branches // group}" for row in range(rows)]
    noise = torch.stack([torch.randn(SHAPE, generator=generator("toy", name)) for name in names])
    policy = Stochastic(
        algorithm.stochastic_steps(SAMPLER.steps, update, keys),
        algorithm.noise_law,
        [generator("toy step", update, clip) for clip in range(prompts * group)],
        branches,
    )
    found = sample(model, {}, noise, SAMPLER, None, policy)
    transitions = [joined(found.transitions)] if algorithm.steps == "one" and found.transitions else found.transitions
    return Rollout(transitions, {}, {}, found.latents, found.nfe)


VARIANTS = [
    {"preset": "reelign"},
    {"preset": "reelign", "law": "cps", "noise_level": 0.6},
    {"preset": "reelign", "weight": "guard", "first": 0.1},
    {"preset": "reelign", "iso_temporal": False},
    {"preset": "flash-grpo"},
    {"preset": "flow-grpo"},
    {"preset": "dance-grpo"},
    {"preset": "mix-grpo"},
    {"preset": "diffusion-nft"},
]


def names(values: dict) -> str:
    return "-".join(str(value) for value in values.values())


@pytest.mark.parametrize("values", VARIANTS, ids=names)
def test_m_every_variant_learns_a_known_reward(values):
    """The reward is nearness to 1; the policy starts at 0 and its samples end near 1."""
    algorithm, model = Algorithm.model_validate(values), ToyFlow()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    rewards = []
    for update in range(60):
        found = rolled_out(model, algorithm, prompts=6, group=8, update=update)
        reward = -(found.latents.flatten(1).mean(1) - 1).abs().view(6, 8)
        rewards.append(float(reward.mean()))
        worth = group_advantages({"near": reward}, {"near": 1.0}).values.flatten()
        told = Told()
        if algorithm.objective == "nft":
            levels = torch.rand(48, generator=generator("levels", update)) * 0.9 + 0.05
            noise = torch.randn(found.latents.shape, generator=generator("noise", update))
            loss = forward_process_loss(model, found, worth, levels, noise, algorithm, told).mean()
        else:
            parts = [
                trajectory_loss(model, None, lesson, algorithm, SAMPLER, told)
                for lesson in lessons([found], worth, algorithm, SAMPLER, Alone())
            ]
            loss = torch.cat(parts).mean()
            assert told.ratio_drift < 1e-5
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.5, rewards


@pytest.mark.parametrize("law", ["flow", "cps", "linear"])
def test_m_rectification_narrows_the_gradients_spread_over_the_steps(law):
    """One transition of each step by itself, the same advantages: how loud is it?"""

    def loudest_over_faintest(weight: str) -> float:
        algorithm = Algorithm.model_validate({"law": law, "weight": weight, "noise_level": 0.6, "steps": "all"})
        found = rolled_out(ToyFlow(), algorithm, prompts=40, group=4)
        worth = torch.tensor([1.0, -1.0, 0.5, -0.5]).repeat(40)
        norms = []
        for lesson in lessons([found], worth, algorithm, SAMPLER, Alone())[1:5]:
            leaf = _VelocityLeaf(lesson.transition.x)
            trajectory_loss(leaf, None, lesson, algorithm, SAMPLER, Told()).sum().backward()
            norms.append(float(leaf.value.grad.norm()))
        return max(norms) / min(norms)

    raw, rectified = loudest_over_faintest("none"), loudest_over_faintest("rectified")
    assert rectified < 1 + 0.25 * (raw - 1)
    assert raw > 1.2


class _VelocityLeaf(ToyFlow):
    """A model whose velocity is a leaf: the toy's exact one."""

    def __init__(self, x):
        super().__init__()
        self.value = torch.zeros_like(x, requires_grad=True)

    def velocity(self, latents, sigma, conditions):
        return super().velocity(latents, sigma, conditions).detach() + self.value


@pytest.mark.parametrize("values", [VARIANTS[0], VARIANTS[4], VARIANTS[5]], ids=names)
def test_a_clip_that_is_not_learned_from_has_no_part_in_it(values):
    algorithm = Algorithm.model_validate(values)
    found = rolled_out(ToyFlow(), algorithm, prompts=3, group=4)
    worth = torch.linspace(-1, 1, 12)
    worth[4:8] = torch.nan
    worth[1] = torch.nan

    def gradient(advantages):
        model, told = ToyFlow(), Told()
        for lesson in lessons([found], advantages, algorithm, SAMPLER, Alone()):
            trajectory_loss(model, None, lesson, algorithm, SAMPLER, told).sum().backward()
        return float(model.mean.grad), told.nfe

    kept, cost = gradient(worth)
    assert kept != 0
    silent, _ = gradient(torch.full((12,), torch.nan))
    assert silent == 0
    _, whole = gradient(torch.linspace(-1, 1, 12))
    assert cost < whole


def test_weights_have_mean_one_over_what_is_learned():
    algorithm = Algorithm(noise_level=0.7)
    found = rolled_out(ToyFlow(), algorithm, prompts=8, group=4)
    worth = torch.ones(32)
    worth[:12] = torch.nan
    (lesson,) = lessons([found], worth, algorithm, SAMPLER, Alone())
    assert lesson.transition.rows.tolist() == [3, 4, 5, 6, 7]
    assert float(lesson.weights.mean()) == pytest.approx(1.0)
    t = lesson.transition
    scale = gradient_scale(t.sigma, t.sigma_next, algorithm.noise_law, SAMPLER.grid.to(t.x)).repeat_interleave(4)
    assert torch.allclose(lesson.weights * scale, (lesson.weights * scale)[0].expand(20))


@pytest.mark.parametrize("space", ["policy", "velocity"])
def test_the_divergence_pulls_back_to_the_reference(space):
    algorithm = Algorithm(kl=1.0, kl_space=space)
    model, reference = ToyFlow(0.5), ToyFlow(0.0)
    found = rolled_out(model, algorithm, prompts=4, group=4)
    worth = torch.zeros(16)
    total = torch.zeros(())
    for lesson in lessons([found], worth, algorithm, SAMPLER, Alone()):
        total = total + trajectory_loss(model, reference, lesson, algorithm, SAMPLER, Told()).sum()
    total.backward()
    assert float(total.detach()) > 0
    assert float(model.mean.grad) > 0
    assert reference.mean.grad is None


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_j_the_nft_gradient_at_the_old_policy_has_the_sign_of_the_advantage(advantage):
    """Descending moves the velocity towards the clip's own target when it was good, and away when it was bad."""
    algorithm = Algorithm.model_validate({"preset": "diffusion-nft", "nft_beta": 0.4})
    clean, noise = torch.randn(3, *SHAPE, dtype=torch.float64), torch.randn(3, *SHAPE, dtype=torch.float64)
    levels = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    leaf = _VelocityLeaf(clean)
    found = Rollout([], {}, {}, clean, 0)
    worth = torch.full((3,), advantage, dtype=torch.float64)
    forward_process_loss(leaf, found, worth, levels, noise, algorithm, Told()).sum().backward()
    x = (1 - levels).view(-1, 1, 1, 1, 1) * clean + levels.view(-1, 1, 1, 1, 1) * noise
    error = ToyFlow().velocity(x, levels, {}).detach() - (noise - clean)
    wanted = 2 * 0.4 * (advantage / 5.0) * error / clean[0].numel()
    assert torch.allclose(leaf.value.grad, wanted, rtol=1e-6, atol=1e-9)
