"""How much of a policy's gradient repeats: the agreement of independent estimates, for several ways to estimate it.

    python benchmarks/rl_gradients.py --parent runs/demo/sft/model --sets 8

Every set has prompts and noise of its own. For each variant the table has the mean cosine between the gradients of two
sets: with the training judge's advantages (does the estimate repeat), and of the training judge's in one set with the
evaluation judge's in the other (does it lead where the held-out judge looks). Where the signal has the length S and
the noise N, the cosine is S^2 / (S^2 + N^2). Then the same after what Adam does to a gradient, for several `eps`, and
for each dimension of the reward alone: what does not repeat is noise in the sum, whatever it rewards.
The evaluation judge is asked here to measure, never in training. Writes `rl_gradients.json` and `.md`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reelign.data.clip import Clip
from reelign.doctor.rehearsal import judged, sample_groups
from reelign.flow.policy import group_advantages
from reelign.miniature.captions import read_prompt
from reelign.miniature.judge import judge
from reelign.miniature.judgement import AXES
from reelign.recipe import Recipe, load_recipe
from reelign.stages.algorithm import Algorithm
from reelign.stages.objectives import Told
from reelign.stages.rlhf import Trainer
from reelign.stages.rollout import Rollout
from rl_runs import trainer, write
from tables import head, line

VARIANTS: dict[str, dict[str, Any]] = {
    "policy gradient, white noise": {"preset": "reelign", "band": 1.0},
    "policy gradient, low half of the frequencies": {"preset": "reelign", "band": 0.5},
    "policy gradient, low half, first quarter of the steps": {"preset": "reelign", "band": 0.5, "last": 0.25},
    "DiffusionNFT, each clip at its own level and noise": {"preset": "diffusion-nft"},
    "reelign-nft: a group at the same level and noise": {"preset": "reelign-nft", "nft_levels": 1},
    "reelign-nft: at two levels": {"preset": "reelign-nft", "nft_levels": 2},
    "reelign-nft: at five levels": {"preset": "reelign-nft", "nft_levels": 5},
    "reelign-nft: at all ten levels": {"preset": "reelign-nft", "nft_levels": 10},
}
Weights = dict[str, float]
ALL_AXES: Weights = dict.fromkeys(map(str, AXES), 1.0)
EPSILONS = (1e-8, 1e-5, 1e-4, 1e-3)


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/miniature-rlhf.yaml"))
    parser.add_argument("--parent", required=True, help="the SFT artifact")
    parser.add_argument("--sets", type=int, default=8, help="independent estimates")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rl_gradients"))
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, [f"model={arguments.parent}"])
    rows = {name: measured(recipe, VARIANTS[name], arguments.sets) for name in arguments.variants}
    dimensions = apart(recipe, arguments.sets)
    facts = {"sets": arguments.sets, "variants": rows, "dimensions": dimensions}
    write(arguments.out, facts, table(rows) + "\n" + dimension_table(dimensions))


def variant(recipe: Recipe, change: dict[str, Any]) -> Algorithm:
    """An algorithm with the recipe's rollouts."""
    assert recipe.rlhf is not None
    shared = {"guidance": recipe.rlhf.algorithm.guidance, "rollout_steps": recipe.rlhf.algorithm.rollout_steps}
    return Algorithm.model_validate(shared | change)


def measured(recipe: Recipe, change: dict[str, Any], sets: int) -> dict[str, Any]:
    """Agreement of the gradients of some sets, plain and after Adam's division."""
    found, theirs = gradients(recipe, variant(recipe, change), sets, lambda weights: {"all": weights})
    ours = found["all"]
    root = torch.stack(ours).square().mean(0).sqrt()
    divided = {eps: [[g / (root + eps) for g in part] for part in (ours, theirs)] for eps in EPSILONS}
    return {
        "repeats": agreement(ours, ours),
        "transfers": agreement(ours, theirs),
        "root_mean_square": float(root.square().mean().sqrt()),
        "after_adam": {f"{eps:g}": agreement(*parts) for eps, parts in divided.items()},
    }


