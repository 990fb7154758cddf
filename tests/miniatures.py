"""Datasets of rendered clips of the miniature's world: entrants of a study that nobody has to sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reelign.data.clip import write_clip
from reelign.data.manifest import KEPT_COLUMNS, MANIFEST, write_table
from reelign.miniature.captions import full_prompt
from reelign.miniature.render import defective, render
from reelign.miniature.world import FPS, scenes


def rendered(folder: Path, count: int, defect: str | None = None) -> Path:
    """A dataset of so many scenes that move, clean or each with a defect that nobody can miss."""
    rows = []
    moving = [scene for scene in scenes(held_out=True) if scene.motion != "still"]
    for number, scene in enumerate(moving[:count]):
        source = np.random.default_rng(number)
        frames = render(scene, source) if defect is None else defective(scene, source, defect, 1.0)
        write_clip(folder / f"clips/{number}.mp4", frames, FPS)
        rows.append(
            {"id": str(number), "path": f"clips/{number}.mp4", "caption": full_prompt(scene).text, "fps": float(FPS)}
        )
    write_table(folder / MANIFEST, rows, KEPT_COLUMNS)
    return folder
