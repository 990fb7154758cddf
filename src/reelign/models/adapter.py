"""LoRA through peft: attach with a report of what was covered, save as diffusers loads it, load, merge."""

from __future__ import annotations

import difflib
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from torch import nn

from reelign.errors import ReelignError
from reelign.models.base import VideoModel, write_card

WEIGHTS = "pytorch_lora_weights.safetensors"
NAME = "default"


class LoraSettings(BaseModel):
    """Low-rank adapters."""

    model_config = ConfigDict(extra="forbid")
    rank: int = Field(default=32, ge=1, description="Rank of the adapters.")
    alpha: int = Field(default=32, ge=1, description="Scale: the update is multiplied by alpha / rank.")
    targets: list[str] = Field(
        default=["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"],
        min_length=1,
        description="Endings of the module names that get an adapter.",
    )


@dataclass(frozen=True)
class Coverage:
    """Which modules carry an adapter, by target, over all denoisers."""

    modules: dict[str, list[str]]

    @property
    def sentence(self) -> str:
        """One line for people."""
        total = sum(len(names) for names in self.modules.values())
        parts = ", ".join(f"{target} {len(names)}" for target, names in self.modules.items())
        return f"{total} modules carry an adapter: {parts}."


def attach_lora(model: VideoModel, settings: LoraSettings, seed: int = 0) -> Coverage:
    """Give every denoiser float32 adapters; all else is frozen.

    Adapters start from `seed` alone (A as peft draws it, B at zero): with the process's own random state, ranks and
    reruns would start from different ones.

    Raises:
        ReelignError: a target matches no linear layer; the message lists near names.
    """
    coverage = _covered(model, settings.targets)
    generator = torch.Generator().manual_seed(seed)
    for network in model.denoisers().values():
        network.requires_grad_(False)
        network.add_adapter(
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                target_modules=settings.targets,
                init_lora_weights=True,
            ),
            adapter_name=NAME,
        )
        adapted = [(name, p) for name, p in network.named_parameters() if ".lora_" in name]
        for name, parameter in adapted:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
            if ".lora_A." in name:
                drawn = nn.init.kaiming_uniform_(torch.empty(parameter.shape), a=math.sqrt(5), generator=generator)
                parameter.data.copy_(drawn)
        expected = 2 * sum(
            name.startswith(f"{_part(model, network)}.") for n in coverage.modules.values() for name in n
        )
        if len(adapted) != expected:
            raise ReelignError(
                f"LoRA: {expected // 2} modules were targeted, but {len(adapted) // 2} carry an adapter."
            )
    return coverage


def _covered(model: VideoModel, targets: list[str]) -> Coverage:
    linear = [
        f"{part}.{name}"
        for part, network in model.denoisers().items()
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    ]
    found = {target: [name for name in linear if name.endswith(f".{target}")] for target in targets}
    for target, names in found.items():
        if not names:
            endings = sorted({".".join(name.split(".")[-depth:]) for name in linear for depth in (1, 2, 3)})
            near = difflib.get_close_matches(target, endings, n=4, cutoff=0.3)
            raise ReelignError(
                f"lora.targets: {target!r} matches no linear layer. Near names: {', '.join(near) or endings}."
            )
    return Coverage(found)


def _part(model: VideoModel, network: nn.Module) -> str:
    return next(name for name, other in model.denoisers().items() if other is network)


def save_lora(model: VideoModel, folder: Path, base: str) -> None:
    """Write the adapters so that `WanPipeline.load_lora_weights(folder)` gives the identical model.

    diffusers keeps one network in a file: the adapters of a second expert lie in `folder/transformer_2` and are loaded
    by `load_lora_weights(folder / "transformer_2", load_into_transformer_2=True)`. Rank and alpha of each adapter stand
    in the file's header.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for part, network in model.denoisers().items():
            adapters: Any = get_peft_model_state_dict(network, adapter_name=NAME)
            WanPipeline.save_lora_weights(
                _place(partial, part),
                transformer_lora_layers=adapters,
                transformer_lora_adapter_metadata=network.peft_config[NAME].to_dict(),
            )
        write_card(model, partial, {"base": base, "kind": "lora"})
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ReelignError(f"cannot write the adapter {folder}: {error}. Free some space and run again.") from error
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def load_lora(model: VideoModel, folder: Path) -> None:
    """Put saved adapters on a base model."""
    for part in model.denoisers():
        place = _place(folder, part)
        second = {"load_into_transformer_2": True} if part == "transformer_2" else {}
        try:
            model.pipeline.load_lora_weights(place, weight_name=WEIGHTS, adapter_name=NAME, **second)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise ReelignError(f"cannot load the adapter {place / WEIGHTS}: {error}") from error


def _place(folder: Path, part: str) -> Path:
    """Folder of the adapters of one denoiser."""
    return folder if part == "transformer" else folder / part


def merge_lora(model: VideoModel) -> None:
    """Fold the adapters, if there are any, into the weights and remove them."""
    if not any(hasattr(network, "peft_config") for network in model.denoisers().values()):
        return
    with torch.no_grad():
        model.pipeline.fuse_lora(components=list(model.denoisers()))
        model.pipeline.unload_lora_weights()


@contextmanager
def without_lora(model: VideoModel) -> Iterator[None]:
    """Within this context the adapters add nothing: the model is its base, without a second copy of it."""
    layers = [m for network in model.denoisers().values() for m in network.modules() if isinstance(m, LoraLayer)]
    for layer in layers:
        layer.set_scale(NAME, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(NAME, 1.0)
