"""One line of the doctor, and how several ranks agree on their lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from reelign.errors import ReelignError
from reelign.train.parallel import World

Found = TypeVar("Found")
ELSEWHERE = "it failed on another rank; the line of that rank says why."


@dataclass(frozen=True)
class Finding:
    """What a check found, in a sentence that says what to do when it did not pass."""

    check: str
    passed: bool
    sentence: str


def look(check: str, at: Callable[[], str]) -> Finding:
    """The finding of a check that gives its sentence or raises."""
    try:
        return Finding(check, True, at())
    except ReelignError as error:
        return Finding(check, False, str(error))


def obtain(check: str, make: Callable[[], tuple[Found, str]]) -> tuple[Found | None, Finding]:
    """What a check needs for others too, None when it failed, and its finding; `make` gives it with its sentence."""
    try:
        found, sentence = make()
        return found, Finding(check, True, sentence)
    except ReelignError as error:
        return None, Finding(check, False, str(error))


def on_all_ranks(world: World, make: Callable[[], Found]) -> Found:
    """What `make` gives, when it succeeds on every rank: a rank that went on alone would wait for ever.

    Raises:
        ReelignError: it failed here, or on another rank, whose own line says why.
    """
    failed: ReelignError | None = None
    made: Any = None
    try:
        made = make()
    except ReelignError as error:
        failed = error
    others = float(world.sum(torch.tensor(float(failed is not None), device=world.device)))
    if failed is not None:
        raise failed
    if others:
        raise ReelignError(ELSEWHERE)
    return made


def any_failed(findings: Sequence[Finding], world: World) -> bool:
    """Whether one of them failed on any rank; all ranks get the same answer."""
    failed = float(not all(finding.passed for finding in findings))
    return bool(world.sum(torch.tensor(failed, device=world.device)))


def of_all_ranks(findings: list[Finding], world: World) -> list[Finding]:
    """On the first rank its findings and the failures that only others have, which bear their rank; else nothing."""
    if world.mesh is None:
        return findings
    parts: list[Any] = [None] * world.size
    dist.all_gather_object(parts, findings)
    if not world.is_main:
        return []
    seen = {(finding.check, finding.sentence) for finding in findings}
    return findings + [
        Finding(f"{finding.check} (rank {rank})", False, finding.sentence)
        for rank, part in enumerate(parts)
        for finding in part
        if not finding.passed and finding.sentence != ELSEWHERE and (finding.check, finding.sentence) not in seen
    ]
