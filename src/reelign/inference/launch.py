"""`LAUNCH.md`, which lies in every export: how other programs run this model, with its own sampler.

The Python for diffusers is run by the tests. The commands for ComfyUI, SGLang and vLLM-Omni follow their documentation
and were not run; the file says so. A causal student is not for other programs: then there are no commands for them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from diffusers import DiffusionPipeline, UniPCMultistepScheduler, WanTransformer3DModel
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from pydantic import ValidationError

from reelign.errors import ReelignError
from reelign.inference import launch_programs as programs
from reelign.models.adapter import WEIGHTS
from reelign.models.base import CARD, NativeSize
from reelign.models.kv_cache import CAUSAL
from reelign.models.load import enhancer_folder, generator_name, model_folder
from reelign.models.wan import WAN_5B, WAN_480P
from reelign.sampling.sample import SampleConfig

LAUNCH = "LAUNCH.md"


@dataclass(frozen=True)
class Exported:
    """What is exported.

    Attributes:
        name: the model, as it was asked for.
        folder: name of the folder that is written.
        form: "diffusers", "peft" or "comfyui".
        adapter: the folder holds adapters and no base.
    """

    name: str
    folder: str
    form: str
    adapter: bool


def launch_notes(exported: Exported) -> str:
    """The text of `LAUNCH.md`.

    Raises:
        ReelignError: the configuration of the base cannot be read.
    """
    model = _described(exported)
    head = [f"# {exported.folder}", _what_it_is(exported, model), _sampler_table(model)]
    if enhancer_folder(exported.name) is not None:
        head.append(
            f"Its prompt enhancer is in `enhancer/`, an ordinary transformers folder: `reelign enhance PROMPT --model "
            f"{quote(exported.folder)}`."
        )
    if model.causal:
        return "\n\n".join([*head, programs.causal(model)]) + "\n"
    head.append(
        f"Run the commands from the folder that holds `{exported.folder}`. The Python is what reelign's tests run on "
        "small models. The commands for ComfyUI, SGLang and vLLM-Omni follow their documentation and were not run."
    )
    sections = (programs.diffusers, programs.comfyui, programs.sglang, programs.vllm_omni)
    return "\n\n".join([*head, *(section(model) for section in sections)]) + "\n"


def _described(exported: Exported) -> programs.Described:
    """Read what the notes need from configurations alone: no weights are loaded."""
    chain = _chain(generator_name(exported.name))
    source = chain[-1]
    index = _config(DiffusionPipeline, source)
    schedule = _config(UniPCMultistepScheduler, source, "scheduler")
    network = _config(WanTransformer3DModel, source, "transformer")
    cards = [_card(place) for place in chain]
    native = next((card["native_size"] for card in cards if "native_size" in card), None)
    size = NativeSize(**native) if native else WAN_5B if index.get("expand_timesteps") else WAN_480P
    shift = float(schedule.get("flow_shift") or schedule.get("shift") or 1.0)
    own = next((card["sampler"] for card in cards if card.get("sampler")), None)
    try:
        sampler = SampleConfig(shift=shift, guidance_scale=size.guidance_scale)
        sampler = sampler if own is None else SampleConfig.model_validate(own)
    except ValidationError as error:
        raise ReelignError(f"the card of {exported.name} holds a sampler that is none: {error}") from None
    base = chain[1] if exported.adapter else source
    return programs.Described(
        name=exported.name,
        folder=exported.folder,
        form=exported.form,
        adapter=exported.adapter,
        base=str(base.resolve()) if isinstance(base, Path) else base,
        base_is_adapter=isinstance(base, Path) and (base / WEIGHTS).exists(),
        size=size,
        sampler=sampler,
        undistilled=own is None,
        boundary=index.get("boundary_ratio"),
        experts=index.get("transformer_2", [None])[0] is not None,
        tokens_have_levels=bool(index.get("expand_timesteps")),
        own_autoencoder=index["vae"][0] != "diffusers",
        shape_of_wan=network["attention_head_dim"] == 128 and network["freq_dim"] == 256,
        causal=any(isinstance(place, Path) and (place / CAUSAL).exists() for place in chain),
    )


def _chain(name: str) -> list[Path | str]:
    """An artifact, its base, the base of that, down to a pipeline: a folder or a hub id."""
    folder = model_folder(name)
    if folder is None:
        return [name]
    if (folder / "model_index.json").exists():
        return [folder]
    base = _card(folder).get("base")
    if base is None:
        raise ReelignError(f"{folder / CARD} does not say `base`.")
    return [folder, *_chain(generator_name(str(base)))]


def _card(place: Path | str) -> dict[str, Any]:
    if isinstance(place, str) or not (place / CARD).exists():
        return {}
    try:
        return json.loads((place / CARD).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ReelignError(f"{place / CARD} cannot be read: {error}") from error


def _config(kind: Any, source: Path | str, subfolder: str | None = None) -> dict[str, Any]:
    try:
        return kind.load_config(source, **({"subfolder": subfolder} if subfolder else {}))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        first = str(error).strip().splitlines()[0]
        raise ReelignError(f"cannot read the configuration of {source}: {first}") from error


def _what_it_is(exported: Exported, model: programs.Described) -> str:
    made = f"`{exported.name}`, exported by reelign as `{exported.form}`"
    if not exported.adapter:
        return f"{made}: a full model."
    return f"{made}: low-rank adapters for `{model.base}`."


def _sampler_table(model: programs.Described) -> str:
    size, sampler = model.size, model.sampler
    whose = "as `reelign generate` has it" if model.undistilled else "the one it was distilled for"
    rows = {
        "clip": f"{size.frames} frames of {size.width} x {size.height}, {size.fps:g} a second",
        "steps": f"{sampler.steps}",
        "solver": sampler.solver,
        "shift": f"{sampler.shift:g}",
        "guidance": f"{sampler.guidance_scale:g}" + (" (none)" if sampler.guidance_scale == 1 else ""),
    }
    if sampler.guidance_interval != (0.0, 1.0):
        low, high = sampler.guidance_interval
        rows["guidance"] += f", at noise levels from {low:g} to {high:g} only; the programs below guide at all of them"
    return "\n".join([f"| sampler | {whose} |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