def apart(recipe: Recipe, sets: int) -> dict[str, dict[str, Any]]:
    """Agreement of the gradients of `reelign-nft`, each dimension of the reward alone."""
    algorithm = variant(recipe, {"preset": "reelign-nft"})
    ours, theirs = gradients(recipe, algorithm, sets, lambda weights: {name: {name: 1.0} for name in weights})
    return {
        name: {
            "length": float(np.mean([float(gradient.norm()) for gradient in found])),
            "repeats": agreement(found, found),
            "transfers": agreement(found, theirs),
        }
        for name, found in ours.items()
    }


def gradients(
    recipe: Recipe, algorithm: Algorithm, sets: int, weighed: Callable[[Weights], dict[str, Weights]]
) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """Of some sets of groups: the gradients of every weighting that `weighed` makes of the recipe's, by its name, and
    those of the evaluation judge."""
    with tempfile.TemporaryDirectory() as folder:
        taught = trainer(recipe, algorithm, Path(folder))
        asked = weighed(taught.rewards.weights)
        ours: dict[str, list[Tensor]] = {name: [] for name in asked}
        theirs: list[Tensor] = []
        for taught.update in range(sets):
            rollouts, rewards, held_out = judged_groups(taught)
            told = [(rewards, weights, ours[name]) for name, weights in asked.items()]
            for scores, weights, found in [*told, (held_out, ALL_AXES, theirs)]:
                worth = group_advantages(scores, weights, algorithm.denominator, algorithm.advantage_bound)
                found.append(gradient(taught, rollouts, taught.own(worth)))
    return ours, theirs


def judged_groups(taught: Trainer) -> tuple[list[Rollout], dict[str, Tensor], dict[str, Tensor]]:
    """The rollouts of an update, the rewards and the held-out scores by name, (prompts, group)."""
    groups = sample_groups(taught, taught.algorithm)
    rewards, _ = judged(taught, groups.clips)
    rows = [held_out_scores(clip) for clip in groups.clips]
    gold = {axis: torch.tensor([row[axis] for row in rows]).double() for axis in AXES}
    return groups.rollouts, rewards, {axis: values.view(-1, taught.config.group_size) for axis, values in gold.items()}


def held_out_scores(clip: Clip) -> dict[str, float]:
    """The evaluation judge's verdict on a clip of the recipe's prompts."""
    asked = read_prompt(clip.prompt)
    assert asked is not None
    return judge(clip.frames, asked.scene, asked.stated).scores


def gradient(taught: Trainer, rollouts: list[Rollout], advantages: Tensor) -> Tensor:
    """Of the update's loss, all trained weights in one float64 vector."""
    losses = taught.nft_losses if taught.algorithm.objective == "nft" else taught.policy_losses
    for parameter in taught.trainee.parameters.values():
        parameter.grad = None
    for loss in losses(rollouts, advantages, Told()):
        loss.sum().backward()
    grads = [parameter.grad for parameter in taught.trainee.parameters.values()]
    return torch.cat([grad.flatten() for grad in grads if grad is not None]).double() / len(advantages)


def agreement(one: list[Tensor], other: list[Tensor]) -> dict[str, float]:
    """Mean cosine over pairs of different sets, and its standard error as if the pairs were independent."""
    pairs = [(i, j) for i, j in product(range(len(one)), repeat=2) if (i < j if one is other else i != j)]
    cosines = [float(one[i] @ other[j] / (one[i].norm() * other[j].norm())) for i, j in pairs]
    return {"mean": float(np.mean(cosines)), "error": float(np.std(cosines) / math.sqrt(len(cosines)))}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """As Markdown."""
    lines = head("gradient", "repeats", "transfers", *(f"transfers, Adam at eps {eps:g}" for eps in EPSILONS))
    for name, row in rows.items():
        found = [row["repeats"], row["transfers"], *row["after_adam"].values()]
        lines.append(line(name, *map(agreed, found)))
    return "\n".join(lines) + "\n"


def dimension_table(rows: dict[str, dict[str, Any]]) -> str:
    """As Markdown."""
    lines = head("rewarded alone", "length", "repeats", "transfers, to all axes")
    for name, row in rows.items():
        lines.append(line(name, f"{row['length']:.4f}", agreed(row["repeats"]), agreed(row["transfers"])))
    return "\n".join(lines) + "\n"


def agreed(found: dict[str, float]) -> str:
    """A mean cosine and its error."""
    return f"{found['mean']:+.3f} ± {found['error']:.3f}"


if __name__ == "__main__":
    main()
