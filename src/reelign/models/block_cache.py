"""Block caches: steps of the sampler that take most of the network from the steps before them.

| kind | what is taken over |
|---|---|
| first_block | all blocks but the first, while its change stays under `threshold` (ParaAttention's first-block cache) |
| mag | all blocks, while the drift that `ratios` predict stays under `threshold` (MagCache, arXiv 2506.09045) |
| taylorseer | all blocks, but at every `interval`th step; the output goes on in a line (arXiv 2503.06923) |
| pyramid | attention, but at every `interval`th step (arXiv 2408.12588); without guidance only |
| cache_dit | all blocks but the first, by the package of that name, while its change stays under `threshold` |

The first four are diffusers' hooks. What a cache keeps belongs to one clip and to one side of guidance: the sampler
empties it before a clip and names the side of every call, as diffusers' own pipelines do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Protocol, Self

import diffusers
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

Kind = Literal["first_block", "mag", "taylorseer", "pyramid", "cache_dit"]
BY_INTERVAL = ("taylorseer", "pyramid")
WARM_UP = 4
"""Steps that 'taylorseer' and 'cache_dit' compute in full before they begin."""


class BlockCacheConfig(BaseModel):
    """Which cache, and how bold."""

    model_config = ConfigDict(extra="forbid")
    kind: Kind = Field(description="The method; see the table above.")
    threshold: float | None = Field(default=None, ge=0, description="Change that still counts as none; 0 never skips.")
    interval: int | None = Field(default=None, ge=2, description="Every so many steps are computed.")
    ratios: tuple[float, ...] = Field(default=(), description="Of 'mag': how the blocks' magnitude changes by step.")

    @model_validator(mode="after")
    def _each_kind_has_its_number(self) -> Self:
        wanted, other = ("interval", "threshold") if self.kind in BY_INTERVAL else ("threshold", "interval")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise ValueError(f"a cache of kind {self.kind} has `{wanted}`, and no `{other}`")
        return self


class Cache(Protocol):
    """What the sampler needs to know of a cache."""

    def clear(self) -> None:
        """Forget everything: another clip begins."""

    def branch(self, name: str) -> Any:
        """Context of the calls that belong to one side of guidance, "cond" or "uncond"."""


class BlockCache:
    """A block cache on every network of a model, until `remove`."""

    def __init__(self, networks: Sequence[Any], config: BlockCacheConfig, steps: int, guided: bool) -> None:
        """Attach the hooks.

        Args:
            networks: diffusers' transformers.
            config: which cache.
            steps: of the sampler.
            guided: whether each step calls the network twice, conditional and unconditional.
        """
        self.networks, self.config, self.steps = list(networks), config, steps
        self._timestep = 0.0
        self._handles = []
        for network in self.networks:
            if config.kind == "cache_dit":
                _cache_dit(network, config, steps, guided)
            else:
                network.enable_cache(self._diffusers_config(network.dtype))
        if config.kind == "pyramid":
            self._handles = [
                network.register_forward_pre_hook(self._note_timestep, with_kwargs=True) for network in self.networks
            ]

    def clear(self) -> None:
        """See `Cache`."""
        for network in self.networks:
            if self.config.kind == "cache_dit":
                import cache_dit  # pyright: ignore[reportMissingImports]

                cache_dit.refresh_context(network, num_inference_steps=self.steps)
            else:
                network._reset_stateful_cache()

    @contextmanager
    def branch(self, name: str) -> Iterator[None]:
        """See `Cache`; cache-dit tells the two sides apart by counting calls."""
        with ExitStack() as stack:
            if self.config.kind != "cache_dit":
                for network in self.networks:
                    stack.enter_context(network.cache_context(name))
            yield

    def remove(self) -> None:
        """Leave the networks as they were."""
        for handle in self._handles:
            handle.remove()
        for network in self.networks:
            if self.config.kind == "cache_dit":
                import cache_dit  # pyright: ignore[reportMissingImports]

                cache_dit.disable_cache(network)
            else:
                network.disable_cache()

    def _diffusers_config(self, dtype: torch.dtype) -> Any:
        config = self.config
        if config.kind == "first_block":
            return diffusers.FirstBlockCacheConfig(threshold=config.threshold or 0.0)
        if config.kind == "mag":
            return diffusers.MagCacheConfig(
                threshold=config.threshold or 0.0, num_inference_steps=self.steps, mag_ratios=list(config.ratios)
            )
        interval = config.interval or 2
        if config.kind == "taylorseer":  # diffusers' patterns for attention do not match Wan's names; lite mode does
            return diffusers.TaylorSeerCacheConfig(
                cache_interval=interval,
                disable_cache_before_step=WARM_UP,
                taylor_factors_dtype=dtype,
                use_lite_mode=True,
            )
        return diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=interval,
            cross_attention_block_skip_range=interval,
            current_timestep_callback=lambda: self._timestep,  # pyright: ignore[reportArgumentType]
        )

    def _note_timestep(self, network: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._timestep = float(named["timestep"].flatten()[0])


class Magnitudes:
    """What 'mag' must know of a model: how much the blocks add to a token at a step, relative to the step before.

    Stands in the place of the cache while a clip is sampled; it changes nothing.
    """

    def __init__(self, network: Any) -> None:
        self.ratios: list[float] = []
        self._name = ""
        self._entered: Tensor | None = None
        self._before: Tensor | None = None
        self._handles = [
            network.blocks[0].register_forward_pre_hook(self._enter),
            network.blocks[-1].register_forward_hook(self._leave),
        ]

    def clear(self) -> None:
        """See `Cache`."""
        self.ratios, self._before = [], None

    @contextmanager
    def branch(self, name: str) -> Iterator[None]:
        """See `Cache`; the conditional side speaks for both, as diffusers has one list for both."""
        self._name = name
        yield

    def remove(self) -> None:
        """Leave the network as it was."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, block: Any, inputs: tuple[Tensor, ...]) -> None:
        self._entered = inputs[0]

    def _leave(self, block: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._name != "cond" or self._entered is None:
            return
        size = (output - self._entered).float().norm(dim=-1)
        self.ratios.append(1.0 if self._before is None else float((size / (self._before + 1e-8)).mean()))
        self._before = size


def _cache_dit(network: Any, config: BlockCacheConfig, steps: int, guided: bool) -> None:
    import cache_dit  # pyright: ignore[reportMissingImports]

    cache_dit.enable_cache(
        network,
        cache_config=cache_dit.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            residual_diff_threshold=config.threshold or 0.0,
            max_warmup_steps=WARM_UP,
            enable_separate_cfg=guided,
            num_inference_steps=steps,
        ),
    )
