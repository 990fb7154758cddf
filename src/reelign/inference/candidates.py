"""What is worth trying on a model, and what is known to be illegal or pointless before any time is spent on it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.models.attention_dispatch import AttentionBackendName, _check_attention_backend_requirements

from reelign.inference.acceleration import Acceleration
from reelign.models.base import VideoModel
from reelign.models.block_cache import BlockCacheConfig
from reelign.sampling.sample import SampleConfig

FEW_STEPS = 8
"""A sampler of no more steps leaves a cache nothing: neighbouring steps differ by too much."""
LEAST_STEPS = 2
SHARES = (0.75, 0.6, 0.5, 0.4, 0.3)
"""Of the sampler's steps."""
GUIDED = ((0.0, 0.65), (0.0, 0.5), (0.1, 0.6))
"""Guidance from this share of the steps to that one, counted from the noise."""
CACHES = (
    *(BlockCacheConfig(kind="first_block", threshold=threshold) for threshold in (0.1, 0.2)),
    *(BlockCacheConfig(kind="mag", threshold=threshold) for threshold in (0.06, 0.12)),
    *(BlockCacheConfig(kind="taylorseer", interval=interval) for interval in (2, 3)),
    BlockCacheConfig(kind="pyramid", interval=2),
    *(BlockCacheConfig(kind="cache_dit", threshold=threshold) for threshold in (0.1, 0.2)),
)
BACKENDS = ("_native_cudnn", "flash", "_flash_3", "sage", "xformers")


@dataclass(frozen=True)
class Candidate:
    """A row of the table: something to try, or something that is refused with a reason.

    `acceleration` is empty where there is nothing that could be tried.
    """

    kind: str
    label: str
    acceleration: Acceleration | None
    refused: str = ""


def candidates(model: VideoModel, sampler: SampleConfig, frames: int, kinds: Sequence[str] = ()) -> list[Candidate]:
    """Everything by itself, the refused among it; `kinds` keeps some of them only.

    Args:
        model: the loaded model.
        sampler: its sampler without acceleration.
        frames: latent frames of a clip.
        kinds: of `KINDS`; all if empty.
    """
    found: list[Candidate] = []
    for kind, make in KINDS.items():
        if not kinds or kind in kinds:
            found += make(model, sampler, frames)
    return found


def refusal(model: VideoModel, sampler: SampleConfig, acceleration: Acceleration) -> str:
    """Why an acceleration is not worth its time on this model; empty where it may be."""
    faster = acceleration.sampler(sampler)
    if acceleration.guidance_interval is not None and sampler.guidance_scale == 1:
        return "the sampler takes no guidance"
    if acceleration.cache is not None and (why := _no_cache(model, faster, acceleration.cache)):
        return why
    if acceleration.attention is not None and (why := _no_backend(model, acceleration.attention)):
        return why
    if acceleration.quantise is not None and (why := _no_quantisation(model, acceleration.quantise)):
        return why
    return _no_compile(model, acceleration) if acceleration.compile else ""


def _no_cache(model: VideoModel, sampler: SampleConfig, cache: BlockCacheConfig) -> str:
    networks = list(model.denoisers().values())
    if sampler.steps <= FEW_STEPS:
        return f"{sampler.steps} steps: neighbours differ by too much for a cache, which needs more than {FEW_STEPS}"
    if model.causal is not None:
        return "a causal model computes block after block; a cache would carry one block into the next"
    if not all(_has_block_cache(network) for network in networks):
        return f"diffusers has no block cache for {type(networks[0]).__name__}"
    guided, low, high = sampler.guidance_scale != 1, *sampler.guidance_interval
    if cache.kind == "pyramid" and guided:
        return "diffusers keeps one state for both sides of guidance: each would be given the other's attention"
    if cache.kind == "mag" and guided and high < 1:
        return "it counts the steps of each side of guidance, and one of them begins late"
    if cache.kind in ("mag", "cache_dit") and len(networks) > 1:
        return "it counts the steps of a clip, and each of the two experts sees a part of them"
    if cache.kind == "cache_dit" and guided and (low > 0 or high < 1):
        return "it tells the sides of guidance apart by counting calls, and the interval leaves some out"
    if cache.kind == "cache_dit" and importlib.util.find_spec("cache_dit") is None:
        return "not installed: pip install cache-dit"
    return ""


def _has_block_cache(network: Any) -> bool:
    blocks: Any = getattr(network, "blocks", ())
    try:
        TransformerBlockRegistry.get(type(blocks[0]))
    except (ValueError, IndexError):
        return False
    return hasattr(network, "enable_cache") and len(blocks) > 1


