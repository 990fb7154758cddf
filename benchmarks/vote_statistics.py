"""Do the intervals of human votes hold the truth as often as they say: coverage on simulated studies of known truth.

    python benchmarks/vote_statistics.py --studies 2000

A study asks several raters about each prompt. Every vote has exactly the probabilities of Davidson's model with known
strengths, and the votes of one prompt are correlated: a vote is the category into which a standard normal number falls,
and those of a prompt share a part of it (a Gaussian copula). So net GSB and strengths are known, alpha follows from
the bivariate normal, and an interval that took votes for independent would be too narrow, which the table shows too.
For the power, studies of the size that `power` asks for are drawn, and those are counted that see the difference.
The standard error of a coverage of 95 % is 0.49 points with 2000 studies. Writes `vote_statistics.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import multivariate_normal

from reelign.evaluate.statistics import bootstrap_mean
from reelign.feedback.agreement import krippendorff_alpha, rater_agreement
from reelign.feedback.comparison import net_gsb
from reelign.feedback.power import power
from reelign.feedback.raters import rater_reports
from reelign.feedback.significance import sign_test, sign_tests
from reelign.feedback.simulate import RaterConfig, ScoredPair, SimulatedRater
from reelign.feedback.strength import fit_strengths
from reelign.feedback.vote import VERDICTS, Shown, Vote
from tables import head, line

SIZES = ((30, 3), (60, 3), (120, 2), (200, 3))
"""Prompts, and raters of each pair."""
CORRELATION = 0.4
"""Of two votes on one pair, before they are cut into three verdicts."""
STRENGTHS = {"base": -0.5, "tuned": -0.1, "aligned": 0.6}
NU = 0.8
CLEAR = 4.0
"""Log strength of a model that nearly always wins."""
GSB, CLEAR_GSB = "net GSB", "net GSB of a clear winner"
INDEPENDENT, PLAIN = ", votes taken for independent", ", without pretended prompts"
"""What the intervals would be without a precaution that they take."""
RESAMPLES = 1000
SLOW = 10
"""Of so many studies one has raters on all axes, with gold and repeats."""


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="simulated studies of each size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/vote_statistics"))
    arguments = parser.parse_args()
    started = time.perf_counter()
    rows = [
        row
        for number, (prompts, raters) in enumerate(SIZES)
        for row in coverages(prompts, raters, arguments.studies, np.random.default_rng([arguments.seed, number]))
    ]
    planned = [found_by_plan(points, arguments.studies // 2, arguments.seed) for points in (10.0, 20.0)]
    result = {
        "studies": arguments.studies,
        "correlation": CORRELATION,
        "seconds": round(time.perf_counter() - started, 1),
        "coverage": rows,
        "power": planned,
        "false_alarms": false_alarms(arguments.studies, arguments.seed),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    arguments.out.with_suffix(".md").write_text(table(result))
    sys.stdout.write(table(result))


def coverages(prompts: int, raters: int, studies: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    """How often each interval holds its truth, at one size of study; three models, every pair on every prompt."""
    names = list(STRENGTHS)
    first, clear = davidson(STRENGTHS["base"] - STRENGTHS["aligned"]), davidson(-CLEAR)
    truth = {GSB: net(first), CLEAR_GSB: net(clear), "alpha": alpha_of(first)}
    truth |= {f"strength of {name}": STRENGTHS[name] for name in names}
    truth |= {GSB + INDEPENDENT: net(first), CLEAR_GSB + PLAIN: net(clear)}
    inside, width = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0.0)
    for _ in range(studies):
        votes = study(prompts, raters, generator, STRENGTHS)
        two = [vote for vote in votes if {vote.a.model, vote.b.model} == {"base", "aligned"}]
        one_sided = study(prompts, raters, generator, {"base": 0.0, "tuned": CLEAR})
        worths, named = [-vote.worth for vote in one_sided], [vote.prompt for vote in one_sided]
        found = {
            GSB: net_gsb(two, "base", "aligned")["overall"],
            CLEAR_GSB: net_gsb(one_sided, "base", "tuned")["overall"],
            "alpha": rater_agreement(two, "overall").alpha,
            GSB + INDEPENDENT: bootstrap_mean([-vote.worth for vote in two], resamples=RESAMPLES),
            CLEAR_GSB + PLAIN: bootstrap_mean(worths, named, resamples=RESAMPLES),
        }
        strengths = fit_strengths(votes, "overall").models
        found |= {f"strength of {name}": strengths[name] for name in names}
        for name, interval in found.items():
            inside[name] += interval.low <= truth[name] <= interval.high
            width[name] += interval.high - interval.low
    return [
        {
            "prompts": prompts,
            "raters": raters,
            "what": name,
            "truth": truth[name],
            "coverage": inside[name] / studies,
            "mean_width": width[name] / studies,
        }
        for name in truth
    ]


def study(prompts: int, raters: int, generator: np.random.Generator, strengths: Mapping[str, float]) -> list[Vote]:
    """Votes on every pair of models at every prompt; all votes of a prompt share a part of their luck."""
    asked = [pair for pair in combinations(strengths, 2) for _ in range(raters)]
    cuts = np.cumsum([davidson(strengths[a] - strengths[b]) for a, b in asked], 1)
    shared = generator.standard_normal((prompts, 1)) * math.sqrt(CORRELATION)
    own = generator.standard_normal((prompts, len(asked))) * math.sqrt(1 - CORRELATION)
    drawn = (ndtr(shared + own)[..., None] > cuts[:, :2]).sum(-1)
    return [
        vote(f"prompt {prompt}", a, b, number % raters, VERDICTS[drawn[prompt, number]])
        for prompt in range(prompts)
        for number, (a, b) in enumerate(asked)
    ]


def vote(prompt: str, a: str, b: str, rater: int, verdict: Any, axis: Any = "overall") -> Vote:
    """One vote of a simulated study."""
    sides = Shown(a, f"{a}.mp4"), Shown(b, f"{b}.mp4")
    name = f"simulated-{rater}"
    return Vote(f"{prompt}, {a}, {b}", prompt, *sides, axis, verdict, name, math.nan, "a", "plain", "simulated")


def davidson(d: float) -> np.ndarray:
    """Probabilities of good, same and bad for a difference of log strengths."""
    weight = np.array([math.exp(d / 2), NU, math.exp(-d / 2)])
    return weight / weight.sum()


def alpha_of(p: np.ndarray) -> float:
    """Ordinal alpha of infinitely many pairs, each judged by two raters: from the bivariate normal."""
    cuts = np.append(np.clip(ndtri(np.cumsum(p)[:2]), -9, 9), 9.0)
    below = np.zeros((4, 4))
    joint = multivariate_normal(mean=[0, 0], cov=[[1, CORRELATION], [CORRELATION, 1]])
    below[1:, 1:] = [[joint.cdf([x, y]) for y in cuts] for x in cuts]
    cells = np.diff(np.diff(below, axis=0), axis=1)
    many = 1e9  # Krippendorff's n - 1 is then n
    return float(krippendorff_alpha(cells[None] * many)[0])


def found_by_plan(points: float, studies: int, seed: int) -> dict[str, Any]:
    """Share of studies that see a true net GSB of `points` when they go on for as many pairs as `power` asks for."""
    generator = np.random.default_rng([seed, 99, int(points)])
    strengths = {"base": 0.0, "tuned": float(brentq(lambda d: net(davidson(-d)) - points / 100, 0, 5))}
    pilot, raters, most = 50, 3, int(12 / (points / 100) ** 2)
    seen, asked = 0, []
    for _ in range(studies):
        votes = study(most, raters, generator, strengths)
        plan = power(votes[: pilot * raters], "base", "tuned", "overall", points)
        asked.append(min(most, plan.pairs + (plan.more_pairs or 0)))
        seen += net_gsb(votes[: raters * asked[-1]], "base", "tuned")["overall"].low > 0
    return {
        "points": points,
        "pilot": pilot,
        "raters": raters,
        "pairs": float(np.median(asked)),
        "seen": seen / studies,
    }


def false_alarms(studies: int, seed: int) -> dict[str, float]:
    """Among equal models and honest raters, how often something is said of them at the level of 5 %."""
    generator = np.random.default_rng([seed, 98])
    equal = {"base": 0.0, "tuned": 0.0}
    tested, taken, warned = 0, 0, 0
    for number in range(studies):
        votes = study(60, 5, generator, equal)
        tested += sign_tests(votes, "base", "tuned")["overall"].p < 0.05
        taken += sign_test(vote.worth for vote in votes).p < 0.05
        if number < max(1, studies // SLOW):
            warned += any(report.warnings for report in rater_reports(honest(8, 60, generator)))
    return {
        "sign test on prompts": tested / studies,
        "sign test on votes taken for independent": taken / studies,
        "any of 8 honest raters is warned of": warned / max(1, studies // SLOW),
    }


def honest(raters: int, pairs: int, generator: np.random.Generator) -> list[Vote]:
    """Votes of simulated raters without bias on all axes, a fifth of them gold, with as many hidden repeats."""
    votes = []
    gaps = generator.standard_normal((pairs, 3)) * 0.15
    for number, gap in enumerate(gaps):
        scores = dict(zip(("visual", "motion", "text"), gap.tolist(), strict=True))
        zero = dict.fromkeys(scores, 0.0)
        pair = ScoredPair(str(number), str(number), Shown("base", "a.mp4"), Shown("tuned", "b.mp4"), scores, zero)
        clear = replace(pair, scores_a=dict.fromkeys(scores, 0.4))
        for rater in range(1, raters + 1):
            who = SimulatedRater(f"simulated-{rater}", RaterConfig(), int(generator.integers(2**31)))
            votes += who.votes(clear, "gold", "good") if number % 5 == 0 else who.votes(pair)
            votes += who.votes(pair, "repeat") if number % 5 == 1 else []
    return votes


def net(p: np.ndarray) -> float:
    """Net GSB of the second model."""
    return float(p[2] - p[0])


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    error = 100 * math.sqrt(0.95 * 0.05 / result["studies"])
    sizes = [f"{prompts} prompts, {raters} raters" for prompts, raters in SIZES]
    lines = [
        f"Coverage of 95 % intervals, {result['studies']} simulated studies of each size (standard error {error:.2f} "
        "points):",
        "",
        *head("interval", *sizes),
    ]
    for what in dict.fromkeys(row["what"] for row in result["coverage"]):
        found = [row for row in result["coverage"] if row["what"] == what]
        cells = [f"{100 * row['coverage']:.1f} % (width {row['mean_width']:.3f})" for row in found]
        lines.append(line(f"{what} ({found[0]['truth']:+.3f})", *cells))
    lines += ["", *head("planned: 80 % of studies see", "pairs asked for (median)", "studies that see it")]
    for row in result["power"]:
        lines.append(line(f"{row['points']:g} points", f"{row['pairs']:.0f}", f"{100 * row['seen']:.1f} %"))
    lines += ["", *head("false alarms, at a level of 5 %", "share")]
    lines += [line(name, f"{100 * value:.1f} %") for name, value in result["false_alarms"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
