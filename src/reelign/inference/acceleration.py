"""What makes a model faster without training it, as data; how it is applied to a loaded model, and taken off again."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from diffusers.models.attention_dispatch import attention_backend
from diffusers.utils import logging as diffusers_logging
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from reelign.errors import ReelignError
from reelign.models.base import VideoModel
from reelign.models.block_cache import BlockCache, BlockCacheConfig, Magnitudes
from reelign.sampling.sample import SampleConfig

Quantisation = Literal["int8_weight", "int8_dynamic", "float8"]
PARTS = ("steps", "guidance_interval", "cache", "attention", "quantise", "compile", "window")


class Acceleration(BaseModel):
    """What is done differently from the plain model; empty fields change nothing."""

    model_config = ConfigDict(extra="forbid")
    steps: int | None = Field(default=None, ge=1, le=1000, description="Steps of the sampler.")
    guidance_interval: tuple[float, float] | None = Field(
        default=None, description="Noise levels with guidance; outside, one evaluation a step instead of two."
    )
    cache: BlockCacheConfig | None = Field(default=None, description="What steps take over from the steps before.")
    attention: str | None = Field(default=None, description="Attention backend, by diffusers' name.")
    quantise: Quantisation | None = Field(default=None, description="Linear layers of the blocks, by torchao.")
    compile: bool = Field(default=False, description="torch.compile of the blocks.")
    window: int | None = Field(default=None, ge=1, description="Latent frames that a block of a causal model sees.")

    @property
    def parts(self) -> tuple[str, ...]:
        """The fields that change something."""
        return tuple(name for name in PARTS if getattr(self, name) not in (None, False))

    @property
    def label(self) -> str:
        """In words, for tables."""
        return " + ".join(self._word(name) for name in self.parts) or "as it is"

    def joined(self, other: Acceleration) -> Acceleration:
        """Both; where both change the same, `other` wins."""
        return self.model_copy(update={name: getattr(other, name) for name in other.parts})

    def sampler(self, config: SampleConfig) -> SampleConfig:
        """The sampler `config` as this changes it."""
        changes = {"steps": self.steps, "guidance_interval": self.guidance_interval}
        return config.model_copy(update={name: value for name, value in changes.items() if value is not None})

    def _word(self, name: str) -> str:
        value = getattr(self, name)
        if name == "steps":
            return f"{value} steps"
        if name == "guidance_interval":
            return f"guidance in [{value[0]:.2f}, {value[1]:.2f}]"
        if name == "cache":
            number = f"every {value.interval}" if value.interval else f"{value.threshold:g}"
            return f"cache {value.kind} {number}"
        return "compile" if name == "compile" else f"{name} {value}"


def accelerate(model: VideoModel, acceleration: Acceleration, sampler: SampleConfig) -> ExitStack:
    """Change a loaded model in place.

    Args:
        model: is sampled with `acceleration.sampler(sampler)` from now on: steps and guidance are the sampler's.
        acceleration: what to change.
        sampler: the sampler without it.

    Returns:
        What takes everything off again, at the end of a `with` or by `.close()`; need not be kept.

    Raises:
        ReelignError: the model, the device or the installed packages do not allow it.
    """
    faster, networks = acceleration.sampler(sampler), list(model.denoisers().values())
    with ExitStack() as undo:
        if acceleration.window is not None:
            _set_window(model, acceleration.window, undo)
        if acceleration.attention is not None:
            for network in networks:
                _set_attention(network, acceleration.attention, undo)
        if acceleration.quantise is not None:
            for network in networks:
                _quantise(network, acceleration.quantise, undo)
        if acceleration.compile:
            from reelign.models.compiled import compile_blocks  # dynamo is slow to import

            undo.callback(compile_blocks(model))
        if acceleration.cache is not None:
            _attach_cache(model, networks, acceleration.cache, faster, undo)
        return undo.pop_all()


def calibrated(acceleration: Acceleration, model: VideoModel, sample_clip: Callable[[], object]) -> Acceleration:
    """With what its cache must know of the model: `sample_clip()` samples one with the sampler of `acceleration`."""
    if acceleration.cache is None or acceleration.cache.kind != "mag":
        return acceleration
    magnitudes = Magnitudes(next(iter(model.denoisers().values())))
    model.block_cache = magnitudes
    try:
        sample_clip()
    finally:
        model.block_cache = None
        magnitudes.remove()
    ratios = tuple(round(ratio, 4) for ratio in magnitudes.ratios)
    return acceleration.model_copy(update={"cache": acceleration.cache.model_copy(update={"ratios": ratios})})


def _attach_cache(
    model: VideoModel, networks: list[Any], config: BlockCacheConfig, sampler: SampleConfig, undo: ExitStack
) -> None:
    if config.kind == "mag" and not config.ratios:
        raise ReelignError("a cache of kind mag needs `ratios`, which `reelign plan` measures.")
    if config.kind == "cache_dit" and importlib.util.find_spec("cache_dit") is None:
        raise ReelignError("the cache is cache-dit's, which is not installed: pip install cache-dit")
    cache = BlockCache(networks, config, sampler.steps, sampler.guidance_scale != 1)
    model.block_cache = cache
    undo.callback(cache.remove)
    undo.callback(setattr, model, "block_cache", None)


def _set_window(model: VideoModel, window: int, undo: ExitStack) -> None:
    if model.causal is None:
        raise ReelignError(f"{model.name} is not causal: it has no window.")
    before = model.causal.config
    model.causal.config = type(before).model_validate({**before.model_dump(), "window": window})
    undo.callback(setattr, model.causal, "config", before)


def _set_attention(network: Any, backend: str, undo: ExitStack) -> None:
    """Of this network only: diffusers also changes the backend of the whole process, and does not change it back."""
    with _quiet(), attention_backend():
        try:
            network.set_attention_backend(backend)
        except (RuntimeError, ValueError) as error:
            raise ReelignError(f"the attention backend {backend!r} cannot be used: {error}") from error

    def restore() -> None:
        with _quiet():
            network.reset_attention_backend()

    undo.callback(restore)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' warning, at every call, that backends are experimental."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)


def _quantise(network: Any, how: Quantisation, undo: ExitStack) -> None:
    """Linear layers of the blocks only: what embeds and what comes out stays as precise as it was."""
    if importlib.util.find_spec("torchao") is None:
        raise ReelignError("quantisation is torchao's, which is not installed: pip install torchao")
    from torchao import quantization as ao  # pyright: ignore[reportMissingImports]

    config = {
        "int8_weight": ao.Int8WeightOnlyConfig,
        "int8_dynamic": ao.Int8DynamicActivationInt8WeightConfig,
        "float8": ao.Float8DynamicActivationFloat8WeightConfig,
    }[how]()
    linears = [module for module in network.blocks.modules() if isinstance(module, nn.Linear)]
    weights = [linear.weight for linear in linears]

    def restore() -> None:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight = weight

    undo.callback(restore)
    ao.quantize_(network.blocks, config)
