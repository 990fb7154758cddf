"""A rehearsal of a study without people: simulated raters answer all that its lists still ask.

Behind each rater's list stands a `SimulatedRater` who knows the scores of the miniature's training judge, with noise.
Answers go the way that those of people go, through the ballot, and bear `source = "simulated"` for good: in the
database, in every export and on the page of the report. So the whole way from two models to a conclusion, or to a
reward, can be tried before people are asked. What it concludes says nothing of people.
"""

from __future__ import annotations

from collections.abc import Callable

from reelign.data.clip import read_clip
from reelign.errors import ReelignError
from reelign.feedback.ballot import Ballot, Choice, choice_of
from reelign.feedback.simulate import CLIENT, RaterConfig, ScoredPair, SimulatedRater
from reelign.feedback.study import Study
from reelign.feedback.vote import Axis
from reelign.miniature.captions import read_prompt
from reelign.rewards.miniature import MiniatureReward


def rehearse(
    study: Study, config: RaterConfig, seed: int = 0, told: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Answer all open showings of all raters.

    Args:
        study: of prompts of the miniature; no person has voted in it.
        config: how raters vote, each with chances of its own.
        seed: of these chances.
        told: how many showings are answered, and of how many.

    Returns:
        How many were answered.

    Raises:
        ReelignError: people have voted, a prompt is none of the miniature's, or a clip cannot be read.
    """
    if any(vote.source == "person" for vote in study.votes()):
        raise ReelignError(
            f"people have voted in {study.folder}, and simulated raters would use up the pairs that are left on their "
            "lists. Make another study to try things with."
        )
    known, ballot, raters = _Known(study), Ballot(study.store.database), study.store.raters()
    answered, total = 0, sum(rater.total - rater.done for rater in raters)
    for rater in raters:
        person = SimulatedRater(f"simulated {rater.name}", config, seed)
        place = ballot.place(rater.id)
        while place.showing is not None:
            row = study.store.showing(place.showing)
            votes = {vote.axis: vote for vote in person.votes(known(row.pair), row.kind, left=row.left)}
            choices: dict[Axis, Choice] = {
                axis: choice_of(votes[axis].verdict, row.left) for axis in study.settings.axes
            }
            seconds = next(iter(votes.values())).seconds
            place = ballot.vote(rater.id, place.showing, choices, seconds, CLIENT, "simulated")
            answered += 1
            told(answered, total)
    return answered


class _Known:
    """The pairs of a study with what the training judge says of both clips; each clip is judged once.

    Pairs are called by their place: ids are drawn anew for each study, and the same study shall get the same votes.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.judge = study, MiniatureReward()
        self.pairs = {pair.id: (f"pair {place}", pair) for place, pair in enumerate(study.store.pairs())}
        if strange := [pair.prompt for _, pair in self.pairs.values() if read_prompt(pair.prompt) is None]:
            raise ReelignError(
                f"simulated raters understand the miniature's words only, and {study.folder} asks for {strange[0]!r}: "
                "here people have to vote."
            )
        self._scores: dict[str, dict[str, float]] = {}

    def __call__(self, name: str) -> ScoredPair:
        place, pair = self.pairs[name]
        scores = [self._of(side.clip, pair.prompt) for side in (pair.a, pair.b)]
        return ScoredPair(place, pair.prompt, pair.a, pair.b, *scores)

    def _of(self, clip: str, prompt: str) -> dict[str, float]:
        if clip not in self._scores:
            scores = self.judge([read_clip(self.study.clip(clip), prompt)])
            self._scores[clip] = {axis: float(values[0]) for axis, values in scores.items()}
        return self._scores[clip]
