"""The miniature where its quality does not matter: clips that nobody has to sample, and a model of one block."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from reelign.data.clip import write_clip
from reelign.data.manifest import KEPT_COLUMNS, MANIFEST, write_table
from reelign.miniature.captions import full_prompt
from reelign.miniature.render import defective, render
from reelign.miniature.world import FPS, scenes
from reelign.models.load import MINIATURE


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


@functools.cache
def thin_miniature() -> Path:
    """The miniature with the first of its four blocks alone: what a stage does with a model costs a third."""
    folder = Path(tempfile.mkdtemp(prefix="reelign-thin-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(MINIATURE, folder, dirs_exist_ok=True)
    described, weights = folder / "transformer/config.json", folder / "transformer/diffusion_pytorch_model.safetensors"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"num_layers": 1}))
    later = tuple(f"blocks.{block}." for block in range(1, 4))
    save_file({name: value for name, value in load_file(weights).items() if not name.startswith(later)}, weights)
    return folder
