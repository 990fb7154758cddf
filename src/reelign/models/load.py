"""From a name to a video model: the word 'miniature', a finished artifact, a diffusers folder or a hub id."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import WanPipeline
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from reelign.errors import ReelignError
from reelign.models.adapter import WEIGHTS, load_lora, merge_lora
from reelign.models.base import CARD, NativeSize, VideoModel
from reelign.models.codec import BlockCodec
from reelign.models.kv_cache import CAUSAL, CausalConfig
from reelign.models.wan import WanModel

ENHANCER = "enhancer"
"""Folder of an artifact that holds its prompt enhancer; without weights beside it, the generator is the card's base."""
MINIATURE = Path(__file__).parents[1] / "miniature" / "assets" / "model"
FAMILIES = {"WanPipeline": WanModel}
AUTOENCODERS = (BlockCodec,)
"""Our own component classes: diffusers loads a class from outside itself only when its module has been imported."""


def load_model(name: str | Path, dtype: str = "float32", device: torch.device | str | None = None) -> VideoModel:
    """Load a model; a LoRA artifact loads its base first and the adapter on top. A base that is a LoRA artifact itself
    is merged: a model carries one adapter at most.

    An artifact that only adds an enhancer is its base.

    Args:
        name: 'miniature', an artifact of a run (its folder, or the stage folder that holds `model/`), a diffusers
            folder or a hub id.
        dtype: "float32" or "bfloat16" for text encoder and denoisers; the autoencoder always computes in float32.
        device: where to put it; by default the CUDA device when there is one.

    Raises:
        ReelignError: nothing is there, a file is damaged, or the family is not supported.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = generator_name(str(name))
    folder = model_folder(name)
    if folder is not None and (folder / WEIGHTS).exists():
        model = load_model(_card(folder, "base"), dtype, place)
        merge_lora(model)
        load_lora(model, folder)
        return _distilled(model, folder)
    if folder is not None:
        _check_files(folder)
    pipeline = _load_pipeline(folder or name, getattr(torch, dtype))
    if pipeline.vae.dtype != torch.float32:
        pipeline.vae.to(torch.float32)
    pipeline.to(place)
    model = FAMILIES[type(pipeline).__name__](pipeline, name, _native_size(folder))
    return model if folder is None else _distilled(model, folder)


def model_folder(name: str) -> Path | None:
    """The local folder that a name means; None for a hub id."""
    if name == "miniature":
        return MINIATURE
    path = Path(name)
    for candidate in (path, path / "model"):
        kinds = ("model_index.json", WEIGHTS, f"{ENHANCER}/config.json")
        if any((candidate / kind).exists() for kind in kinds):
            return candidate
    if path.exists():
        raise ReelignError(f"{name} is no model: it holds neither model_index.json nor {WEIGHTS}.")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ReelignError(
            f"there is no model {name!r}. Give the word 'miniature', an artifact of a run such as runs/demo/sft/model, "
            "a diffusers folder or a hub id such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers."
        )
    return None


def generator_name(name: str) -> str:
    """Who makes the clips of a model: itself, or the base of an artifact that only adds an enhancer."""
    folder = model_folder(name)
    if folder is None or any((folder / file).exists() for file in ("model_index.json", WEIGHTS)):
        return name
    return generator_name(_card(folder, "base"))


def enhancer_folder(name: str) -> Path | None:
    """Where the prompt enhancer of a model lies; None when it carries none."""
    folder = model_folder(name)
    found = folder / ENHANCER if folder is not None else None
    return found if found is not None and (found / "config.json").exists() else None


def weights_identity(name: str) -> str:
    """SHA-256 over the weights that a name stands for, its bases among them; of a hub id, over the id."""
    folder = model_folder(name)
    digest = hashlib.sha256()
    if folder is None:
        return hashlib.sha256(name.encode()).hexdigest()
    if not (folder / "model_index.json").exists():
        digest.update(weights_identity(_card(folder, "base")).encode())
    for path in sorted(folder.rglob("*.safetensors")):
        if path.parent != folder / ENHANCER:
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _load_pipeline(source: Path | str, dtype: torch.dtype) -> WanPipeline:
    try:
        index: Any = diffusers.DiffusionPipeline.load_config(source)
        family = index.get("_class_name")
        if family not in FAMILIES:
            raise ReelignError(f"{source} is a {family}; supported pipelines: {', '.join(sorted(FAMILIES))}.")
        return WanPipeline.from_pretrained(source, dtype=dtype)
    except SafetensorError as error:
        raise ReelignError(
            f"{source}: a weight file is damaged ({error}). Copy or download the model again."
        ) from error
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        first = str(error).strip().splitlines()[0]
        raise ReelignError(f"cannot load the model {source}: {first}") from error


def _check_files(folder: Path) -> None:
    """Open every weight file before diffusers does: its own message would not name the file."""
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ReelignError(f"the weight file {path} is damaged ({error}). Copy or make the model again.") from error


def _card(folder: Path, key: str) -> Any:
    try:
        return json.loads((folder / CARD).read_text(encoding="utf-8"))[key]
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise ReelignError(f"{folder / CARD} does not say `{key}`: {error}") from error


def _distilled(model: VideoModel, folder: Path) -> VideoModel:
    """What the artifact of a distilled model says beside its weights: how it sees the past, and its sampler."""
    if (folder / CARD).exists():
        model.own_sampler = json.loads((folder / CARD).read_text(encoding="utf-8")).get("sampler")
    if (folder / CAUSAL).exists():
        try:
            model.make_causal(CausalConfig.model_validate_json((folder / CAUSAL).read_text(encoding="utf-8")))
        except ValidationError as error:
            raise ReelignError(f"{folder / CAUSAL} does not say how the model sees the past: {error}") from None
    return model


def _native_size(folder: Path | None) -> NativeSize | None:
    """What the card says of the clips that the model makes; None without a card."""
    if folder is None or not (folder / CARD).exists():
        return None
    return NativeSize(**_card(folder, "native_size"))
