"""The reward stage: a network is fitted to votes, and becomes a reward like any other (arXiv 2501.13918, section 3.2).

    D = score(A) - score(B) on each axis;   loss = -log P(vote | D), Bradley-Terry with ties (`reelign.flow.ties`)

The heads have a normal prior, under which the difference of a usual pair has the variance of `certainty.PRIOR`: few
votes on many features would otherwise be learned by heart.

Prompts are held out, never votes: half of them decide when to stop, the other half say how well the reward agrees with
people. A reward whose agreement cannot be told from chance is not usable, and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reelign.errors import ReelignError
from reelign.feedback.comparison import axes_of
from reelign.feedback.vote import Axis, Vote
from reelign.flow.ties import moderated, probabilities, tie_nll
from reelign.rewards.certainty import Certainty, prior_precision
from reelign.rewards.preference import PreferenceNetwork, RewardCard
from reelign.rewards.video_network import VideoNetworkConfig
from reelign.rewards.vlm_network import VlmNetworkConfig
from reelign.stages.asked import drawn
from reelign.stages.context import StageContext
from reelign.stages.reward_data import Ballot, SeenClips, Side, ballots_of
from reelign.stages.reward_verdict import Verdict, judged, write_verdict
from reelign.stages.updates import Updates
from reelign.train.ema import Ema
from reelign.train.optim import OptimConfig, Optimizer
from reelign.train.track import Sink

PAIRS_OF_PRIOR = 256
"""Pairs from which the size of features is estimated."""
Part = Literal["training", "validation", "test"]
NetworkConfig = Annotated[VideoNetworkConfig | VlmNetworkConfig, Field(discriminator="kind")]


class RewardConfig(BaseModel):
    """Fitting a reward to votes. One update looks at `batch_size` votes on pairs, all axes at once."""

    model_config = ConfigDict(extra="forbid")
    network: NetworkConfig = Field(description="What is fitted.")
    axes: list[Axis] | None = Field(
        default=None, min_length=1, description="What it judges; all that was voted on if empty."
    )
    k: float = Field(
        default=2.0, gt=1, description="Width of a tie: equal clips tie with (k - 1) / (k + 1). 5 in VideoAlign."
    )
    updates: int = Field(default=400, ge=1, description="Optimiser steps.")
    batch_size: int = Field(default=32, ge=1, description="Votes an update, over all ranks.")
    micro_batch: int = Field(default=32, ge=1, description="Votes in one forward pass on a rank: twice as many clips.")
    optim: OptimConfig = Field(default_factory=OptimConfig, description="AdamW, warm-up and schedule.")
    ema_decay: float = Field(default=0.98, ge=0, lt=1, description="Average of the weights; it is what is kept.")
    held_out: float = Field(default=0.2, gt=0, lt=0.9, description="Share of prompts that are not learned from.")
    validate_every: int = Field(default=50, ge=1, description="Updates between validations.")
    patience: int | None = Field(default=4, ge=1, description="Validations without a new best before it stops early.")
    save_every: int = Field(default=50, ge=1, description="Updates between checkpoints.")
    cache: float = Field(
        default=4.0, ge=0, description="GiB of clips that are kept in memory, as the network sees them."
    )
    track: list[Sink] = Field(default_factory=list, description="Besides metrics.jsonl: tensorboard, wandb.")


def run_reward(context: StageContext, config: RewardConfig, votes: Sequence[Vote]) -> Path:
    """Fit a reward and write it to `context.folder / "model"`; resumes what was begun.

    Raises:
        ReelignError: there are too few votes, or a clip is missing.
    """
    trainer = RewardTrainer(context, config, votes)
    trainer.resume()
    trainer.train()
    return trainer.finish()


class RewardTrainer(Updates):
    """The updates and the state that a checkpoint holds."""

    phase, doing = "reward/train", "reward: fit"

    def __init__(
        self,
        context: StageContext,
        config: RewardConfig,
        votes: Sequence[Vote],
        read: Mapping[Side, dict[str, Tensor]] | None = None,
    ) -> None:
        """Fit to `votes`; several fits to the same clips may share what the network's `read` says of them."""
        super().__init__(context, config)
        self.config = config
        share, rest = divmod(config.batch_size, context.world.size)
        if rest:
            raise ReelignError(
                f"reward.batch_size={config.batch_size} does not divide over {context.world.size} ranks."
            )
        self.share = share
        self.axes = _axes(votes, config.axes)
        plain = [vote for vote in votes if vote.kind == "plain" and vote.axis in self.axes]
        place = parts_of((vote.prompt for vote in plain), config.held_out)
        self.votes = {part: [vote for vote in plain if place[vote.prompt] == part] for part in get_args(Part)}
        self.ballots = {name: ballots_of(found, self.axes) for name, found in self.votes.items()}
        self.network: PreferenceNetwork = config.network.build(
            self.axes, context.parent, context.seed, context.world.device
        )
        self.clips = SeenClips(self.network, int(config.cache * 2**30), read or {})
        learned = [(name, value) for name, value in self.network.named_parameters() if value.requires_grad]
        self.learned = dict(learned)
        shown = [(ballot.a, ballot.b) for ballot in self.ballots["training"][:PAIRS_OF_PRIOR]]
        self.ema = Ema(learned, config.ema_decay)
        apart = self.network.settle(self.apart(shown)[0])
        self.prior = prior_precision(apart.transpose(0, 1)).float().to(context.world.device)
        self.taught = sum(ballot.count for ballot in self.ballots["training"])
        self.optimizer = Optimizer(learned, config.optim, total_steps=config.updates)
        self.best, self.since_best = float("-inf"), 0

    def state(self) -> dict[str, Any]:
        """What fitting goes on from; the order of votes follows from the number of updates done."""
        return {
            "optimizer": self.optimizer,
            "ema": self.ema,
            "update": self.update,
            "best": self.best,
            "since_best": self.since_best,
        }

    def restore(self, values: dict[str, Any]) -> None:
        """Take the plain values of a checkpoint."""
        super().restore(values)
        self.since_best, self.best = int(values["since_best"]), float(values["best"])

    def note(self, numbers: dict[str, float]) -> str:
        """The loss."""
        return f"loss {numbers['loss']:.3f}"

    @property
    def clips_an_update(self) -> int:
        """Two for each vote."""
        return 2 * self.config.batch_size

    def stale(self) -> bool:
        """Whether the held-out likelihood has not risen for `patience` validations."""
        return self.config.patience is not None and self.since_best >= self.config.patience

    def one_update(self) -> dict[str, float]:
        """One step on `batch_size` votes; every rank takes its share, and gradients are averaged."""
        world, lr = self.context.world, self.optimizer.lr
        own = self.drawn()
        count = world.sum(torch.tensor(float(sum(ballot.count for ballot in own)), device=world.device))
        total = torch.zeros((), device=world.device)
        for start in range(0, len(own), self.config.micro_batch):
            losses = self.losses(own[start : start + self.config.micro_batch])
            loss = losses.sum() * world.size / count
            loss.backward()
            total += loss.detach()
        penalty = (self.prior * self.network.head_weights().square().sum(1)).sum() / (2 * self.taught)
        penalty.backward()
        for value in self.learned.values():
            if value.grad is not None:
                value.grad = world.mean(value.grad)
        grad_norm = self.optimizer.step()
        self.ema.update()
        return {"loss": float(world.mean(total)), "prior": float(penalty.detach()), "grad_norm": grad_norm, "lr": lr}

    def drawn(self) -> list[Ballot]:
        """This rank's ballots of the update, from a stream that shuffles them anew each time it is through."""
        first = self.update * self.config.batch_size + self.context.world.rank * self.share
        return drawn(self.ballots["training"], range(first, first + self.share), self.context.seed)

    def losses(self, ballots: Sequence[Ballot]) -> Tensor:
        """Negative log-likelihood of each vote, (votes,)."""
        difference = self.difference(ballots)
        worths = torch.stack([ballot.worths for ballot in ballots]).to(difference.device)
        given = ~worths.isnan()
        return tie_nll(difference[given], worths[given], self.config.k)

    def difference(self, ballots: Sequence[Ballot]) -> Tensor:
        """How much better A is on each axis in log-odds, (B, axes); shrunk where the network is not sure."""
        seen = self.clips([side for ballot in ballots for side in (ballot.a, ballot.b)])
        scores = self.network(seen).unflatten(0, (-1, 2))
        difference = scores[:, 0, :, 0] - scores[:, 1, :, 0]
        if self.network.spread:
            return moderated(difference, (2 * scores[..., 1]).exp().sum(1))
        return difference

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights at work: nothing learns here."""
        self.network.eval()
        with torch.no_grad(), self.ema.swapped():
            yield
        self.network.train()

    def foreseen(self, ballots: Sequence[Ballot]) -> Tensor:
        """Probabilities of A better, the same and B better by the averaged weights, (B, axes, 3)."""
        with self.averaged():
            parts = [
                self.difference(ballots[start : start + self.config.micro_batch])
                for start in range(0, len(ballots), self.config.micro_batch)
            ]
        return probabilities(torch.cat(parts).float().cpu(), self.config.k)

    def validated(self) -> float:
        """Mean log-likelihood of the validation votes, which is logged with the share of right signs."""
        ballots = self.ballots["validation"]
        with self.context.ledger.phase("reward/validate"):
            found = self.foreseen(ballots)
        worths = torch.stack([ballot.worths for ballot in ballots])
        given, decided = ~worths.isnan(), worths.abs() == 1
        of_vote = found.gather(-1, (1 - worths.nan_to_num()).long()[..., None])[..., 0]
        score = float(of_vote[given].clamp(min=1e-12).log().mean())
        signs = (found[..., 0] - found[..., 2]).sign() == worths
        right = float(signs[decided].float().mean()) if bool(decided.any()) else 0.0
        self.tracker.log(self.update, **{"validation/nll": -score, "validation/accuracy": right})
        if score > self.best:
            self.best, self.since_best = score, 0
        else:
            self.since_best += 1
        return score

    def finish(self) -> Path:
        """Write the averaged weights that foresaw the held-out votes best, with what the test votes say of them."""
        best = self.checkpoints.best()
        if best is not None:
            self.checkpoints.load(best, self.state())
        verdict = self.tested()
        target = self.context.folder / "model"
        if self.context.world.is_main:
            target.mkdir(parents=True, exist_ok=True)
            with self.ema.swapped():
                self.network.save(target)
            self.certainty().save(target)
            self.card(verdict).save(target)
            write_verdict(self.context.folder, verdict)
        self.tracker.close()
        self.context.world.barrier()
        return target

    def tested(self) -> Verdict:
        """Agreement with the votes on prompts that neither taught nor stopped the fit."""
        ballots = self.ballots["test"]
        with self.context.ledger.phase("reward/test"):
            sides = _sides(ballots)
            scores: dict[str, dict[str, float]] = {
                side.clip: dict(zip(self.axes, row, strict=True))
                for side, row in zip(sides, self.scores(sides).tolist(), strict=True)
            }
            foreseen = self.foreseen(ballots)
        return judged(self.votes["test"], self.axes, scores, ballots, foreseen, len(self.votes["training"]))

    def scores(self, sides: Sequence[Side]) -> Tensor:
        """Raw scores of clips by the averaged weights, float64 (clips, axes)."""
        size = 2 * self.config.micro_batch
        with self.averaged():
            parts = [self.network(self.clips(sides[start : start + size])) for start in range(0, len(sides), size)]
        return torch.cat(parts)[..., 0].double().cpu()

    def apart(self, pairs: Sequence[tuple[Side, Side]]) -> tuple[Tensor, Tensor]:
        """How far the clips of pairs are apart by the averaged weights, float64: what the heads read (N, axes, F), and
        the scores (N, axes)."""
        features, differences = [], []
        with self.averaged():
            for start in range(0, len(pairs), self.config.micro_batch):
                seen = self.clips([side for pair in pairs[start : start + self.config.micro_batch] for side in pair])
                read = self.network.features(seen)
                for found, values in ((features, read), (differences, self.network.judge(read)[..., 0])):
                    a, b = values.double().cpu().unflatten(0, (-1, 2)).unbind(1)
                    found.append(a - b)
        return torch.cat(features), torch.cat(differences)

    def certainty(self) -> Certainty:
        """What the votes that taught it told of its head."""
        ballots = self.ballots["training"]
        features, differences = self.apart([(ballot.a, ballot.b) for ballot in ballots])
        given = ~torch.stack([ballot.worths for ballot in ballots]).isnan()
        return Certainty.of(self.axes, features, differences, given, self.config.k)

    def card(self, verdict: Verdict) -> RewardCard:
        """What the artifact says of itself; its scores are centred and scaled over the clips it was fitted on."""
        raw = self.scores(_sides(self.ballots["training"]))
        return RewardCard(
            network=self.network.kind,
            facts=self.network.facts(),
            axes=self.axes,
            spread=self.network.spread,
            centre=dict(zip(self.axes, raw.mean(0).tolist(), strict=True)),
            scale=dict(zip(self.axes, raw.std(0).clamp(min=1e-6).tolist(), strict=True)),
            accuracy=verdict.accuracy(),
            usable={str(axis): found.usable for axis, found in verdict.axes.items()},
            source=verdict.sources,
            k=self.config.k,
        )


def _sides(ballots: Sequence[Ballot]) -> list[Side]:
    return list(dict.fromkeys(side for ballot in ballots for side in (ballot.a, ballot.b)))


def _axes(votes: Sequence[Vote], wanted: Sequence[Axis] | None) -> tuple[Axis, ...]:
    there = axes_of(votes)
    if missing := [axis for axis in wanted or () if axis not in there]:
        raise ReelignError(
            f"reward.axes: no vote is on {missing[0]!r}; there are votes on {', '.join(there) or 'nothing'}."
        )
    return tuple(wanted or there)


def parts_of(prompts: Iterable[str], held_out: float) -> dict[str, Part]:
    """The part that each prompt's votes belong to, by the hash of its words.

    Raises:
        ReelignError: there are too few prompts.
    """
    names = sorted(set(prompts), key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    count = max(1, round(held_out * len(names) / 2))
    if len(names) < 2 * count + 1:
        raise ReelignError(f"the votes are on {len(names)} prompts; fitting, stopping and testing need 3 or more.")
    order: tuple[Part, ...] = ("validation", "test")
    return {name: order[place // count] if place < 2 * count else "training" for place, name in enumerate(names)}
