"""A reward that was fitted from votes: the networks that can be fitted, and the artifact as a reward like any other.

The artifact of the stage `reward` is a folder: `card.json` says which network it is, its axes, how well it agrees with
held-out votes and how its scores are scaled; the rest is the network's own. A network whose agreement with people
cannot be told from chance is not usable, and is refused here.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.files import write_atomically
from reelign.models.base import CARD
from reelign.rewards.base import Needs, Range, Reward

KIND = "reward"
"""What the card of such an artifact is called, where that of a model says "model"."""


class PreferenceNetwork(nn.Module, ABC):
    """What is fitted: it reads clips and says how good they are on each axis, in units of the votes' log-odds.

    Attributes:
        kind: its name in recipes and cards.
        needs: which frames it is handed.
        axes: what it judges, in the order of its outputs.
        spread: whether it also says how sure it is.
    """

    kind: str
    needs: Needs
    axes: tuple[str, ...]
    spread: bool

    @abstractmethod
    def read(self, clips: Sequence[Clip]) -> list[dict[str, Tensor]]:
        """What the network sees of each clip, on the CPU; it depends on the clip alone and is kept while training."""

    @abstractmethod
    def features(self, seen: Sequence[dict[str, Tensor]]) -> Tensor:
        """Of what `read` gave: what the linear head of each axis reads, float32 (B, axes, F)."""

    def settle(self, apart: Tensor) -> Tensor:
        """Once, before it learns: how far the features of the clips of some pairs are apart, (N, axes, F). A network
        whose features have no common unit takes one from it, so that the prior of the heads means the same for all.
        Returns how far they are apart from then on."""
        return apart

    @abstractmethod
    def head_weights(self) -> Tensor:
        """Of the mean of each axis: the weights that read its features, (axes, F)."""

    @abstractmethod
    def judge(self, features: Tensor) -> Tensor:
        """Of features: float32 (B, axes, 1) means, or (B, axes, 2) means and log deviations."""

    def forward(self, seen: Sequence[dict[str, Tensor]]) -> Tensor:
        """What the network says of what `read` gave."""
        return self.judge(self.features(seen))

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the network's own files into an existing folder."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, facts: dict[str, Any], device: torch.device | str) -> PreferenceNetwork:
        """Read what `save` wrote; `facts` is what `facts()` said.

        Raises:
            ReelignError: a file is missing or does not fit.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Settings that `load` needs, as JSON."""


@dataclass(frozen=True)
class RewardCard:
    """What a fitted reward says of itself.

    Attributes:
        network: kind of its network.
        facts: settings of the network.
        axes: what it judges.
        spread: whether it says how sure it is.
        centre, scale: by axis, mean and deviation of its raw scores over the clips of its training votes.
        accuracy: by axis, agreement with held-out votes that were no ties: value, low, high and n.
        usable: by axis, whether it agrees with people better than chance, its interval included.
        source: of the votes: person, simulated or model, with their numbers.
        k: width of a tie in its likelihood.
    """

    network: str
    facts: dict[str, Any]
    axes: tuple[str, ...]
    spread: bool
    centre: dict[str, float]
    scale: dict[str, float]
    accuracy: dict[str, dict[str, float]]
    usable: dict[str, bool]
    source: dict[str, int]
    k: float
    kind: str = field(default=KIND)

    def save(self, folder: Path) -> None:
        """Write `card.json`."""
        write_atomically(folder / CARD, json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, folder: Path) -> RewardCard:
        """Read `card.json`.

        Raises:
            ReelignError: there is none, or it is not a reward's.
        """
        path = folder / CARD
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ReelignError(f"cannot read {path}: {error}. Give the artifact of a `reward` stage.") from error
        kind = found.get("kind") if isinstance(found, dict) else found
        if kind != KIND:
            raise ReelignError(f"{folder} is no fitted reward: its card says {kind!r}.")
        known = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
        return cls(**{**known, "axes": tuple(known["axes"])})


class LearnedReward(Reward):
    """A fitted reward: by axis the score in deviations from the mean clip of its votes."""

    name = "learned"

    def __init__(
        self,
        folder: Path,
        pessimism: float = 0.0,
        batch: int = 16,
        axes: Sequence[str] = (),
        device: torch.device | str | None = None,
    ) -> None:
        """Load the artifact of a `reward` stage; its dimensions are the axes on which it can be told from chance.

        Args:
            folder: the artifact.
            pessimism: spreads that are taken off the mean, where the network says how sure it is.
            batch: clips in one forward pass.
            axes: those that will be asked for.
            device: where to compute; by default the CUDA device when there is one.

        Raises:
            ReelignError: a file is missing or does not fit; the reward cannot be told from chance on one of `axes`, or
                on all that it has; it is asked for pessimism and has no spread.
        """
        self.card = RewardCard.load(folder)
        sure = [axis for axis in self.card.axes if self.card.usable[axis]]
        poor = [axis for axis in self.card.axes if axis not in sure and (axis in axes or not sure)]
        if poor:
            said = ", ".join(f"{axis} {_percent(self.card.accuracy[axis])}" for axis in poor)
            raise ReelignError(
                f"the reward {folder} cannot be told from chance on held-out votes ({said}): collect more votes, or "
                "give the axis no weight."
            )
        if pessimism and not self.card.spread:
            raise ReelignError(f"the reward {folder} does not say how sure it is; fit it with `spread: true`.")
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.network = load_network(folder, self.card, where).eval().requires_grad_(False)
        self.needs, self.pessimism, self.batch = self.network.needs, pessimism, batch
        self.dimensions = dict.fromkeys(sure, Range())

    def score(self, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
        """Scores of clips that fit `needs`."""
        raw = raw_scores(self.network, self.network.read(clips), self.batch)
        values = raw[..., 0] - (self.pessimism * raw[..., 1].exp() if self.pessimism else 0)
        columns = values.double().numpy().T
        card = self.card
        return {
            axis: (column - card.centre[axis]) / card.scale[axis]
            for axis, column in zip(card.axes, columns, strict=True)
            if axis in self.dimensions
        }


@torch.no_grad()
def raw_scores(network: PreferenceNetwork, seen: Sequence[dict[str, Tensor]], batch: int) -> Tensor:
    """What the network says of clips it has read, float32 (B, axes, outputs) on the CPU."""
    parts = [network(seen[start : start + batch]).float().cpu() for start in range(0, len(seen), batch)]
    return torch.cat(parts)


def load_network(folder: Path, card: RewardCard, device: torch.device | str) -> PreferenceNetwork:
    """The network of an artifact.

    Raises:
        ReelignError: its kind is unknown, or a file is missing or does not fit.
    """
    from reelign.rewards.video_network import VideoNetwork
    from reelign.rewards.vlm_network import VlmNetwork

    kinds: dict[str, type[PreferenceNetwork]] = {network.kind: network for network in (VideoNetwork, VlmNetwork)}
    if card.network not in kinds:
        raise ReelignError(f"{folder} holds a reward network {card.network!r}; known are {', '.join(kinds)}.")
    return kinds[card.network].load(folder, card.facts, device)


def _percent(found: dict[str, float]) -> str:
    return f"{found['value']:.0%} [{found['low']:.0%}, {found['high']:.0%}]"
