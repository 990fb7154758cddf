"""A finished model for other programs: a plain diffusers folder, or the LoRA as diffusers loads it."""

from __future__ import annotations

import shutil
from pathlib import Path

from reelign.errors import ReelignError
from reelign.models.adapter import WEIGHTS, merge_lora
from reelign.models.load import ENHANCER, enhancer_folder, generator_name, load_model, model_folder


def export_model(name: str, out: Path, merge: bool = True) -> Path:
    """Write `name` to `out`, which must not exist.

    A full model, and with `merge` also a LoRA on its base, becomes a diffusers folder for
    `WanPipeline.from_pretrained`. Without `merge` a LoRA artifact is copied as it is, for
    `WanPipeline.load_lora_weights`. A prompt enhancer that the artifact carries lies in `out/enhancer`.

    Raises:
        ReelignError: `out` exists, or the model cannot be loaded.
    """
    if out.exists():
        raise ReelignError(f"{out} exists already; choose another place or remove it.")
    partial = out.with_name(f".{out.name}.export")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_generator(generator_name(name), partial, merge)
        enhancer = enhancer_folder(name)
        if enhancer is not None:
            shutil.copytree(enhancer, partial / ENHANCER, dirs_exist_ok=True)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _write_generator(name: str, folder: Path, merge: bool) -> None:
    found = model_folder(name)
    if found is not None and (found / WEIGHTS).exists() and not merge:
        shutil.copytree(found, folder)
        return
    model = load_model(name, device="cpu")
    merge_lora(model)
    model.save(folder)
