"""Where things go in the page's drawings: ticks, positions and lines, in percent; the template draws them.

Percent, so that a drawing is as wide as its place and its words keep their size, on a phone as on a desk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MOST_POINTS = 300
"""A line of more points is drawn through means of neighbours."""
RESTLESS = 0.3
"""A line that turns at more than this share of its points is drawn faintly under its running mean."""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in percent from the left or from the top."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A curve as SVG points in a 100 x 100 box; `raw` is the unsmoothed one, if `points` is smoothed."""

    name: str
    points: str
    raw: str
    first: float
    last: float


@dataclass(frozen=True)
class Mark:
    """A step that is pointed at, in percent from the left; `kind` says how it is drawn."""

    at: float
    kind: str
    step: float


@dataclass(frozen=True)
class Panel:
    """A drawing of one or more curves over the step."""

    title: str
    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    steps: float
    marks: tuple[Mark, ...] = ()

    @property
    def words(self) -> str:
        """The drawing for those who cannot see it."""
        ends = (f"{line.name} from {line.first:.3g} to {line.last:.3g}" for line in self.lines)
        marks = "".join(f"; {mark.kind} at {mark.step:g}" for mark in self.marks)
        return f"{self.title}: {'; '.join(ends)} over {self.steps:g} steps{marks}"


def place(value: float, low: float, high: float) -> float:
    """Percent of the way from `low` to `high`, inside it."""
    return round(100 * (min(max(value, low), high) - low) / (high - low), 2)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that cover [low, high] with about so many steps of 1, 2 or 5 times a power of ten."""
    if low == high:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * about >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def counts(first: Sequence[int], second: Sequence[int]) -> list[tuple[str, int, int]]:
    """How many of two lists of lengths fall into each of some common bins: (label, of the first, of the second)."""
    low, high = min(*first, *second), max(*first, *second)
    width = max(1, math.ceil((high - low + 1) / 12))
    rows = []
    for start in range(low, high + 1, width):
        label = str(start) if width == 1 else f"{start}–{start + width - 1}"
        rows.append((label, *(sum(start <= n < start + width for n in lengths) for lengths in (first, second))))
    return rows


def panel(
    title: str, series: Mapping[str, Sequence[Sequence[float]]], marks: Sequence[tuple[str, float]] = ()
) -> Panel:
    """Draw named (step, value) series over common axes; each needs at least two points.

    Args:
        title: of the drawing.
        series: by name.
        marks: (kind, step) of steps that are pointed at.
    """
    steps = [step for points in series.values() for step, _ in points]
    values = [value for points in series.values() for _, value in points]
    up = ticks(min(values), max(values))
    low, high, start, end = up[0], up[-1], 0.0, max(*steps, 1.0)
    across = [step for step in ticks(start, end) if step <= end and step == round(step)]

    def box(points: Sequence[Sequence[float]]) -> str:
        return " ".join(f"{place(x, start, end):g},{100 - place(y, low, high):g}" for x, y in points)

    lines = []
    for name, points in series.items():
        shown = _thinned(points)
        restless = _restless(shown)
        smooth = box(_smooth(shown)) if restless else box(shown)
        lines.append(Line(name, smooth, box(shown) if restless else "", points[0][1], points[-1][1]))
    return Panel(
        title,
        tuple(lines),
        tuple(Tick(place(step, start, end), f"{step:g}") for step in across),
        tuple(Tick(100 - place(value, low, high), f"{value:g}") for value in up),
        end,
        tuple(Mark(place(step, start, end), kind, step) for kind, step in marks),
    )


def _thinned(points: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    if len(points) <= MOST_POINTS:
        return [(step, value) for step, value in points]
    means = [np.mean(part, axis=0) for part in np.array_split(np.asarray(points, np.float64), MOST_POINTS)]
    return [(float(step), float(value)) for step, value in means]


def _restless(points: Sequence[tuple[float, float]]) -> bool:
    turns = np.diff(np.sign(np.diff([value for _, value in points])))
    return len(points) >= 40 and float(np.mean(turns != 0)) > RESTLESS


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Mean over a window of a tenth of the line."""
    values, half = np.asarray([value for _, value in points]), max(1, len(points) // 20)
    means = [float(values[max(0, index - half) : index + half + 1].mean()) for index in range(len(values))]
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]
