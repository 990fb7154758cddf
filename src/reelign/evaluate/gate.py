"""The gate after a stage: is the child significantly worse than its parent in anything?"""

from __future__ import annotations

from dataclasses import dataclass

from reelign.evaluate.evaluation import Evaluation
from reelign.evaluate.gsb import compare, retention

LEAST_CHECKS = 20
"""Retention is not judged on fewer attribute checks than this: one lucky clip would decide."""
LEAST_RETENTION = 0.90


@dataclass(frozen=True)
class Gate:
    """Whether an artifact may replace its parent, and if not, why."""

    passed: bool
    reasons: tuple[str, ...]


def gate(parent: Evaluation, child: Evaluation) -> Gate:
    """Fail on an axis whose GSB is negative with its whole interval, or an attribute that is no longer controlled."""
    reasons = [
        f"{axis}: GSB {found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}] against the parent"
        for axis, found in compare(parent, child).items()
        if found.high < 0
    ]
    reasons += [
        f"{name}: only {kept.value:.0%} of the {kept.n} checks that the parent passed still pass"
        for name, kept in retention(parent, child).items()
        if kept is not None and kept.n >= LEAST_CHECKS and kept.value < LEAST_RETENTION
    ]
    return Gate(not reasons, tuple(reasons))
