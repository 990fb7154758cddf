"""What the doctor says of a recipe, by check."""

from __future__ import annotations

from reelign.doctor import examine
from reelign.doctor.finding import Finding
from reelign.recipe import Recipe


def diagnosis(recipe: Recipe) -> dict[str, Finding]:
    """Every finding; no check is told twice."""
    found = examine(recipe)
    assert len({finding.check for finding in found}) == len(found)
    return {finding.check: finding for finding in found}


def complaints(recipe: Recipe) -> dict[str, str]:
    """The sentences of the checks that failed."""
    return {check: finding.sentence for check, finding in diagnosis(recipe).items() if not finding.passed}
