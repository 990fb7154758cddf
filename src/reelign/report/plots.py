"""Small SVG drawings that follow the page's colours, in light and in dark mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape


def interval_plot(rows: Sequence[tuple[str, dict[str, Any]]], low: float, high: float, zero: float | None = 0.0) -> Markup:
    """One line a row: a dot at the value and a bar over its interval, on a scale from `low` to `high`."""
    height, left, width = 34, 92, 420

    def place(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (width - left - 12)

    parts = []
    if zero is not None:
        parts.append(f'<line x1="{place(zero):.1f}" x2="{place(zero):.1f}" y1="4" y2="{height * len(rows)}" class="zero"/>')
    for index, (name, found) in enumerate(rows):
        y = height * index + height / 2
        parts.append(f'<text x="0" y="{y + 4:.1f}">{escape(name)}</text>')
        parts.append(f'<line x1="{place(found["low"]):.1f}" x2="{place(found["high"]):.1f}" y1="{y}" y2="{y}" class="bar"/>')
        parts.append(f'<circle cx="{place(found["value"]):.1f}" cy="{y}" r="5" class="dot"/>')
    scale = [low, (low + high) / 2, high]
    bottom = height * len(rows)
    for value in scale:
        anchor = "start" if value == low else "end" if value == high else "middle"
        parts.append(f'<text x="{place(value):.1f}" y="{bottom + 16}" class="tick" text-anchor="{anchor}">{value:+.2g}</text>')
    label = "; ".join(f"{name} {found['value']:+.2f}, from {found['low']:+.2f} to {found['high']:+.2f}" for name, found in rows)
    return Markup(
        f'<svg class="plot" viewBox="0 0 {width} {bottom + 22}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def curve(points: Sequence[tuple[float, float]], name: str) -> Markup:
    """A line through (step, value) points, with a smoothed one over it when there are many."""
    width, height, left, bottom = 420, 170, 52, 24
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(ys), max(ys)
    x_span, y_span = (x_high - x_low) or 1, (y_high - y_low) or abs(y_high) or 1

    def place(x: float, y: float) -> str:
        return f"{left + (x - x_low) / x_span * (width - left - 8):.1f},{8 + (y_high - y) / y_span * (height - bottom - 16):.1f}"

    lines = [f'<polyline points="{" ".join(place(x, y) for x, y in points)}" class="{"raw" if len(points) > 30 else "line"}"/>']
    if len(points) > 30:
        window = max(3, len(points) // 20)
        smooth = [
            (xs[i], sum(ys[max(0, i - window) : i + window + 1]) / len(ys[max(0, i - window) : i + window + 1]))
            for i in range(len(ys))
        ]
        lines.append(f'<polyline points="{" ".join(place(x, y) for x, y in smooth)}" class="line"/>')
    ticks = [
        f'<text x="{left - 6}" y="16" class="tick" text-anchor="end">{y_high:.3g}</text>',
        f'<text x="{left - 6}" y="{height - bottom - 4}" class="tick" text-anchor="end">{y_low:.3g}</text>',
        f'<text x="{left}" y="{height - 6}" class="tick">{x_low:g}</text>',
        f'<text x="{width - 8}" y="{height - 6}" class="tick" text-anchor="end">step {x_high:g}</text>',
    ]
    label = f"{name}: from {ys[0]:.3g} at step {x_low:g} to {ys[-1]:.3g} at step {x_high:g}"
    return Markup(
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(lines + ticks)}</svg>'
    )
