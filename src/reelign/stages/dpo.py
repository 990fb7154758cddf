"""Flow-DPO: from votes straight to the generator, without a reward model (arXiv 2501.13918, section 4).

One update draws pairs that people voted on, puts both clips of a pair under the same noise at the same level, and makes
the model explain the winner better, and the loser worse, than the frozen parent does (`flow/preference.py`). Nothing is
sampled but for validation. Ties are learned from too, by a likelihood whose k follows from their share.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from reelign.errors import ReelignError
from reelign.evaluate.statistics import bootstrap_mean
from reelign.feedback.vote import Axis, Source, Vote
from reelign.files import write_atomically
from reelign.flow.grid import sample_sigma
from reelign.flow.path import interpolate, velocity_target
from reelign.flow.preference import implicit_reward, preference_loss, preferred, tie_parameter
from reelign.models.adapter import merge_lora, without_lora
from reelign.models.base import Conditions, VideoModel
from reelign.models.load import load_model
from reelign.sampling.noise import generator
from reelign.stages.asked import drawn
from reelign.stages.context import StageContext
from reelign.stages.preferences import EncodedPair, Preferences, encoded, preferences
from reelign.stages.sources import LEVELS
from reelign.stages.training import WatchedConfig, WatchedTraining
from reelign.train.ledger import Cost

VOTERS: dict[Source, str] = {"person": "people", "simulated": "simulated raters", "model": "models"}
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class DpoConfig(WatchedConfig):
    """Direct preference optimisation on votes. One update learns from `pairs_per_update` pairs of clips."""

    axes: dict[Axis, Weight] = Field(
        default={"overall": 1.0},
        min_length=1,
        description="Whose votes make the preference, and what each axis weighs.",
    )
    beta: float = Field(
        default=500.0,
        gt=0,
        allow_inf_nan=False,
        description="How dear it is to leave the parent (mean over dimensions).",
    )
    density: Literal["uniform", "logit_normal"] = Field(
        default="uniform", description="How noise levels are drawn; the shift is the sampler's."
    )
    pairs_per_update: int = Field(default=16, ge=1, description="Pairs an update, over all ranks.")
    micro_batch: int = Field(default=8, ge=1, description="Pairs that a rank learns from at once.")
    held_out: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the prompts kept for the accuracy of the implicit reward."
    )


def run_dpo(context: StageContext, config: DpoConfig, votes: Sequence[Vote]) -> Path:
    """Train the parent on votes and write the artifact to `context.folder / "model"`; resumes what was begun.

    Args:
        context: where to work.
        config: the stage's part of the recipe.
        votes: with clips that exist; the same ones, in any order, at every resume.

    Raises:
        ReelignError: clips are missing or of another size, or there are fewer than two decided pairs to learn from.
    """
    chosen = preferences(votes, config.axes, context.battery, config.held_out)
    model = load_model(context.parent, dtype=context.dtype, device=context.world.device)
    with context.ledger.phase("dpo/encode") as cost:
        pairs = encoded([*chosen.training, *chosen.held_out], model, context)
        cost.clips = 2 * len(pairs)
    trainer = Trainer(model, chosen, pairs, context, config)
    trainer.resume()
    trainer.train()
    return trainer.finish()


class Trainer(WatchedTraining):
    """Pairs are drawn and learned from; `train` is the loop."""

    stage: ClassVar = "dpo"
    followed: ClassVar = ("margin",)

    def __init__(
        self,
        model: VideoModel,
        chosen: Preferences,
        pairs: Sequence[EncodedPair],
        context: StageContext,
        config: DpoConfig,
    ) -> None:
        """`pairs` are those of `chosen`, first the ones to learn from."""
        self.chosen, self.config = chosen, config
        self.pairs, self.apart = pairs[: len(chosen.training)], pairs[len(chosen.training) :]
        self.share, rest = divmod(config.pairs_per_update, context.world.size)
        if rest:
            raise ReelignError(
                f"dpo.pairs_per_update={config.pairs_per_update} does not divide over {context.world.size} ranks."
            )
        self.k = tie_parameter(chosen.ties / len(chosen.training))
        self.reference = None if config.method == "lora" else frozen_parent(context)
        super().__init__(model, context, config)

    def note(self, numbers: dict[str, float]) -> str:
        """The loss."""
        return f"loss {numbers['loss']:.4f}"

    @property
    def clips_an_update(self) -> int:
        """Both clips of every pair."""
        return 2 * self.config.pairs_per_update

    def one_update(self) -> dict[str, float]:
        """Forward, backward and update on pairs of all ranks; the loss is the mean over them."""
        world, lr = self.context.world, self.trainee.optimizer.lr
        total, found = torch.zeros((), device=world.device), []
        for pairs, eps, levels in self.batches():
            winner, loser = self.rewards(pairs, eps, levels)
            decided = torch.tensor([pair.decided for pair in pairs], device=world.device)
            loss = preference_loss(winner - loser, decided, self.k).sum() / self.share
            loss.backward()
            total += loss.detach()
            found.append(torch.stack([winner, loser, decided.to(winner)]).detach())
        winner, loser, decided = world.gather(torch.cat(found, 1).T).T
        numbers = {
            "loss": float(world.mean(total)),
            "grad_norm": self.trainee.optimizer.step(),
            "lr": lr,
            "nfe": 4.0 * self.config.pairs_per_update,
        }
        self.trainee.ema.update()
        return numbers | described(winner, loser, decided.bool())

    def batches(self) -> Iterator[tuple[list[EncodedPair], Tensor, Tensor]]:
        """This rank's pairs of the update with noise (P, C, F, h, w) and level (P,), in micro-batches. Both follow from
        (seed, update, place in the update): any number of ranks draws the same ones."""
        config, world, seed = self.config, self.context.world, self.context.seed
        first = world.rank * self.share
        for start in range(first, first + self.share, config.micro_batch):
            places = range(start, min(start + config.micro_batch, first + self.share))
            begun = self.update * config.pairs_per_update
            pairs = drawn(self.pairs, range(begun + places.start, begun + places.stop), seed)
            sources = [generator("dpo", seed, self.update, place) for place in places]
            eps = torch.stack([torch.randn(p.winner.shape, generator=g) for p, g in zip(pairs, sources, strict=True)])
            levels = [sample_sigma(1, config.density, self.context.sampler.shift, g) for g in sources]
            yield pairs, eps.to(world.device), torch.cat(levels).to(world.device)

    def rewards(self, pairs: Sequence[EncodedPair], eps: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Implicit rewards of winners and losers, (P,) each, at the given noise and levels, which a pair shares."""
        device = self.context.world.device
        clean = torch.stack([p.winner for p in pairs] + [p.loser for p in pairs]).to(device)
        conditions = {
            name: torch.stack([pair.conditions[name] for pair in pairs]).repeat(2, *[1] * value.ndim).to(device)
            for name, value in pairs[0].conditions.items()
        }
        eps, levels = eps.repeat(2, 1, 1, 1, 1), levels.repeat(2)
        with torch.no_grad(), self.as_reference() as reference:
            was = flow_error(reference, clean, eps, levels, conditions)
        now = flow_error(self.model, clean, eps, levels, conditions)
        winner, loser = implicit_reward(now, was, self.config.beta).chunk(2)
        return winner, loser

    @contextmanager
    def as_reference(self) -> Iterator[VideoModel]:
        """The frozen parent: with adapters it is the model without them."""
        if self.reference is not None:
            yield self.reference
            return
        with without_lora(self.model):
            yield self.model

    def held_out(self, cost: Cost) -> dict[str, float]:
        """Accuracy of the implicit reward on the held-out pairs."""
        margins = self.held_out_margins()
        cost.nfe += 4 * len(LEVELS) * len(margins)
        return {"validation/accuracy": float(preferred(margins).mean())} if len(margins) else {}

    @torch.no_grad()
    def held_out_margins(self) -> Tensor:
        """Margin of each held-out pair, mean over `LEVELS`, with noise that depends on the pair alone."""
        device, found = self.context.world.device, []
        for start in range(0, len(self.apart), self.config.micro_batch):
            pairs, margins = self.apart[start : start + self.config.micro_batch], []
            for level in LEVELS:
                sources = [generator("held out", pair.id, str(level)) for pair in pairs]
                noise = [torch.randn(p.winner.shape, generator=g) for p, g in zip(pairs, sources, strict=True)]
                levels = torch.full((len(pairs),), level, device=device)
                winner, loser = self.rewards(pairs, torch.stack(noise).to(device), levels)
                margins.append(winner - loser)
            found.append(torch.stack(margins).mean(0))
        return torch.cat(found) if found else torch.zeros(0)

    def finish(self) -> Path:
        """Write the best averaged weights as the artifact, and what was learned from for the report."""
        target = super().finish()
        with self.trainee.ema.swapped():
            right = preferred(self.held_out_margins()).tolist()
        if self.context.world.is_main:
            write_figures(self.context.folder / "extra.json", self.chosen, right)
        return target


