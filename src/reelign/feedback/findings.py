"""What all votes of a study say, as data: the page and the JSON of `report.py` show this and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reelign.errors import ReelignError
from reelign.evaluate.statistics import Interval
from reelign.feedback.agreement import Agreement, rater_agreement
from reelign.feedback.comparison import Counts, axes_of, between, compared_models, counts, models_of, net_gsb
from reelign.feedback.judges import JudgeAgreement, Scores, judge_agreement, rater_ceiling
from reelign.feedback.power import Power, power
from reelign.feedback.raters import RaterReport, rater_reports
from reelign.feedback.significance import SignTest, sign_tests
from reelign.feedback.strength import Strengths, evalica_strengths, fit_strengths
from reelign.feedback.vote import Axis, Vote

FEW = 8
"""Below so many prompts an interval promises too much (`evaluate/statistics.py`), and nothing is concluded."""


@dataclass(frozen=True)
class Finding:
    """Model `b` against model `a` on one axis.

    Attributes:
        net_gsb: with its interval; `n` is the number of votes.
        counts: the votes behind it.
        prompts: the number of prompts behind it.
        test: exact sign test on prompts, Holm over axes.
        power: what more pairs would show.
        says: "better", "worse", "apart" where the interval holds 0, "few" where prompts are too few, "ties".
        sentence: the same for people.
    """

    net_gsb: Interval
    counts: Counts
    prompts: int
    test: SignTest
    power: Power
    says: str
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """Two models on all axes."""

    a: str
    b: str
    findings: dict[Axis, Finding]


@dataclass(frozen=True)
class AxisStrengths:
    """Strengths of three or more models on one axis.

    Attributes:
        fit: ours; None where there is no estimate.
        evalica: its fits by name; None where it is not installed, or where there is no estimate.
        problem: why something is missing.
    """

    fit: Strengths | None
    evalica: dict[str, dict[str, float]] | None
    problem: str


@dataclass(frozen=True)
class Raters:
    """Of the raters among themselves on one axis: agreement, or why there is none, and the ceiling of judges."""

    agreement: Agreement | None
    problem: str
    ceiling: JudgeAgreement | None


@dataclass(frozen=True)
class Report:
    """Everything.

    Attributes:
        votes: of all kinds.
        pairs, prompts: those of the votes that count.
        models: names, in the order of the votes.
        sources: votes of people and of simulated raters.
        kinds: votes that count, and gold and repeats that only tell about raters.
        of_models: votes cast by models; they are no human feedback and count for nothing here.
        comparisons: every two models with votes between them.
        strengths: by axis, for three or more models.
        agreement: by axis.
        judges: automatic judges by name, then by axis.
        raters: those with most votes first.
    """

    votes: int
    pairs: int
    prompts: int
    models: list[str]
    sources: dict[str, int]
    kinds: dict[str, int]
    of_models: int
    comparisons: list[Comparison]
    strengths: dict[Axis, AxisStrengths]
    agreement: dict[Axis, Raters]
    judges: dict[str, dict[Axis, JudgeAgreement]]
    raters: list[RaterReport]

    @property
    def simulated(self) -> float:
        """Share of votes that no person gave."""
        return self.sources.get("simulated", 0) / self.votes


def find(votes: Sequence[Vote], judges: Mapping[str, Scores] | None = None) -> Report:
    """Every statistic of a study.

    Args:
        votes: of people, or of simulated raters; what models voted is counted and left out.
        judges: automatic judges by name, with their scores.

    Raises:
        ReelignError: no person and no simulated rater voted, or a score of a judge is not finite.
    """
    asked = [vote for vote in votes if vote.source != "model"]
    if not asked:
        raise ReelignError("there is no vote of a person yet, nor of a simulated rater: nothing can be reported.")
    counting = [vote for vote in asked if vote.kind == "plain"]
    axes, models = axes_of(counting), models_of(counting)
    return Report(
        votes=len(asked),
        pairs=len({vote.pair for vote in counting}),
        prompts=len({vote.prompt for vote in counting}),
        models=models,
        sources=dict(Counter(vote.source for vote in asked)),
        kinds=dict(Counter(vote.kind for vote in asked)),
        of_models=len(votes) - len(asked),
        comparisons=[compare(asked, a, b) for a, b in compared_models(asked)],
        strengths={axis: _strengths(asked, axis) for axis in axes} if len(models) > 2 else {},
        agreement={axis: _agreement(asked, axis) for axis in axes},
        judges={name: _judge(asked, axes, scores) for name, scores in (judges or {}).items()},
        raters=rater_reports(asked),
    )


def compare(votes: Sequence[Vote], a: str, b: str) -> Comparison:
    """What the votes say of model `b` against model `a`, axis by axis.

    Raises:
        ReelignError: no vote compares the two.
    """
    intervals, tests = net_gsb(votes, a, b), sign_tests(votes, a, b)
    found: dict[Axis, Finding] = {}
    for axis, interval in intervals.items():
        count, plan = counts(votes, a, b, axis), power(votes, a, b, axis)
        prompts = len({vote.prompt for vote, _ in between(votes, a, b, axis)})
        says = _says(interval, count, prompts)
        sentence = _sentence(a, b, says, interval, prompts, plan)
        found[axis] = Finding(interval, count, prompts, tests[axis], plan, says, sentence)
    return Comparison(a, b, found)


def points(value: float) -> str:
    """A share as signed hundredths, with a real minus sign."""
    rounded = round(100 * value)
    return f"{rounded:+d}".replace("-", "−") if rounded else "0"


def _says(found: Interval, count: Counts, prompts: int) -> str:
    if count.same == count.votes:
        return "ties"
    if prompts < FEW:
        return "few"
    return "better" if found.low > 0 else "worse" if found.high < 0 else "apart"


def _sentence(a: str, b: str, says: str, found: Interval, prompts: int, plan: Power) -> str:
    amount = f"{_number(found.n, 'vote')} on {_number(prompts, 'prompt')}"
    net = f"{points(found.value)} points [{points(found.low)}, {points(found.high)}], {amount}"
    if says == "ties":
        return f"{b} and {a} look the same: {amount}, all of them ties."
    if says == "few":
        return f"Too early to say: {b} against {a} has {points(found.value)} points, {amount}."
    if says == "apart":
        return f"{b} and {a} cannot be told apart: {net}; {plan.words}."
    return f"{b} is {says} than {a}: {net}."


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _strengths(votes: Sequence[Vote], axis: Axis) -> AxisStrengths:
    try:
        fit = fit_strengths(votes, axis)
    except ReelignError as error:
        return AxisStrengths(None, None, str(error))
    try:
        return AxisStrengths(fit, evalica_strengths(votes, axis), "")
    except ReelignError as error:
        return AxisStrengths(fit, None, str(error))


def _agreement(votes: Sequence[Vote], axis: Axis) -> Raters:
    ceiling = rater_ceiling(votes, axis)
    try:
        return Raters(rater_agreement(votes, axis), "", ceiling)
    except ReelignError as error:
        return Raters(None, str(error), ceiling)


def _judge(votes: Sequence[Vote], axes: Sequence[Axis], scores: Scores) -> dict[Axis, JudgeAgreement]:
    found: dict[Axis, JudgeAgreement] = {}
    for axis in axes:
        if (agreement := judge_agreement(votes, axis, scores)) is not None:
            found[axis] = agreement
    return found
