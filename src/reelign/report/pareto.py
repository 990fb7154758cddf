"""Quality against cost as a drawing: where each way to make clips stands, and the line of those that none beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reelign.report.plots import Tick, place, ticks


@dataclass(frozen=True)
class Point:
    """A way to make clips: its place in percent from the left and from the top, and whether none is both cheaper and
    better."""

    name: str
    left: float
    top: float
    best: bool
    number: int


@dataclass(frozen=True)
class Pareto:
    """The drawing; `line` are SVG points in a 100 x 100 box."""

    points: tuple[Point, ...]
    line: str
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    words: str


def pareto(rows: Sequence[dict[str, Any]]) -> Pareto | None:
    """Draw the mean score of each row of a bargain over its network evaluations (logarithmic); None without rows."""
    if not rows:
        return None
    cost = [math.log2(row["nfe"]) for row in rows]
    value = [sum(row["scores"].values()) / len(row["scores"]) for row in rows]
    low = math.floor(min(cost) - 0.3)  # a point on the edge would hide the words beside it
    high = max(math.ceil(max(cost)), low + 1)
    up = ticks(min(value), max(value))
    points = []
    for number, (row, x, y) in enumerate(zip(rows, cost, value, strict=True), 1):
        best = not any((a <= x and b >= y) and (a < x or b > y) for a, b in zip(cost, value, strict=True))
        points.append(Point(row["name"], place(x, low, high), 100 - place(y, up[0], up[-1]), best, number))
    line = " ".join(f"{p.left:g},{p.top:g}" for p in sorted(points, key=lambda p: p.left) if p.best)
    words = "; ".join(
        f"{row['name']}: {row['nfe']:g} evaluations, mean score {y:.3f}" for row, y in zip(rows, value, strict=True)
    )
    return Pareto(
        tuple(points),
        line,
        tuple(Tick(place(x, low, high), f"{2**x:g}") for x in range(low, high + 1)),
        tuple(Tick(100 - place(y, up[0], up[-1]), f"{y:g}") for y in up),
        words,
    )
