"""Votes of a run: those of people, read from files, and those of simulated raters on clips that are made for them.

A simulated rater knows the scores of the miniature's training judge, with noise: it stands for people wherever nobody
is there to ask, and is called simulated in every record. The evaluation judge stays out of its reach, so that what is
learned from votes is judged by somebody who never voted.

    votes/votes.jsonl   clips/PAIR-a.mp4, PAIR-b.mp4   parts/ (what was made before an interruption)
    votes/report.html   report.json (where votes compare models; of pairs of one model there is nothing to compare)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from reelign.data.clip import Clip, write_clip
from reelign.data.prompts import ListedPrompt
from reelign.errors import ReelignError
from reelign.evaluate.battery import generate_keyed
from reelign.feedback.collected import collected
from reelign.feedback.comparison import compared_models
from reelign.feedback.imported import named_from
from reelign.feedback.report import build_report
from reelign.feedback.simulate import RaterConfig, ScoredPair, simulated_votes
from reelign.feedback.vote import Shown, Vote, missing_clips, read_votes, write_votes
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from reelign.rewards.base import Reward
from reelign.rewards.miniature import MiniatureReward
from reelign.sampling.sample import SampleConfig, own_sampler
from reelign.stages.asked import PromptSource, build_prompts, drawn
from reelign.stages.context import StageContext

VOTES, PAGE = "votes.jsonl", "report.html"
PARENT = "parent"


class VotesOfPeople(BaseModel):
    """Votes that were given already."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["file"]
    path: Path = Field(description="A study of `reelign judge`, JSON lines, VideoAlign's CSV or label-studio's JSON.")


