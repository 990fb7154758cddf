"""The one-page audit of a dataset: what was kept, with pictures, and what was not, with reasons."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader

from reelign.data.clip import read_clip
from reelign.files import write_atomically

MEASURES = ("motion", "sharpness", "noise", "exposure", "colourfulness", "flicker", "black_bars", "text")
SHOWN = 60
"""Thumbnails on the page; the tables hold every clip."""


def write_audit(
    dataset: Path, kept: Sequence[Mapping[str, Any]], dropped: Sequence[Mapping[str, Any]], files: int
) -> None:
    """Write `audit.html` into the dataset; self-contained, the same rows give the same page."""
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("audit.html.j2")
    cards = [dict(row) | {"thumbnail": _thumbnail(dataset / str(row["path"]))} for row in kept[:SHOWN]]
    html = page.render(
        files=files,
        kept=kept,
        cards=cards,
        seconds=sum(float(row["seconds"]) for row in kept),
        captioned=sum(bool(row["caption"]) for row in kept),
        dropped=dropped,
        rules=Counter(row["rule"] for row in dropped).most_common(),
        histograms=[_histogram(name, [float(row[name]) for row in kept]) for name in MEASURES] if kept else [],
    )
    write_atomically(dataset / "audit.html", html)


def _thumbnail(path: Path) -> str:
    """First, middle and last frame side by side, as a JPEG data address."""
    frames = read_clip(path).frames
    chosen = frames[[0, len(frames) // 2, -1]]
    scale = 90 / frames.shape[1]
    size = (max(1, round(frames.shape[2] * scale)), 90)
    strip = np.concatenate([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in chosen], axis=1)
    _, data = cv2.imencode(".jpg", strip[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _histogram(name: str, values: Sequence[float]) -> dict[str, Any]:
    counts, edges = np.histogram(values, bins=12)
    top = max(1, int(counts.max()))
    return {
        "name": name.replace("_", " "),
        "bars": [round(100 * int(count) / top) for count in counts],
        "low": f"{edges[0]:.3g}",
        "high": f"{edges[-1]:.3g}",
    }
