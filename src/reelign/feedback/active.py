"""Active pairing: of all pairs that could be shown next, those whose outcome a fitted reward is least sure of.

What a vote on a pair is expected to tell about the reward's head, in nats (arXiv 1112.5745, with the last layer's
normal approximation):   1/2 sum over axes of log(1 + h x' precision^-1 x)

It is large where the votes so far leave the difference open, and small where the verdict cannot be foreseen because
the clips are alike. Pairs are chosen one after the other, each as if those before it had been voted on, so that a
round does not ask the same question many times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from reelign.data.clip import read_clip
from reelign.feedback.study import Study
from reelign.rewards.base import fit
from reelign.rewards.certainty import Certainty, curvature
from reelign.rewards.preference import RewardCard, load_network

BATCH = 16


def least_sure(study: Study, reward: Path, count: int | None = None) -> dict[str, float]:
    """How much a vote on each pair of a study would teach the reward, in nats: by id of the pair.

    Args:
        study: its gold pairs are left out.
        reward: the artifact of a `reward` stage; it need not be usable yet.
        count: how many pairs are chosen; all others come after them and are not mentioned.

    Raises:
        ReelignError: the artifact is none, or a clip is missing.
    """
    pairs = [pair for pair in study.store.pairs() if not pair.gold]
    card = RewardCard.load(reward)
    network = load_network(reward, card, "cpu").eval()
    sides = list(dict.fromkeys((side.clip, pair.prompt) for pair in pairs for side in (pair.a, pair.b)))
    features, scores = {}, {}
    for start in range(0, len(sides), BATCH):
        part = sides[start : start + BATCH]
        seen = network.read([fit(read_clip(study.clip(name), prompt), network.needs) for name, prompt in part])
        with torch.no_grad():
            read = network.features(seen)
            for side, row, score in zip(part, read, network.judge(read)[..., 0], strict=True):
                features[side], scores[side] = row.double(), score.double()
    both = [((pair.a.clip, pair.prompt), (pair.b.clip, pair.prompt)) for pair in pairs]
    apart = torch.stack([features[a] - features[b] for a, b in both])
    differences = torch.stack([scores[a] - scores[b] for a, b in both])
    order = most_telling(apart, differences, Certainty.load(reward, card.k), card.axes, count or len(pairs))
    return {pairs[place].id: gain for place, gain in order.items()}


def most_telling(
    features: Tensor, differences: Tensor, certainty: Certainty, axes: Sequence[str], count: int
) -> dict[int, float]:
    """The `count` pairs that tell most together, chosen greedily.

    Args:
        features: differences of the features of the pairs, float64 (N, axes, F).
        differences: of their scores, (N, axes).
        certainty: after the votes so far.
        axes: their names.
        count: how many.

    Returns:
        by place of the pair, in the order of choice, what its vote is expected to tell after those before it.
    """
    bend = curvature(differences, certainty.k)
    covariance = {axis: torch.linalg.inv(certainty.precision[axis]) for axis in axes}
    spread = _spread(features, covariance, axes)
    open_, chosen = torch.ones(len(features), dtype=torch.bool), dict[int, float]()
    for _ in range(min(count, len(features))):
        gains = (0.5 * torch.log1p(bend * spread).sum(1)).masked_fill(~open_, -torch.inf)
        place = int(gains.argmax())
        chosen[place] = float(gains[place])
        open_[place] = False
        for number, axis in enumerate(axes):  # Sherman-Morrison: the vote is as good as cast
            x, own = features[place, number], covariance[axis]
            moved = own @ x
            share = bend[place, number] / (1 + bend[place, number] * spread[place, number])
            covariance[axis] = own - share * torch.outer(moved, moved)
            spread[:, number] = spread[:, number] - share * (features[:, number] @ moved).square()
    return chosen


def _spread(features: Tensor, covariance: Mapping[str, Tensor], axes: Sequence[str]) -> Tensor:
    """Variance of the difference of each pair, (N, axes)."""
    rows = [((features[:, n] @ covariance[axis]) * features[:, n]).sum(1) for n, axis in enumerate(axes)]
    return torch.stack(rows, 1)
