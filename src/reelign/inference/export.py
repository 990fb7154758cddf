"""A finished model for other programs: a diffusers folder, a PEFT adapter, or files that ComfyUI reads.

Beside it lies `LAUNCH.md`: how each program runs this model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from reelign.errors import ReelignError
from reelign.inference.launch import LAUNCH, Exported, launch_notes
from reelign.inference.original_names import comfyui_file, original_name
from reelign.models.adapter import WEIGHTS, merge_lora
from reelign.models.base import CARD
from reelign.models.kv_cache import CAUSAL
from reelign.models.load import ENHANCER, enhancer_folder, generator_name, load_model, model_folder

Format = Literal["diffusers", "peft", "comfyui"]


def export_model(name: str, out: Path, merge: bool | None = None, form: Format = "diffusers") -> Path:
    """Write `name` to the folder `out`, which must not exist; a prompt enhancer that it carries lies in `out/enhancer`.

    - "diffusers": a folder for `WanPipeline.from_pretrained`. A LoRA is merged into its base, or with `merge=False`
      copied as it is, for `WanPipeline.load_lora_weights`.
    - "peft": a LoRA for `PeftModel.from_pretrained`; that of a second expert lies in `out/transformer_2`.
    - "comfyui": one file for each denoiser in Wan's own names; of a LoRA, without `merge`, the adapters alone.

    Raises:
        ReelignError: `out` exists, the model cannot be loaded, it has no adapter where one is asked for, or the disk is
            full; nothing is left behind then.
    """
    if out.exists():
        raise ReelignError(f"{out} exists already; choose another place or remove it.")
    generator = generator_name(name)
    adapter = _adapter_folder(generator)
    if form == "peft" and adapter is None:
        raise ReelignError(f"{name} has no adapter: it is a full model, which --format peft cannot hold.")
    if form == "peft" and merge:
        raise ReelignError("--format peft writes an adapter, which --merge would fold away; leave one of them out.")
    if adapter is not None and (merge if merge is not None else form == "diffusers"):
        adapter = None
    work = out.with_name(f".{out.name}.export")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        _write(name, generator, adapter, work / out.name, form)
        (work / out.name).replace(out)
    except (OSError, SafetensorError) as error:
        raise ReelignError(f"cannot write the export {out}: {error}. Free some space and run again.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _write(name: str, generator: str, adapter: Path | None, folder: Path, form: Format) -> None:
    """Everything that an export holds; `adapter` is None where a full model is written."""
    exported = Exported(name, folder.name, form, adapter is not None)
    notes = launch_notes(exported)  # what it reads may be missing: find out before gigabytes are written
    if adapter is None:
        _write_full(generator, folder, form)
    elif form == "diffusers":
        shutil.copytree(adapter, folder)
    else:
        for network in _adapters(adapter):
            (_write_peft if form == "peft" else _write_comfyui_lora)(network, folder)
    found = model_folder(generator)
    if found is not None and (found / CAUSAL).exists():
        shutil.copy(found / CAUSAL, folder / CAUSAL)
    enhancer = enhancer_folder(name)
    if enhancer is not None:
        shutil.copytree(enhancer, folder / ENHANCER, dirs_exist_ok=True)
    (folder / LAUNCH).write_text(notes, encoding="utf-8")


def _write_full(generator: str, folder: Path, form: Format) -> None:
    model = load_model(generator, device="cpu")
    merge_lora(model)
    if form == "diffusers":
        model.save(folder)
        return
    folder.mkdir()
    parts = model.denoisers()
    for part, network in parts.items():
        weights = {original_name(key): value.contiguous() for key, value in network.state_dict().items()}
        save_file(weights, folder / comfyui_file(folder.name, part if len(parts) > 1 else None), {"format": "pt"})


@dataclass(frozen=True)
class _Adapter:
    """The adapters of one denoiser: `blocks.0.attn1.to_q.lora_A.weight` and so on."""

    part: str
    alone: bool
    base: str
    config: LoraConfig
    weights: dict[str, Tensor]


def _adapter_folder(generator: str) -> Path | None:
    folder = model_folder(generator)
    return folder if folder is not None and (folder / WEIGHTS).exists() else None


def _adapters(folder: Path) -> Iterator[_Adapter]:
    """The adapters of an artifact, one denoiser after the other, without loading the base."""
    files = {"transformer": folder / WEIGHTS, "transformer_2": folder / "transformer_2" / WEIGHTS}
    files = {part: file for part, file in files.items() if file.exists()}
    base = json.loads((folder / CARD).read_text(encoding="utf-8"))["base"]
    for part, file in files.items():
        try:
            with safe_open(file, "pt") as opened:
                header: dict[str, Any] = json.loads(opened.metadata()["lora_adapter_metadata"])
            weights = load_file(file)
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ReelignError(f"cannot load the adapter {file}: {error}") from error
        config = LoraConfig(**{key.removeprefix("transformer."): value for key, value in header.items()})
        bare = {key.removeprefix("transformer."): value for key, value in weights.items()}
        yield _Adapter(part, len(files) == 1, base, config, bare)


def _write_peft(adapter: _Adapter, folder: Path) -> None:
    place = folder if adapter.part == "transformer" else folder / adapter.part
    place.mkdir(parents=True)
    adapter.config.base_model_name_or_path = adapter.base
    adapter.config.inference_mode = True
    adapter.config.save_pretrained(str(place))
    weights = {f"base_model.model.{key}": value for key, value in adapter.weights.items()}
    save_file(weights, place / "adapter_model.safetensors", {"format": "pt"})


def _write_comfyui_lora(adapter: _Adapter, folder: Path) -> None:
    """Alpha / rank is folded into the second factor: a file without alphas means scale 1 to every reader, while
    diffusers refuses alphas of layers outside the blocks."""
    folder.mkdir(exist_ok=True)
    scale = adapter.config.lora_alpha / adapter.config.r
    weights = {
        f"diffusion_model.{original_name(key)}": value * scale if ".lora_B." in key else value
        for key, value in adapter.weights.items()
    }
    file = comfyui_file(folder.name, None if adapter.alone else adapter.part, lora=True)
    save_file(weights, folder / file, {"format": "pt"})
