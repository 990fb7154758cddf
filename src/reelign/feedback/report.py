"""The page of a study's votes, `report.html`, self-contained, and the same numbers for programs, `report.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reelign.feedback.findings import Report, find, points
from reelign.feedback.judges import Scores
from reelign.feedback.vote import Axis, Vote
from reelign.files import write_atomically

TITLES: dict[Axis, str] = {
    "visual": "Visual quality",
    "motion": "Motion quality",
    "text": "Text alignment",
    "overall": "Overall",
}
FITS = {"newman": "evalica, Newman", "bradley_terry": "evalica, ties as half wins"}


def build_report(votes: Sequence[Vote], out: Path, judges: Mapping[str, Scores] | None = None) -> Report:
    """Write `report.json` and `report.html` into the folder `out`.

    Args:
        votes: of people, or of simulated raters.
        out: a folder; it is made.
        judges: automatic judges and rewards by name: scores by file of a clip, as votes name it, then by axis.

    Raises:
        ReelignError: there is no vote, or a score of a judge is not finite.
    """
    found = find(votes, judges)
    write_atomically(
        out / "report.json", json.dumps(as_json(found), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"points": points, "percent": percent, "part": part, "chance": chance, "signed": signed}
    environment.filters["place"] = place
    page = environment.get_template("report.html.j2").render(report=found, titles=TITLES, fits=FITS)
    write_atomically(out / "report.html", page)
    return found


def as_json(report: Report) -> dict[str, Any]:
    """All numbers and sentences of a report."""
    return {"simulated_share": report.simulated} | asdict(report)


def percent(value: float) -> str:
    """A share in hundredths."""
    return f"{100 * value:.0f} %"


def part(value: float) -> str:
    """A share that is never rounded to none or all."""
    return percent(value if value in (0, 1) else min(max(value, 0.01), 0.99))


def signed(value: float, digits: int = 2, plus: str = "+") -> str:
    """A number with a real minus sign."""
    return f"{value:{plus}.{digits}f}".replace("-", "−")


def chance(p: float) -> str:
    """A p-value as people write it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def place(value: float, low: float, high: float) -> float:
    """Percent of the way from `low` to `high`, inside it."""
    return round(100 * (min(max(value, low), high) - low) / (high - low), 2)
