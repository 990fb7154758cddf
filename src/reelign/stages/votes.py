"""Votes of a run: those of people, read from files, and those of simulated raters on clips that the parent makes.

A simulated rater knows the scores of the miniature's training judge, with noise: it stands for people wherever nobody
is there to ask, and is called simulated in every record. The evaluation judge stays out of its reach, so that what is
learned from votes is judged by somebody who never voted.

    votes/votes.jsonl   clips/PAIR-a.mp4, PAIR-b.mp4   parts/ (what was made before an interruption)
    votes/report.html   report.json (where votes compare models; both clips of a simulated pair are of one)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from reelign.data.clip import Clip, write_clip
from reelign.data.prompts import ListedPrompt
from reelign.errors import ReelignError
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
from reelign.sampling.noise import initial_noise
from reelign.sampling.sample import SampleConfig, own_sampler, sample
from reelign.stages.asked import PromptSource, build_prompts, drawn
from reelign.stages.context import StageContext

VOTES, PAGE = "votes.jsonl", "report.html"


class VotesOfPeople(BaseModel):
    """Votes that were given already."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["file"]
    path: Path = Field(description="A study of `reelign judge`, JSON lines, VideoAlign's CSV or label-studio's JSON.")


class SimulatedVotes(BaseModel):
    """Simulated raters look at pairs of clips of the parent. Only the miniature's prompts can be judged so."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["simulated"]
    prompts: list[PromptSource] = Field(min_length=1, description="What is asked for.")
    pairs: int = Field(default=1000, ge=1, description="Pairs of clips; the two differ in their noise.")
    raters: int = Field(default=1, ge=1, description="Raters who see each pair.")
    rater: RaterConfig = Field(default_factory=RaterConfig, description="How they vote.")
    sampler: SampleConfig | None = Field(
        default=None, description="How the clips are sampled; as in deployment if empty."
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


class _Simulation:
    """Pairs of clips of the parent, and what simulated raters say of them; batch after batch, each kept when made."""

    def __init__(self, context: StageContext, config: SimulatedVotes, number: int) -> None:
        self.context, self.config, self.number = context, config, number
        self.parts = context.folder / "parts"

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
        model = load_model(context.parent, dtype=context.dtype, device=context.world.device)
        judge, sampler = MiniatureReward(), config.sampler or own_sampler(model) or context.sampler
        with context.ledger.phase("votes") as cost:
            for done, start in enumerate(starts, 1):
                if context.interrupt.requested:
                    raise ReelignError(
                        f"stopped after {done - 1} of {len(starts)} batches of pairs; the same command goes on."
                    )
                places = range(start, min(start + config.batch_size, config.pairs))
                listed = drawn(list(prompts), places, context.seed)
                frames, nfe = self._clips(model, sampler, places, listed)
                pairs = self._judged(judge, places, listed, frames)
                write_votes(
                    self._place(start),
                    [
                        _seen_from(self._place(start), vote)
                        for vote in simulated_votes(pairs, config.raters, config.rater, context.seed)
                    ],
                )
                cost.nfe, cost.clips = cost.nfe + nfe, cost.clips + 2 * len(places)
                context.progress("votes: pairs", done, len(starts), "simulated raters")

    def _clips(
        self, model: VideoModel, sampler: SampleConfig, places: range, listed: Sequence[ListedPrompt]
    ) -> tuple[np.ndarray, int]:
        """Frames uint8 (pairs * 2, T, H, W, 3), the two of a pair after each other, and the network evaluations."""
        size = self.context.battery
        shape = model.latent_shape(size.frames, size.height, size.width)
        keys = [(self.context.seed, f"votes {self.number} {place}", side) for place in places for side in range(2)]
        texts = [prompt.text for prompt in listed for _ in range(2)]
        conditions = model.encode_text(texts)
        negative = model.encode_text([sampler.negative_prompt] * len(texts))
        sampled = sample(model, conditions, initial_noise(keys, shape).to(model.device), sampler, negative=negative)
        return model.decode(sampled.latents).cpu().numpy(), sampled.nfe

    def _judged(
        self, judge: Reward, places: range, listed: Sequence[ListedPrompt], frames: np.ndarray
    ) -> list[ScoredPair]:
        fps, found, model = self.context.battery.fps, [], _called(self.context.parent)
        for place, prompt, (one, other) in zip(places, listed, frames.reshape(-1, 2, *frames.shape[1:]), strict=True):
            name, sides = f"{self.number}-{place:06d}", []
            for side, video in (("a", one), ("b", other)):
                path = self.context.folder / "clips" / f"{name}-{side}.mp4"
                write_clip(path, video, fps)
                scores = judge([Clip(video, fps, prompt.text, path.stem)])
                sides.append((Shown(model, str(path)), {axis: float(values[0]) for axis, values in scores.items()}))
            (a, scores_a), (b, scores_b) = sides
            found.append(ScoredPair(name, prompt.text, a, b, scores_a, scores_b))
        return found
