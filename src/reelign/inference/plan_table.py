"""A plan in words: its table, and why nothing was chosen where nothing was."""

from __future__ import annotations

from reelign.inference.plan_file import Plan, Row
from reelign.inference.trial import Trial

WORTH = 1.03
"""Times faster that is worth anything: less is the noise of a clock."""


def promise(plan: Plan) -> str:
    """The choice and its prediction."""
    found = plan.prediction
    assert found is not None and plan.choice is not None
    faster = found.speedup
    said = (
        f"chosen: {plan.choice.label}. On prompts that had no part in the choice: {found.seconds:.3g} s a clip "
        f"instead of {found.plain_seconds:.3g}, {faster.value:.2f}x faster [{faster.low:.2f}, {faster.high:.2f}], "
        f"GSB overall {found.overall.text}, PSNR {found.psnr:.1f} dB, motion {found.motion:.2f} "
        f"({found.plain_motion:.2f} without the plan)."
    )
    if not plan.target.proven(found):
        said += f" The interval reaches below {plan.target.min_gsb:g}: more prompts (--count) would narrow it."
    return f"{said} Compiling takes {found.warm_up:.0f} s before the first clip." if found.warm_up else said


def shortfall(plan: Plan) -> str:
    """Why nothing was chosen, with the best that was found."""
    measured = [row for row in plan.rows if row.validation is not None]
    asked = f"nothing is {plan.target.speed_words} at GSB >= {plan.target.min_gsb:g}"
    if not measured:
        return f"{asked}: nothing could be tried."
    fastest = max(measured, key=lambda row: _trial(row).speedup.value)
    good = [row for row in measured if plan.target.good(_trial(row))]
    said = [f"the fastest of all is {_found(fastest)}"]
    best = max(good, key=lambda row: _trial(row).speedup.value, default=None)
    if best is not None and best is not fastest:
        said.insert(0, f"the fastest that keeps the quality is {_found(best)}")
    if tried := [row for row in measured if row.test is not None]:
        said.append(f"{len(tried)} held on one half of the prompts and not on the other")
    return f"{asked}: {'; '.join(said)}."


def table(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one for each candidate."""
    header = ["", "seconds", "faster", "GSB overall", "PSNR", "motion", "other half", "note"]
    rows = []
    for row in plan.rows:
        trial = row.validation
        cells = ["", "", "", "", ""]
        if trial is not None:
            gsb, motion = trial.overall.text, f"{trial.motion:.2f} ({trial.plain_motion:.2f})"
            cells = [f"{trial.seconds:.3f}", f"{trial.speedup.value:.2f}x", gsb, f"{trial.psnr:.1f}", motion]
        confirmed = f"{row.test.speedup.value:.2f}x, {row.test.overall.text}" if row.test else ""
        rows.append([row.label, *cells, confirmed, _note(plan, row)])
    return header, rows


def _note(plan: Plan, row: Row) -> str:
    if row.refused:
        return row.refused
    if plan.choice is not None and row.acceleration == plan.choice:
        return "chosen"
    trial = _trial(row)
    if trial.speedup.value < WORTH:
        return "no faster"
    if not plan.target.good(trial):
        return "loses quality"
    if row.test is not None:
        return "does not hold"
    return "on the front" if row.front else ""


def _found(row: Row) -> str:
    trial = _trial(row)
    return f"{row.label} ({trial.speedup.value:.2f}x, {trial.seconds:.3g} s, GSB {trial.overall.value:+.2f})"


def _trial(row: Row) -> Trial:
    assert row.validation is not None
    return row.validation
