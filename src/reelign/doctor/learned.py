"""Rewards of kind `learned`: those that lie on disk are loaded; the one that this run will fit has a stand-in.

The stand-in is the network before its votes. It keeps the contract, and takes the time and memory of the fitted one, so
a rehearsal runs as the run will; what it says means nothing, and nobody looks at it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from reelign.data.clip import Clip
from reelign.doctor.finding import Finding, look
from reelign.errors import ReelignError
from reelign.feedback.vote import AXES, Axis
from reelign.recipe import Recipe
from reelign.rewards.base import Range, Reward, RewardSet, Weighted
from reelign.rewards.preference import LearnedReward, PreferenceNetwork, raw_scores
from reelign.rewards.recipe import AnyEntry, LearnedEntry
from reelign.stages.reward import RewardConfig

OWN = "reward/model"


def examine_learned(recipe: Recipe, entries: Sequence[AnyEntry], axes: Sequence[Axis]) -> Iterator[Finding]:
    """A finding for each learned reward of `rlhf.rewards`; `axes` are those that this run's votes are on."""
    for number, entry in enumerate(entries):
        if isinstance(entry, LearnedEntry):
            key = f"rlhf.rewards.{number}"
            yield look(key, lambda e=entry, k=key: _own(recipe.reward, e, k, axes) if e.path is None else _loaded(e, k))


def unnamed(key: str, entries: Sequence[AnyEntry]) -> Iterator[Finding]:
    """A complaint for each learned reward without a path where the run's own reward is not handed in."""
    for number, entry in enumerate(entries):
        if fitted_by_run([entry]):
            sentence = f"is empty, and only `rlhf` takes what a run fits by itself: name the artifact, RUN/{OWN}."
            yield Finding(f"{key}.{number}", False, f"{key}.{number}.path {sentence}")


def fitted_by_run(entries: Sequence[AnyEntry]) -> bool:
    """Whether one of the rewards is still to be fitted."""
    return any(isinstance(entry, LearnedEntry) and entry.path is None for entry in entries)


def rehearsed_rewards(recipe: Recipe, entries: Sequence[AnyEntry], device: torch.device) -> RewardSet:
    """The rewards of a recipe, with a stand-in for what this run will fit.

    Raises:
        ReelignError: a reward does not load.
    """
    return RewardSet([Weighted(_built(recipe, entry, device), entry.weights) for entry in entries])


def _built(recipe: Recipe, entry: AnyEntry, device: torch.device) -> Reward:
    if recipe.reward is None or not fitted_by_run([entry]):
        return entry.build()
    axes = [axis for axis in AXES if axis in entry.weights]
    return Unfitted(recipe.reward.network.build(axes, recipe.model, recipe.seed, device))


class Unfitted(Reward):
    """See the module."""

    name = LearnedReward.name

    def __init__(self, network: PreferenceNetwork) -> None:
        self.network, self.needs = network.eval().requires_grad_(False), network.needs
        self.dimensions = dict.fromkeys(network.axes, Range())

    def score(self, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
        """Means of a network that has learned nothing."""
        raw = raw_scores(self.network, self.network.read(clips), len(clips))
        return dict(zip(self.network.axes, raw[..., 0].double().numpy().T, strict=True))


def _own(reward: RewardConfig | None, entry: LearnedEntry, key: str, axes: Sequence[Axis]) -> str:
    """Whether the run's own stage will make what the entry asks for."""
    if reward is None:
        raise ReelignError(
            f"{key}.path is empty, and the recipe has no `reward:` stage that would fit one: add the stage, or name "
            "the artifact of another run."
        )
    judged = tuple(reward.axes or axes)
    if strange := [axis for axis in entry.weights if judged and axis not in judged]:
        raise ReelignError(
            f"{key}.weights: the reward of this run will not judge {strange[0]!r}; it is fitted to votes on "
            f"{', '.join(judged)}."
        )
    if entry.pessimism and not reward.network.spread:
        raise ReelignError(
            f"{key}.pessimism={entry.pessimism:g} needs a reward that says how sure it is: set "
            "reward.network.spread=true."
        )
    return (
        f"fitted by this run to votes on {', '.join(judged)}, if it agrees with held-out ones better than chance; its "
        "network before any vote stands for it here."
    )


def _loaded(entry: LearnedEntry, key: str) -> str:
    """How well a reward on disk agrees with the votes that it was tested on."""
    try:
        reward = entry.build()
        Weighted(reward, entry.weights)
    except ReelignError as error:
        raise ReelignError(f"{key}: {error}") from None
    assert isinstance(reward, LearnedReward)
    said = ", ".join(f"{axis} {reward.card.accuracy[axis]['value']:.0%}" for axis in reward.dimensions)
    simulated = reward.card.source.get("simulated", 0)
    of = "votes of simulated raters" if simulated == sum(reward.card.source.values()) else "held-out votes"
    return f"{entry.path} agrees with {of} in {said}."
