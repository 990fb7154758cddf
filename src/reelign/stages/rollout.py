"""A rollout: the groups of some prompts, sampled with the current policy, and what is needed to train on them.

Noise, trained steps and the noise of the stochastic steps follow from (seed, place of the prompt in the stream, clip).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reelign.data.clip import Clip
from reelign.data.prompts import ListedPrompt
from reelign.evaluate.battery import BatteryConfig
from reelign.models.base import Conditions, VideoModel, take
from reelign.sampling.noise import generator, initial_noise
from reelign.sampling.sample import SampleConfig, sample
from reelign.sampling.stochastic import Stochastic, Transition, joined
from reelign.stages.algorithm import Algorithm


@dataclass(frozen=True)
class Place:
    """A prompt at its place in the stream of prompts."""

    position: int
    prompt: ListedPrompt


@dataclass(frozen=True)
class Rollout:
    """Clips that were sampled together.

    Attributes:
        transitions: stochastic transitions, one entry a step of the grid; a single entry where every row has one step.
        conditions, negative: of the transitions' rows.
        latents: (clips, C, F, h, w), the samples.
        nfe: network evaluations that it took.
    """

    transitions: list[Transition]
    conditions: Conditions
    negative: Conditions
    latents: Tensor
    nfe: int


def rows_of(places: Sequence[Place], group: int, algorithm: Algorithm) -> list[tuple[Place, int]]:
    """What the sampler starts with: (place, clip of the group), or (place, 0) once a group that branches."""
    return [(place, clip) for place in places for clip in range(1 if algorithm.branches else group)]


def steps_of(
    rows: Sequence[tuple[Place, int]], algorithm: Algorithm, sampler: SampleConfig, update: int, seed: int
) -> Tensor:
    """Which transitions of each row are stochastic, bool (rows, steps)."""
    keys = [(seed, place.position, *([] if algorithm.iso_temporal else [clip])) for place, clip in rows]
    return algorithm.stochastic_steps(sampler.steps, update, keys)


def longest_first(rows: Sequence[tuple[Place, int]], steps: Tensor) -> list[tuple[Place, int]]:
    """Rows that branch, in the order of their stochastic step (see `steps_of`).

    The earlier a group branches the more evaluations are its clips' own. What is sampled together is then about as
    long, and where slices wait for a core the long ones do not come last.
    """
    return [rows[place] for place in torch.argsort(steps.int().argmax(1), stable=True).tolist()]


def roll_out(
    model: VideoModel,
    rows: Sequence[tuple[Place, int]],
    group: int,
    algorithm: Algorithm,
    sampler: SampleConfig,
    size: BatteryConfig,
    update: int,
    seed: int,
) -> Rollout:
    """Sample some rows (see `rows_of`) with the current weights."""
    branches = group if algorithm.branches else 1
    conditions = model.encode_text([place.prompt.text for place, _ in rows])
    negative = model.encode_text([sampler.negative_prompt] * len(rows))
    keys = [(seed, f"rollout {place.position}", 0 if algorithm.shared_noise else clip) for place, clip in rows]
    noise = initial_noise(keys, model.latent_shape(size.frames, size.height, size.width)).to(model.device)
    own = [(place.position, clip + branch) for place, clip in rows for branch in range(branches)]
    stochastic = Stochastic(
        steps_of(rows, algorithm, sampler, update, seed),
        algorithm.noise_law,
        [generator("rollout", seed, *key) for key in own],
        branches,
        guided=algorithm.guidance == "both",
    )
    found = sample(model, conditions, noise, sampler, negative, stochastic)
    transitions = [joined(found.transitions)] if algorithm.steps == "one" and found.transitions else found.transitions
    return Rollout(transitions, conditions, negative, found.latents, found.nfe)


def to_clips(
    model: VideoModel, rollout: Rollout, rows: Sequence[tuple[Place, int]], group: int, size: BatteryConfig
) -> list[Clip]:
    """Decode a rollout; each clip bears its prompt and a name that says where it comes from."""
    frames = model.decode(rollout.latents).cpu().numpy()
    branches = len(frames) // len(rows)
    owners = [(place, clip + branch) for place, clip in rows for branch in range(branches)]
    return [
        Clip(video, size.fps, place.prompt.text, f"{place.prompt.id}#{place.position}.{clip}")
        for video, (place, clip) in zip(frames, owners, strict=True)
    ]


def rows_taken(transition: Transition, rollout: Rollout, keep: Tensor) -> tuple[Transition, Conditions, Conditions]:
    """Some rows of a transition, with their conditions; `keep` are places (k,) in `transition.rows`."""
    each = (keep[:, None] * transition.branches + torch.arange(transition.branches)).flatten()
    device = transition.x.device
    own, many = keep.to(device), each.to(device)
    part = Transition(
        transition.rows[keep],
        transition.x[own],
        transition.sigma[own],
        transition.sigma_next[own],
        transition.x_next[many],
        transition.logp[many],
        transition.mean[many],
        transition.branches,
    )
    return part, take(rollout.conditions, part.rows), take(rollout.negative, part.rows)
