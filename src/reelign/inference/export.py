"""A finished model for other programs: a plain diffusers folder, or the LoRA as diffusers loads it."""

from __future__ import annotations

import shutil
from pathlib import Path

from reelign.errors import ReelignError
from reelign.models.adapter import WEIGHTS, merge_lora
from reelign.models.load import load_model, model_folder


def export_model(name: str, out: Path, merge: bool = True) -> Path:
    """Write `name` to `out`, which must not exist.

    A full model, and with `merge` also a LoRA on its base, becomes a diffusers folder for
    `WanPipeline.from_pretrained`. Without `merge` a LoRA artifact is copied as it is, for
    `WanPipeline.load_lora_weights`.

    Raises:
        ReelignError: `out` exists, or the model cannot be loaded.
    """
    if out.exists():
        raise ReelignError(f"{out} exists already; choose another place or remove it.")
    folder = model_folder(name)
    is_lora = folder is not None and (folder / WEIGHTS).exists()
    if is_lora and not merge:
        assert folder is not None
        shutil.copytree(folder, out)
        return out
    model = load_model(name, device="cpu")
    if is_lora:
        merge_lora(model)
    model.save(out)
    return out
