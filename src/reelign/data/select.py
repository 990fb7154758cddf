"""Which shots are kept: hard gates, near-duplicates, percentiles inside motion cells.

Visual quality and motion are negatively correlated in footage: one threshold for all would keep what stands still.
Shots are therefore compared with shots of like motion, and gated hard only on what is plainly unusable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class SelectConfig(BaseModel):
    """Rules of the selection."""

    model_config = ConfigDict(extra="forbid")
    min_seconds: float = Field(default=1.0, ge=0, description="Shortest shot after trimming.")
    max_seconds: float = Field(default=60.0, gt=0, description="Longer shots are cut to this length.")
    min_frames: int = Field(default=9, ge=1, description="Fewest frames of a shot after trimming.")
    min_side: int = Field(default=48, ge=1, description="Shortest side in pixels.")
    min_fps: float = Field(default=4.0, ge=0, description="Lowest frame rate.")
    max_duplicate_frames: float = Field(
        default=0.8, ge=0, le=1, description="Largest share of repeated frames in the file."
    )
    max_black_bars: float = Field(
        default=0.35, ge=0, le=1, description="Largest share of the picture under black bars."
    )
    max_text: float = Field(default=0.5, ge=0, le=1, description="Largest share of the picture under burnt-in text.")
    min_exposure: float = Field(
        default=0.3, ge=0, le=1, description="Smallest share of pixels neither black nor blown out."
    )
    max_noise: float = Field(default=0.12, ge=0, le=1, description="Strongest noise.")
    duplicate_distance: int = Field(
        default=10, ge=0, le=64, description="Bits of 64 in which near-duplicates may differ."
    )
    drop_blurriest: float = Field(
        default=0.1, ge=0, lt=1, description="Share of each motion cell that is dropped as least sharp."
    )
    least_cell: int = Field(default=8, ge=2, description="Cells with fewer shots are not cut by percentile.")


@dataclass(frozen=True)
class Drop:
    """Why a shot is not kept."""

    rule: str
    value: str
    threshold: str
    reason: str


def gate_shot(shot: dict[str, Any], probe: dict[str, Any], rules: SelectConfig) -> Drop | None:
    """The first hard gate that a shot fails, or None."""
    seconds = shot["end"] - shot["start"]
    if seconds < rules.min_seconds - 1e-6 or shot["frames"] < rules.min_frames:
        return Drop(
            "too short",
            f"{seconds:.2f} s, {shot['frames']} frames",
            f"{rules.min_seconds:g} s, {rules.min_frames} frames",
            "too short after trimming the ends of the shot",
        )
    side = min(probe["height"], probe["width"])
    checks = [
        (side < rules.min_side, "too small", side, rules.min_side, "the picture is too small"),
        (
            probe["fps"] < rules.min_fps,
            "frame rate",
            round(probe["fps"], 3),
            rules.min_fps,
            "too few frames a second to show motion",
        ),
        (
            probe["duplicate_frames"] > rules.max_duplicate_frames,
            "repeated frames",
            round(probe["duplicate_frames"], 3),
            rules.max_duplicate_frames,
            "most frames repeat the one before",
        ),
    ]
    found = shot["measures"]
    if found is None:
        return Drop("not measured", "0", "1", "no frame of the shot could be measured")
    checks += [
        (
            found["exposure"] < rules.min_exposure,
            "exposure",
            found["exposure"],
            rules.min_exposure,
            "mostly black or blown out",
        ),
        (
            found["black_bars"] > rules.max_black_bars,
            "black bars",
            found["black_bars"],
            rules.max_black_bars,
            "black bars cover too much",
        ),
        (
            found["text"] > rules.max_text,
            "burnt-in text",
            found["text"],
            rules.max_text,
            "text or logos cover too much",
        ),
        (found["noise"] > rules.max_noise, "noise", found["noise"], rules.max_noise, "too noisy"),
    ]
    for failed, rule, value, threshold, reason in checks:
        if failed:
            return Drop(rule, f"{value:.3g}", f"{threshold:g}", reason)
    return None


def find_duplicates(shots: Sequence[dict[str, Any]], distance: int) -> dict[int, int]:
    """Which shots repeat another: index -> index of the one kept: larger, longer, of more bits, first by name."""

    def worth(index: int) -> tuple[Any, ...]:
        shot = shots[index]
        return -shot["pixels"], -shot["frames"], -shot["bytes_per_second"], shot["source"], shot["start"]

    order = sorted(range(len(shots)), key=worth)
    kept: list[int] = []
    found: dict[int, int] = {}
    hashes = [np.array([int(h, 16) for h in shot["hashes"]], np.uint64) for shot in shots]
    mirrored = [np.array([int(h, 16) for h in shot["mirrored"]], np.uint64) for shot in shots]
    for index in order:
        twin = next((other for other in kept if _alike(hashes[index], mirrored[index], hashes[other], distance)), None)
        if twin is None:
            kept.append(index)
        else:
            found[index] = twin
    return found


def _alike(first: np.ndarray, first_mirrored: np.ndarray, second: np.ndarray, distance: int) -> bool:
    """Whether most frames of one shot, or of its mirror image, have a near twin in the other."""
    if not len(first) or not len(second):
        return False
    for hashes in (first, first_mirrored):
        bits = np.bitwise_count(hashes[:, None] ^ second[None, :])
        if float(np.median(bits.min(1))) <= distance:
            return True
    return False


def motion_cells(motions: Sequence[float]) -> list[str]:
    """low, medium or high for each shot, by thirds of the motion of all shots."""
    low, high = np.quantile(motions, [1 / 3, 2 / 3]) if len(motions) else (0.0, 0.0)
    return ["low" if m <= low else "medium" if m <= high else "high" for m in motions]


def blurriest(sharpness: Sequence[float], cells: Sequence[str], rules: SelectConfig) -> dict[int, Drop]:
    """The least sharp share of every cell that is large enough."""
    found = {}
    for cell in sorted(set(cells)):
        members = [i for i, name in enumerate(cells) if name == cell]
        if len(members) < rules.least_cell:
            continue
        threshold = float(np.quantile([sharpness[i] for i in members], rules.drop_blurriest))
        for i in members:
            if sharpness[i] < threshold:
                reason = f"among the least sharp of its motion cell ({cell})"
                found[i] = Drop("sharpness percentile", f"{sharpness[i]:.3f}", f"{threshold:.3f}", reason)
    return found
