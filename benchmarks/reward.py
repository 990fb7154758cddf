"""How well a reward fitted to simulated votes agrees with held-out votes, by the number of votes, and what active
pairing saves.

    python benchmarks/reward.py [--work runs/reward]

One pool of pairs of clips of the shipped miniature, half of them on full captions and half on users' words, scored by
the training judge: the gold scores of the simulated raters. For each of eight seeds (of raters, of the choice of votes
and of the held-out prompts) rewards are fitted to 250 to 4,000 votes, a vote being one rater's verdicts on one pair on
all axes, and tested on pairs of other prompts. Accuracy is the expected share of decided votes, over all such raters
that there could be, beside the noise ceiling: what a judge reaches that knows the gold scores. Active pairing starts
from 125 random votes and adds rounds of those that the reward is least sure of. Results go to
benchmarks/results/reward.{json,md}; what is done is not done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reelign.data.clip import read_clip
from reelign.evaluate.battery import BatteryConfig
from reelign.feedback.active import most_telling
from reelign.feedback.simulate import RaterConfig, ScoredPair, expected_accuracy, expected_agreement, simulated_votes
from reelign.feedback.vote import AXES, Vote, read_votes
from reelign.files import write_atomically
from reelign.rewards.certainty import Certainty
from reelign.rewards.miniature import MiniatureReward
from reelign.rewards.video_network import VideoNetwork
from reelign.sampling.sample import SampleConfig
from reelign.stages.context import StageContext
from reelign.stages.reward import RewardConfig, RewardTrainer
from reelign.stages.reward_data import Side
from reelign.stages.votes import VotesConfig, run_votes
from reelign.train.ledger import Ledger
from reelign.train.loop import Interrupt
from reelign.train.parallel import World
from tables import head, line, over_seeds

RESULTS = Path(__file__).parent / "results"
COUNTS = (250, 500, 1000, 2000, 4000)
SEEDS = tuple(range(8))
TESTED, ROUND, MOST = 600, 125, 2000
"""Pairs that are held out, votes of a round of active pairing, and its most votes."""
RATER = RaterConfig()
RECIPE = {
    "network": {"kind": "miniature"},
    "k": 2.0,
    "updates": 400,
    "batch_size": 128,
    "micro_batch": 128,
    "optim": {"lr": 1e-2, "warmup_steps": 10, "schedule": "cosine"},
    "validate_every": 100,
    "save_every": 100,
    "patience": None,
    "held_out": 0.1,
}


def main() -> None:
    """Fit, test and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/reward"), help="where clips and fits are kept")
    parser.add_argument("--pairs", type=int, default=4800, help="pairs of the pool")
    parser.add_argument("--steps", type=int, default=10, help="sampler steps of its clips")
    arguments = parser.parse_args()
    pairs = pool(arguments.work / "pool", arguments.pairs, arguments.steps)
    found, shared = {"random": [], "active": []}, read(pairs)
    for seed in SEEDS:
        split = Split(pairs, seed)
        for count in (count for count in COUNTS if count <= len(split.training)):
            place = arguments.work / f"seed-{seed}" / f"random-{count}"
            found["random"].append(fitted(place, split, split.training[:count], shared))
        found["active"] += active(arguments.work / f"seed-{seed}", split, shared)
    write(found, len(pairs), arguments.steps)