class SimulatedVotes(BaseModel):
    """Simulated raters look at pairs of clips made for them. Only the miniature's prompts can be judged so."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["simulated"]
    prompts: list[PromptSource] = Field(min_length=1, description="What is asked for.")
    models: list[str] = Field(
        default=[PARENT],
        min_length=1,
        description="Who makes the clips, drawn for each: `parent` is the model the stage starts from, any other word "
        "a name or folder as the recipe's `model`. Pairs of two models differ in more than those of one.",
    )
    pairs: int = Field(default=1000, ge=1, description="Pairs of clips; the two differ in their noise.")
    raters: int = Field(default=1, ge=1, description="Raters who see each pair.")
    rater: RaterConfig = Field(default_factory=RaterConfig, description="How they vote.")
    samplers: list[SampleConfig] = Field(
        default=[],
        description="How the clips are sampled, drawn for each; all as in deployment if empty. Clips of other steps "
        "and guidance differ in looks, which those of one sampler hardly do.",
    )
    batch_size: int = Field(default=16, ge=1, description="Pairs that are sampled at once.")


VoteSource = Annotated[VotesOfPeople | SimulatedVotes, Field(discriminator="kind")]


class VotesConfig(BaseModel):
    """Who voted."""

    model_config = ConfigDict(extra="forbid")
    sources: list[VoteSource] = Field(min_length=1, description="Where votes come from.")


def run_votes(context: StageContext, config: VotesConfig) -> Path:
    """Collect all votes in `context.folder / "votes.jsonl"`; goes on with what was begun.

    Raises:
        ReelignError: a file holds no votes, a clip is missing, or a prompt is none of the miniature's.
    """
    found: list[Vote] = []
    for number, source in enumerate(config.sources):
        own = _given(source) if isinstance(source, VotesOfPeople) else _Simulation(context, source, number).votes()
        found += own
    if context.world.is_main:
        write_votes(context.folder / VOTES, [_seen_from(context.folder / VOTES, vote) for vote in found])
        _compare(found, context.folder)
    context.world.barrier()
    return context.folder / VOTES


def _compare(votes: Sequence[Vote], folder: Path) -> None:
    """The page of what was said of models against each other; pairs of one model say nothing of that."""
    of_models = [vote for vote in votes if vote.kind != "plain" or vote.a.model != vote.b.model]
    if compared_models([vote for vote in of_models if vote.source != "model"]):
        build_report(of_models, folder)


def _given(source: VotesOfPeople) -> list[Vote]:
    votes = collected(source.path)
    if missing := missing_clips(votes):
        raise ReelignError(f"{source.path} names clips that are not there: {missing[0]} (and {len(missing) - 1} more).")
    return votes


def _seen_from(file: Path, vote: Vote) -> Vote:
    """The vote with its clips as `file` names them."""
    a, b = (Shown(side.model, named_from(file, side.clip)) for side in (vote.a, vote.b))
    return replace(vote, a=a, b=b)


def _called(parent: str) -> str:
    """What the votes call a model: the stage whose artifact it is, or its folder."""
    place = Path(parent)
    return place.parent.name if place.name == "model" else place.name


@dataclass(frozen=True)
class _Asked:
    """One clip of a pair: which pair, which of its two clips, what it shows, who makes it, and how."""

    place: int
    number: int
    prompt: str
    model: str
    sampler: SampleConfig


class _Simulation:
    """Pairs of clips, and what simulated raters say of them; batch after batch, each kept when made."""

    def __init__(self, context: StageContext, config: SimulatedVotes, number: int) -> None:
        self.context, self.config, self.number = context, config, number
        self.parts = context.folder / "parts"
        self.names = [context.parent if name == PARENT else name for name in config.models]

    def votes(self) -> list[Vote]:
        """All votes; the ranks share the batches that are not made yet."""
        config, context, world = self.config, self.context, self.context.world
        starts = range(0, config.pairs, config.batch_size)
        missing = [start for start in starts[world.rank :: world.size] if not self._place(start).exists()]
        if missing:
            self._make(missing, build_prompts(config.prompts))
        context.world.barrier()
        return [vote for start in starts for vote in read_votes(self._place(start))]

    def _place(self, start: int) -> Path:
        return self.parts / f"{self.number}-{start:06d}.jsonl"

    def _make(self, starts: Sequence[int], prompts: Sequence[ListedPrompt]) -> None:
        context, config = self.context, self.config
        models = {
            name: load_model(name, dtype=context.dtype, device=context.world.device)
            for name in dict.fromkeys(self.names)
        }
        judge = MiniatureReward()
        with context.ledger.phase("votes") as cost:
            for done, start in enumerate(starts, 1):
                if context.interrupt.requested:
                    raise ReelignError(
                        f"stopped after {done - 1} of {len(starts)} batches of pairs; the same command goes on."
                    )
                places = range(start, min(start + config.batch_size, config.pairs))
                asked = zip(places, drawn(list(prompts), places, context.seed), strict=True)
                sides = [self._asked(models, place, side, prompt.text) for place, prompt in asked for side in range(2)]
                frames, nfe = self._clips(models, sides)
                pairs = self._judged(judge, sides, frames)
                write_votes(
                    self._place(start),
                    [
                        _seen_from(self._place(start), vote)
                        for vote in simulated_votes(pairs, config.raters, config.rater, context.seed)
                    ],
                )
                cost.nfe, cost.clips = cost.nfe + nfe, cost.clips + len(sides)
                context.progress("votes: pairs", done, len(starts), "simulated raters")

    def _asked(self, models: Mapping[str, VideoModel], place: int, side: int, prompt: str) -> _Asked:
        """A clip by a model and a sampler that are drawn for it."""
        source, samplers = np.random.default_rng((self.context.seed, self.number, place, side)), self.config.samplers
        model = self.names[int(source.integers(len(self.names)))]
        own = samplers[int(source.integers(len(samplers)))] if samplers else own_sampler(models[model])
        return _Asked(place, side, prompt, model, own or self.context.sampler)

    def _clips(self, models: Mapping[str, VideoModel], sides: Sequence[_Asked]) -> tuple[np.ndarray, int]:
        """Frames uint8 (sides, T, H, W, 3) and the network evaluations; a model and a sampler make a batch."""
        found, nfe = {}, 0
        batches: dict[str, list[_Asked]] = {}
        for side in sides:
            batches.setdefault(f"{side.model} {side.sampler}", []).append(side)
        for own in batches.values():
            keys = [(self.context.seed, f"votes {self.number} {side.place}", side.number) for side in own]
            texts, (model, sampler) = [side.prompt for side in own], (models[own[0].model], own[0].sampler)
            made, spent = generate_keyed(model, texts, keys, self.context.battery, sampler)
            found |= {(side.place, side.number): frames for side, frames in zip(own, made, strict=True)}
            nfe += spent
        return np.stack([found[side.place, side.number] for side in sides]), nfe

    def _judged(self, judge: Reward, sides: Sequence[_Asked], frames: np.ndarray) -> list[ScoredPair]:
        fps, found = self.context.battery.fps, []
        for side, video in zip(sides, frames, strict=True):
            path = self.context.folder / "clips" / f"{self.number}-{side.place:06d}-{'ab'[side.number]}.mp4"
            write_clip(path, video, fps)
            scores = judge([Clip(video, fps, side.prompt, path.stem)])
            found.append((Shown(_called(side.model), str(path)), {axis: float(row[0]) for axis, row in scores.items()}))
        return [
            ScoredPair(f"{self.number}-{side.place:06d}", side.prompt, a, b, scores_a, scores_b)
            for side, (a, scores_a), (b, scores_b) in zip(sides[::2], found[::2], found[1::2], strict=True)
        ]