def _no_backend(model: VideoModel, backend: str) -> str:
    if model.device.type != "cuda":
        return f"needs a GPU; this model is on the {model.device.type.upper()}"
    try:
        _check_attention_backend_requirements(AttentionBackendName(backend))
    except RuntimeError as error:
        return f"not installed: {error}"
    return ""


def _no_quantisation(model: VideoModel, how: str) -> str:
    if importlib.util.find_spec("torchao") is None:
        return "not installed: pip install torchao"
    if any(hasattr(network, "peft_config") for network in model.denoisers().values()):
        return "the model carries an adapter; `reelign export` merges it first"
    if how == "float8" and (model.device.type != "cuda" or torch.cuda.get_device_capability(model.device) < (8, 9)):
        return "needs a GPU that computes in float8 (compute capability 8.9)"
    return ""


def _no_compile(model: VideoModel, acceleration: Acceleration) -> str:
    if acceleration.cache is not None:
        return "a cache decides between the blocks, and breaks what is compiled"
    if model.device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "not installed: triton"
    compiler = os.environ.get("CXX", "g++")
    return "" if shutil.which(compiler) else f"torch.compile needs a C++ compiler, and there is no {compiler}"


def _judged(kind: str, model: VideoModel, sampler: SampleConfig, tried: Sequence[Acceleration]) -> list[Candidate]:
    return [Candidate(kind, one.label, one, refusal(model, sampler, one)) for one in tried]


def _steps(model: VideoModel, sampler: SampleConfig, frames: int) -> list[Candidate]:
    fewer = sorted({max(LEAST_STEPS, round(share * sampler.steps)) for share in SHARES}, reverse=True)
    tried = [Acceleration(steps=steps) for steps in fewer if steps < sampler.steps]
    if not tried:
        return [Candidate("steps", "fewer steps", None, f"the sampler takes {sampler.steps} already")]
    return _judged("steps", model, sampler, tried)


def _guidance(model: VideoModel, sampler: SampleConfig, frames: int) -> list[Candidate]:
    grid = sampler.grid
    levels = []
    for start, end in GUIDED:
        first, last = round(start * sampler.steps), max(0, round(end * sampler.steps) - 1)
        top = 1.0 if first == 0 else float(grid[first - 1] + grid[first]) / 2
        levels.append((round(float(grid[last] + grid[last + 1]) / 2, 3), round(top, 3)))
    tried = [Acceleration(guidance_interval=interval) for interval in dict.fromkeys(levels)]
    if sampler.guidance_scale == 1:
        return [Candidate("guidance", "guidance in a part of the steps", None, refusal(model, sampler, tried[0]))]
    return _judged("guidance", model, sampler, tried)


def _caches(model: VideoModel, sampler: SampleConfig, frames: int) -> list[Candidate]:
    faster = "it wants both sides of guidance in one batch, and the sampler calls them one after the other"
    return [
        *_judged("cache", model, sampler, [Acceleration(cache=cache) for cache in CACHES]),
        Candidate("cache", "cache faster", None, faster),
    ]


def _attention(model: VideoModel, sampler: SampleConfig, frames: int) -> list[Candidate]:
    return _judged("attention", model, sampler, [Acceleration(attention=backend) for backend in BACKENDS])


def _quantisations(model: VideoModel, sampler: SampleConfig, frames: int) -> list[Candidate]:
    tried = [Acceleration(quantise=how) for how in ("int8_weight", "int8_dynamic", "float8")]
    return _judged("quantise", model, sampler, tried)


def _compiled(model: VideoModel, sampler: SampleConfig, frames: int) -> list[Candidate]:
    return _judged("compile", model, sampler, [Acceleration(compile=True)])


def _offload(model: VideoModel, sampler: SampleConfig, frames: int) -> list[Candidate]:
    where = "on the CPU there is nothing to take off it"
    if model.device.type == "cuda":
        where = "the model is on the GPU as a whole; taking parts off it between steps can only be slower"
    return [Candidate("offload", "offload", None, where)]


def _windows(model: VideoModel, sampler: SampleConfig, frames: int) -> list[Candidate]:
    if model.causal is None:
        return [Candidate("window", "shorter KV window", None, "the model is not causal: it keeps no past")]
    config = model.causal.config
    seen = min(frames, config.window or frames)
    tried = [Acceleration(window=size) for size in range(seen - config.block, config.block - 1, -config.block)]
    if not tried:
        return [Candidate("window", "shorter KV window", None, f"a block sees {seen} latent frames, its own only")]
    return _judged("window", model, sampler, tried)


KINDS = {
    "steps": _steps,
    "guidance": _guidance,
    "cache": _caches,
    "attention": _attention,
    "quantise": _quantisations,
    "compile": _compiled,
    "offload": _offload,
    "window": _windows,
}
"""What can be tried, cheapest to explain first."""