def pool(folder: Path, count: int, steps: int) -> list[ScoredPair]:
    """Pairs of clips of the miniature with the training judge's scores."""
    gold = folder / "gold.json"
    if not gold.exists():
        half = {"kind": "simulated", "pairs": count // 2, "raters": 1}
        styles = [[{"kind": "miniature", "count": 1200, "style": style}] for style in ("full", "user")]
        config = VotesConfig.model_validate({"sources": [half | {"prompts": prompts} for prompts in styles]})
        sampler = SampleConfig(steps=steps, shift=3.0, solver="unipc", guidance_scale=2.0)
        votes = read_votes(run_votes(context(folder / "votes", sampler), config))
        sides = {(side.clip, vote.prompt) for vote in votes for side in (vote.a, vote.b)}
        judge, rows = MiniatureReward(), {}
        for clip, prompt in sorted(sides):
            scores = judge([replace(read_clip(Path(clip), prompt), id=clip)])
            rows[clip] = {axis: float(values[0]) for axis, values in scores.items()}
        write_atomically(gold, json.dumps(rows))
    scores = json.loads(gold.read_text())
    shown = {vote.pair: vote for vote in read_votes(folder / "votes" / "votes.jsonl")}
    return [ScoredPair(v.pair, v.prompt, v.a, v.b, scores[v.a.clip], scores[v.b.clip]) for v in shown.values()]


def read(pairs: Sequence[ScoredPair]) -> dict[Side, dict[str, torch.Tensor]]:
    """What the network reads of every clip, which does not depend on votes."""
    network = VideoNetwork(AXES, spread=False)
    sides = list(dict.fromkeys(side for pair in pairs for side in sides_of(pair)))
    found = {}
    for start in range(0, len(sides), 64):
        part = sides[start : start + 64]
        found |= zip(part, network.read([read_clip(Path(side.clip), side.prompt) for side in part]), strict=True)
    return found


class Split:
    """A seed's held-out pairs, the order in which the others are voted on, and everybody's votes."""

    def __init__(self, pairs: Sequence[ScoredPair], seed: int) -> None:
        self.seed = seed
        source = np.random.default_rng((11, seed))
        prompts = sorted({pair.prompt for pair in pairs})
        source.shuffle(prompts)
        held: set[str] = set()
        while sum(pair.prompt in held for pair in pairs) < TESTED:
            held.add(prompts.pop())
        self.tested = [pair for pair in pairs if pair.prompt in held]
        others = [pair for pair in pairs if pair.prompt not in held]
        self.training = [others[place] for place in source.permutation(len(others))]
        self.votes: dict[str, list[Vote]] = {}
        for vote in simulated_votes(list(pairs), 1, RATER, seed):
            self.votes.setdefault(vote.pair, []).append(vote)

    def of(self, pairs: Sequence[ScoredPair]) -> list[Vote]:
        """The votes on some pairs."""
        return [vote for pair in pairs for vote in self.votes[pair.id]]


def trainer_of(
    place: Path, split: Split, chosen: Sequence[ScoredPair], shared: dict[Side, dict[str, torch.Tensor]]
) -> RewardTrainer:
    """A trainer on the votes of some pairs; what the network reads of a clip is read once for all."""
    recipe = RewardConfig.model_validate(RECIPE)
    return RewardTrainer(context(place, SampleConfig(), split.seed), recipe, split.of(chosen), shared)


def fitted(
    place: Path, split: Split, chosen: Sequence[ScoredPair], shared: dict[Side, dict[str, torch.Tensor]]
) -> dict[str, Any]:
    """Fit to the votes on some pairs, and test on those of the held-out prompts."""
    done = place / "tested.json"
    if not done.exists():
        trainer = trainer_of(place, split, chosen, shared)
        trainer.resume()
        trainer.train()
        trainer.finish()
        write_atomically(done, json.dumps(tested(trainer, split) | {"votes": len(chosen), "seed": split.seed}))
    return json.loads(done.read_text())


def tested(trainer: RewardTrainer, split: Split) -> dict[str, Any]:
    """By axis: accuracy over decided votes, the noise ceiling, and their ratio."""
    sides = [side for pair in split.tested for side in sides_of(pair)]
    scores = {
        side.clip: dict(zip(trainer.axes, row, strict=True))
        for side, row in zip(sides, trainer.scores(sides).tolist(), strict=True)
    }
    found, ceiling = expected_agreement(split.tested, scores, RATER), expected_accuracy(split.tested, RATER)
    return {
        "axes": {
            axis: {
                "accuracy": found[axis],
                "ceiling": ceiling[axis].without_ties,
                "ratio": found[axis] / ceiling[axis].without_ties,
            }
            for axis in AXES
        }
    }


def sides_of(pair: ScoredPair) -> tuple[Side, Side]:
    """The clips of a pair as the stage names them."""
    return Side(pair.a.clip, pair.prompt), Side(pair.b.clip, pair.prompt)


def active(folder: Path, split: Split, shared: dict[Side, dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
    """Rounds of the pairs that the reward is least sure of, from the first random ones to `MOST`."""
    chosen, found = split.training[:ROUND], []
    while True:
        place = folder / f"active-{len(chosen)}"
        found.append(fitted(place, split, chosen, shared))
        if len(chosen) >= MOST:
            return found
        trainer = trainer_of(place, split, chosen, shared)
        best = trainer.checkpoints.best()
        assert best is not None
        trainer.checkpoints.load(best, trainer.state())
        names = {pair.id for pair in chosen}
        rest = [pair for pair in split.training if pair.id not in names]
        features, differences = trainer.apart([sides_of(pair) for pair in rest])
        certainty = Certainty.load(place / "model", RECIPE["k"])
        order = most_telling(features, differences, certainty, trainer.axes, ROUND)
        chosen = chosen + [rest[number] for number in order]


def context(folder: Path, sampler: SampleConfig, seed: int = 0) -> StageContext:
    """What a run hands to a stage."""
    return StageContext(
        folder=folder,
        parent="miniature",
        dataset=None,
        seed=seed,
        dtype="float32",
        sampler=sampler,
        battery=BatteryConfig(),
        world=World(0, 1, torch.device("cpu"), None),
        ledger=Ledger(folder / "ledger.jsonl"),
        interrupt=Interrupt(),
    )


def write(found: dict[str, list[dict[str, Any]]], pairs: int, steps: int) -> None:
    """The tables and everything behind them."""
    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / "reward.json", json.dumps(found, indent=1) + "\n")
    lines = [
        "# Rewards fitted to simulated votes",
        "",
        f"`python benchmarks/reward.py`: {pairs} pairs of clips of the shipped miniature ({steps} steps), {TESTED}",
        "held out by prompt. Expected accuracy over decided votes, the noise ceiling, and its share of the ceiling:",
        f"means of {len(SEEDS)} seeds, with the range of the share.",
        "",
        *head("votes", "chosen", *(f"{axis}: accuracy, ceiling, share" for axis in AXES)),
    ]
    for how, rows in found.items():
        for count in counts_of(rows):
            same = [row["axes"] for row in rows if row["votes"] == count]
            cells = []
            for axis in AXES:
                accuracy, ceiling = (np.mean([row[axis][name] for row in same]) for name in ("accuracy", "ceiling"))
                cells.append(f"{accuracy:.3f}, {ceiling:.3f}, {over_seeds([row[axis]['ratio'] for row in same])}")
            lines.append(line(count, how, *cells))
    lines += [
        "",
        "Chosen votes that reach what random ones do, between rounds by a straight line, and how many fewer they are:",
        "",
        *head("random votes", *AXES, "mean of the axes"),
    ]
    for count in (count for count in COUNTS if count <= MOST):
        lines.append(line(count, *(fewer(found, count, axes) for axes in (*((axis,) for axis in AXES), AXES))))
    write_atomically(RESULTS / "reward.md", "\n".join(lines) + "\n")


def counts_of(rows: Sequence[dict[str, Any]]) -> list[int]:
    """The numbers of votes of some fits."""
    return sorted({row["votes"] for row in rows})


def fewer(found: dict[str, list[dict[str, Any]]], count: int, axes: Sequence[str]) -> str:
    """How many chosen votes reach the share of the ceiling, a mean over axes and seeds, of `count` random ones."""

    def share(how: str, votes: int) -> float:
        return float(np.mean([row["axes"][a]["ratio"] for row in found[how] if row["votes"] == votes for a in axes]))

    due, votes = share("random", count), counts_of(found["active"])
    shares = [share("active", number) for number in votes]
    there = next((place for place, value in enumerate(shares) if value >= due), None)
    if there is None:
        return "not reached"
    around = slice(max(0, there - 1), there + 1)
    need = float(np.interp(due, shares[around], votes[around]))
    return f"{need:,.0f} ({1 - need / count:.0%})"


if __name__ == "__main__":
    main()
