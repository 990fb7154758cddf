"""The one sampler: rollouts, validation, evaluation and serving all call `sample`.

Which steps are stochastic, which grid, which guidance, which noise are arguments. Replay is the same transition with
the stored next latent, so that training and rollout cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from reelign.errors import ReelignError
from reelign.flow.grid import Spacing, sigma_grid
from reelign.flow.path import interpolate, to_x0
from reelign.flow.step import NoiseLaw, SdeStep, ode_step, sde_step
from reelign.models.base import Conditions, VideoModel, take
from reelign.models.causal import View
from reelign.models.kv_cache import CausalConfig, KVCache, Pair, TextCache
from reelign.sampling.noise import noise_after
from reelign.sampling.slices import Made, side_by_side
from reelign.sampling.stochastic import Stochastic, Transition, branched, joined
from reelign.sampling.unipc import UniPC


class SampleConfig(BaseModel):
    """How clips are sampled."""

    model_config = ConfigDict(extra="forbid")
    steps: int = Field(default=20, ge=1, le=1000, description="Transitions from noise to data.")
    shift: float = Field(default=3.0, gt=0, description="Static shift of the grid; 3 for Wan at 480p, 5 at 720p.")
    solver: Literal["euler", "unipc", "renoise"] = Field(
        default="unipc",
        description="How a step is taken: two solvers of the ODE; 'renoise' predicts the clip and adds fresh noise of "
        "the next level, which is how distilled few-step models are sampled.",
    )
    spacing: Spacing | None = Field(
        default=None, description="The grid of 'unipc' or 'euler'; the solver's own if empty ('renoise': unipc)."
    )
    guidance_scale: float = Field(default=3.0, ge=0, description="Classifier-free guidance; 1 turns it off.")
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), description="Noise levels with guidance (arXiv 2404.07724); outside, one evaluation a step."
    )
    negative_prompt: str = Field(default="", description="What guidance leads away from.")

    @model_validator(mode="after")
    def _unipc_has_its_grid(self) -> SampleConfig:
        if self.solver == "unipc" and self.spacing not in (None, "unipc"):
            raise ValueError("solver=unipc brings its own grid; leave `spacing` empty")
        return self

    @property
    def grid(self) -> Tensor:
        """The noise levels, float64 (steps + 1,)."""
        own: Spacing = "euler" if self.solver == "euler" else "unipc"
        return sigma_grid(self.steps, self.shift, self.spacing or own)

    @property
    def guided(self) -> Tensor:
        """Which steps are guided, bool (steps,)."""
        low, high = self.guidance_interval
        levels = self.grid[:-1].float()
        return (levels >= low) & (levels <= high) & (self.guidance_scale != 1)

    @property
    def evaluations(self) -> int:
        """Network evaluations of a clip: two at a guided step, one at another."""
        return self.steps + int(self.guided.sum())


@dataclass(frozen=True)
class Sampled:
    """What sampling gives: latents (B * branches, C, F, h, w), stored transitions in order, and the network evaluations
    that it took (one a row each time)."""

    latents: Tensor
    transitions: list[Transition]
    nfe: int


def clip_evaluations(config: SampleConfig, causal: CausalConfig | None, frames: int) -> float:
    """Network evaluations of a clip of so many latent frames, in whole clips: the blocks of a causal model are parts of
    one, and all but the last are remembered, which is an evaluation more if the last step does not do it."""
    if causal is None or causal.memory == "last_step":
        return float(config.evaluations)
    blocks = len(causal.blocks(frames))
    return config.steps + (blocks - 1) / blocks


def own_sampler(model: VideoModel) -> SampleConfig | None:
    """The sampler that a distilled model was made for; None for a model that leaves the choice."""
    return None if model.own_sampler is None else SampleConfig.model_validate(model.own_sampler)


@torch.no_grad()
def sample(
    model: VideoModel,
    conditions: Conditions,
    noise: Tensor,
    config: SampleConfig,
    negative: Conditions | None = None,
    stochastic: Stochastic | None = None,
) -> Sampled:
    """Sample a batch.

    Args:
        model: gives the velocity.
        conditions: of the prompts, batch first.
        noise: (B, C, F, h, w), standard normal.
        config: grid, solver and guidance.
        negative: conditions of the negative prompt; needed when guidance is on.
        stochastic: the transitions that are SDE steps; they are stored and returned.

    Raises:
        ReelignError: guidance without `negative`, stochastic steps with a solver that has no such step, or guidance or
            stochastic steps of a causal model, whose cache holds one past.
    """
    if model.causal is None:
        return _steps(model, conditions, noise, config, negative, stochastic)
    if stochastic is not None or config.guidance_scale != 1:
        raise ReelignError(
            f"{model.name} is causal: it is sampled without guidance (guidance_scale=1) and without stochastic steps."
        )
    return _blocks(model, conditions, noise, config)


def _blocks(model: VideoModel, conditions: Conditions, noise: Tensor, config: SampleConfig) -> Sampled:
    """Clips of a causal model, block after block."""
    assert model.causal is not None
    own, frames = model.causal.config, noise.shape[2]

    def some(rows: slice) -> Tensor:
        said, cache, text, clean = take(conditions, rows), KVCache(), TextCache(), []
        for first, end in own.blocks(frames):
            found = next_block(model, said, noise[rows, :, first:end], config, cache, text, last=end == frames)
            clean.append(found.latents)
            cache = found.cache
        return torch.cat(clean, 2)

    nfe = math.ceil(len(noise) * clip_evaluations(config, own, frames))
    return Sampled(torch.cat(in_slices(model, noise, some)), [], nfe)


def _steps(
    model: VideoModel,
    conditions: Conditions,
    noise: Tensor,
    config: SampleConfig,
    negative: Conditions | None,
    stochastic: Stochastic | None,
) -> Sampled:
    """Clips of a model that sees all frames, step after step."""

    def some(rows: slice) -> Sampled:
        own, away = take(conditions, rows), None if negative is None else take(negative, rows)
        found = _denoise(model, own, noise[rows], config, away, stochastic and stochastic.only(rows))
        return replace(found, transitions=[replace(t, rows=t.rows + rows.start) for t in found.transitions])

    parts = in_slices(model, noise, some, 1 if stochastic is None else stochastic.branches)
    steps: dict[float, list[Transition]] = {}
    for transition in [transition for part in parts for transition in part.transitions]:
        steps.setdefault(float(transition.sigma[0]), []).append(transition)
    together = [joined(steps[level]) for level in sorted(steps, reverse=True)]
    return Sampled(torch.cat([part.latents for part in parts]), together, sum(part.nfe for part in parts))


@torch.no_grad()
def in_slices(model: VideoModel, latents: Tensor, work: Callable[[slice], Made], branches: int = 1) -> list[Made]:
    """What `work` makes of all rows of (B, C, F, h, w) with a model, without gradients, in slices where that is faster;
    a row becomes `branches`."""
    if model.device.type != "cpu" or not model.stateless:
        return [work(slice(0, len(latents)))]
    clips = (1 + branches) / 2  # a group is one row until it branches
    if model.causal is not None:
        clips *= model.causal.config.block / latents.shape[2]
    return side_by_side(len(latents), clips, work)


@dataclass(frozen=True)
class Block:
    """A block of a causal model: latents (B, C, block, h, w), the cache for the block after it, and the network
    evaluations of blocks that it took."""

    latents: Tensor
    cache: KVCache
    nfe: int


@torch.no_grad()
def next_block(
    model: VideoModel,
    conditions: Conditions,
    noise: Tensor,
    config: SampleConfig,
    cache: KVCache,
    text: TextCache | None = None,
    last: bool = False,
) -> Block:
    """Denoise the block that follows what `cache` holds, and remember it unless it is the last one.

    Args:
        noise: (B, C, block, h, w), standard normal.
        text: what was computed of the prompt so far; a new prompt needs a new one.
    """
    assert model.causal is not None
    own = model.causal.config
    written = dict[int, Pair]() if memory_level(own, config) > 0 and not last else None
    with model.causal.seeing(View(cache, text, written)):
        found = _denoise(model, conditions, noise, config, None, None)
    if last:
        return Block(found.latents, cache, found.nfe)
    if written is not None:  # by each step over the one before it
        return Block(found.latents, _with(cache, written, own).joined(), found.nfe)
    cache = remembered(model, conditions, found.latents, cache, text).joined()
    return Block(found.latents, cache, found.nfe + len(noise))


def memory_level(causal: CausalConfig, config: SampleConfig) -> float:
    """The noise level at which a block is remembered.

    Raises:
        ReelignError: it shall be remembered as its last step saw it, and that is the first one, which sees noise.
    """
    if causal.memory == "finished":
        return 0.0
    if config.steps == 1:
        raise ReelignError("memory=last_step needs two steps at least: the last step of one sees nothing but noise.")
    return float(config.grid[-2])


def as_remembered(causal: CausalConfig, config: SampleConfig, clean: Tensor, noise: Tensor) -> Tensor:
    """A finished block as it is remembered: itself, or under the noise that its last step saw."""
    level = memory_level(causal, config)
    return clean if level == 0 else renoised(clean, noise, level, config.steps - 2)


@torch.no_grad()
def remembered(
    model: VideoModel,
    conditions: Conditions,
    latents: Tensor,
    cache: KVCache,
    text: TextCache | None = None,
    level: float = 0.0,
) -> KVCache:
    """The cache with a block: one evaluation of its latents at their noise level, which is 0 for a finished block
    (arXiv 2506.08009)."""
    assert model.causal is not None
    written = dict[int, Pair]()
    with model.causal.seeing(View(cache, text, written)):
        model.velocity(latents, latents.new_full((len(latents),), level), conditions)
    return _with(cache, written, model.causal.config)


def _with(cache: KVCache, written: dict[int, Pair], config: CausalConfig) -> KVCache:
    """The cache with the block whose keys and values a call has written."""
    return cache.extended([written[layer] for layer in sorted(written)], config)


def _denoise(
    model: VideoModel,
    conditions: Conditions,
    noise: Tensor,
    config: SampleConfig,
    negative: Conditions | None,
    stochastic: Stochastic | None,
) -> Sampled:
    """All steps of a clip, or of the block that a causal model is at."""
    grid, latents, nfe = config.grid, noise.float(), 0
    transitions: list[Transition] = []
    owner = torch.arange(len(noise))
    solver = UniPC(config.steps, config.shift) if config.solver == "unipc" else None
    if model.block_cache is not None:
        model.block_cache.clear()
    if config.solver != "euler" and stochastic is not None and bool(stochastic.steps.any()):
        raise ReelignError(
            "stochastic steps need sampler.solver=euler: UniPC carries a memory over its steps, and 'renoise' has a "
            "noise of its own."
        )
    for index in range(config.steps):
        sigma, sigma_next = (latents.new_full((len(latents),), float(grid[k])) for k in (index, index + 1))
        seen = sigma if solver is None else solver.level_seen_by_model(sigma, index)
        own, away = conditions, negative
        if len(owner) > len(noise):
            own, away = take(conditions, owner), None if negative is None else take(negative, owner)
        random = None if stochastic is None else stochastic.steps[owner, index]
        plain = random if stochastic is not None and not stochastic.guided else None
        velocity, evaluations = guided_velocity(model, latents, seen, own, config, away, plain)
        nfe += evaluations * len(latents)
        if solver is not None:
            latents = solver.step(velocity, latents, index)
            continue
        if config.solver == "renoise":
            latents = renoised(to_x0(latents, velocity, sigma), noise, float(grid[index + 1]), index)
            continue
        moved = ode_step(latents, velocity, sigma, sigma_next)
        if stochastic is not None and random is not None and len(here := random.nonzero().flatten()):
            levels = (sigma[here], sigma_next[here])
            transition = branched(owner[here], latents[here], velocity[here], levels, stochastic, grid)
            transitions.append(transition)
            results = torch.ones_like(owner)
            results[here] = stochastic.branches
            each = torch.arange(len(owner)).repeat_interleave(results)
            moved, owner = moved[each.to(moved.device)], owner[each]
            moved[torch.isin(each, here).to(moved.device)] = transition.x_next
        latents = moved
    return Sampled(latents, transitions, nfe)


def renoised(clean: Tensor, initial: Tensor, sigma_next: float, index: int) -> Tensor:
    """Fresh noise of the next level on a predicted clip; it follows from the clip's initial noise and the step's index,
    so that a clip depends neither on its batch nor on a hidden generator."""
    if sigma_next == 0:
        return clean
    return interpolate(clean, noise_after(initial, index).to(clean), sigma_next)


def replay(
    model: VideoModel,
    conditions: Conditions,
    transition: Transition,
    config: SampleConfig,
    law: NoiseLaw,
    negative: Conditions | None = None,
) -> SdeStep:
    """The stored transition under the current weights; gradients flow through its `logp` and `mean`.

    `conditions` and `negative` are those of the transition's own rows. Branches share one network evaluation.
    """
    velocity, _ = guided_velocity(model, transition.x, transition.sigma, conditions, config, negative)
    x, velocity, sigma, sigma_next = (
        value.repeat_interleave(transition.branches, 0)
        for value in (transition.x, velocity, transition.sigma, transition.sigma_next)
    )
    return sde_step(x, velocity, sigma, sigma_next, law, config.grid.to(x), x_next=transition.x_next)


def guided_velocity(
    model: VideoModel,
    latents: Tensor,
    sigma: Tensor,
    conditions: Conditions,
    config: SampleConfig,
    negative: Conditions | None,
    plain: Tensor | None = None,
) -> tuple[Tensor, int]:
    """`v_neg + s (v - v_neg)` (arXiv 2207.12598) inside the guidance interval, `v` outside and in the rows of `plain`.

    Returns:
        the velocity, and the network evaluations of a row.
    """
    low, high = config.guidance_interval
    guided = (sigma >= low) & (sigma <= high) & (config.guidance_scale != 1)
    if plain is not None:
        guided &= ~plain.to(guided.device)
    with model.branch("cond"):
        velocity = model.velocity(latents, sigma, conditions)
    if not bool(guided.any()):
        return velocity, 1
    if negative is None:
        raise ReelignError(f"guidance_scale={config.guidance_scale:g} needs the conditions of the negative prompt.")
    with model.branch("uncond"):
        away = model.velocity(latents, sigma, negative)
    return torch.where(guided.view(-1, 1, 1, 1, 1), away + config.guidance_scale * (velocity - away), velocity), 2