def frozen_parent(context: StageContext) -> VideoModel:
    """The reference of a full training: the parent, sharded as the model is."""
    parent = load_model(context.parent, dtype=context.dtype, device=context.world.device)
    merge_lora(parent)
    for network in parent.denoisers().values():
        context.world.shard(network)
    return parent


def flow_error(model: VideoModel, clean: Tensor, eps: Tensor, levels: Tensor, conditions: Conditions) -> Tensor:
    """Flow-matching error of each clip, mean over its dimensions, (B,)."""
    predicted = model.velocity(interpolate(clean, eps, levels), levels, conditions)
    return (predicted - velocity_target(clean, eps)).square().flatten(1).mean(1)


def described(winner: Tensor, loser: Tensor, decided: Tensor) -> dict[str, float]:
    """Implicit rewards of the decided pairs of an update, for the log; nothing where all were ties."""
    if not decided.any():
        return {}
    winner, loser = winner[decided], loser[decided]
    return {
        "accuracy": float(preferred(winner - loser).mean()),
        "margin": float((winner - loser).mean()),
        "reward/winner": float(winner.mean()),
        "reward/loser": float(loser.mean()),
    }


def write_figures(path: Path, chosen: Preferences, right: Sequence[float]) -> None:
    """Whose votes and how many pairs there were, and the accuracy on those held out, for the report."""
    counts = {f"Votes, {VOTERS[source]}": count for source, count in sorted(chosen.sources.items())} | {
        "Pairs learned from": len(chosen.training),
        "Ties among them": chosen.ties,
        "Pairs left out because the battery asks their prompt": chosen.of_battery,
    }
    figures: list[dict[str, object]] = [
        {"label": label, "value": value, "low": None, "high": None, "unit": "", "note": ""}
        for label, value in counts.items()
    ]
    if right:
        found = bootstrap_mean(right, [pair.prompt for pair in chosen.held_out])
        label = f"Accuracy of the implicit reward on {found.n} held-out pairs"
        figures.append(
            {
                "label": label,
                "value": found.value,
                "low": found.low,
                "high": found.high,
                "unit": "",
                "note": "0.5 is chance",
            }
        )
    write_atomically(path, json.dumps({"figures": figures}, indent=1))
