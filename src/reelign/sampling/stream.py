"""Chunk-by-chunk generation: a causal model makes a video block after block, and its frames come as they are made.

    noise of a block -> few steps (`next_block`) -> latents, remembered in the KV cache -> frames (`StreamDecoder`)

What goes from block to block, the KV cache of a window and what the decoder keeps, has one size however long the stream
is. The first clip's length of a stream is, frame by frame, the clip that `reelign generate` gives for the same prompt,
seed and sampler: noise is drawn for one native clip after the other and dealt out in blocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from reelign.errors import ReelignError
from reelign.models.base import Conditions, VideoModel
from reelign.models.kv_cache import KVCache, TextCache
from reelign.sampling.noise import initial_noise
from reelign.sampling.sample import SampleConfig, as_remembered, memory_level, next_block, own_sampler, remembered


@dataclass(frozen=True)
class Chunk:
    """Frames of one block.

    Attributes:
        frames: uint8 RGB (t, H, W, 3).
        first: index of the first of them in the stream.
        prompt: what they were asked to show.
        seconds: since the first block was asked for, waiting of whoever takes the chunks included.
        work: seconds that went into this chunk.
    """

    frames: np.ndarray
    first: int
    prompt: str
    seconds: float
    work: float


class Stream(Iterator[Chunk]):
    """An iterator over the chunks of a video; one block is made each time it is asked.

    Attributes:
        height, width: sides of the frames, pixels.
        fps: frames per second at which they are meant to be seen.
        limit: frames that it will have; None without an end.
        made: frames so far.
        prompt: what the next block will show; see `switch`.
        cache: keys and values of the past.
    """

    def __init__(
        self,
        model: VideoModel,
        prompt: str,
        seed: int = 0,
        sampler: SampleConfig | None = None,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        refresh: bool = False,
    ) -> None:
        """Nothing is computed yet.

        Args:
            model: a causal model.
            prompt: what the video shows; its words are part of the key of the noise, also after a switch.
            seed: the same seed and prompts give the same video.
            sampler: by default the model's own.
            frames: how many; None for a stream without an end.
            height, width: pixels; by default the model's.
            refresh: at a switch, compute keys and values of the past again under the new prompt (arXiv 2509.22622):
                the new prompt shows sooner, for one network evaluation a remembered block.

        Raises:
            ReelignError: the model is not causal, the sampler is guided, the size does not fit, or a stream without an
                end would keep all its past.
        """
        if model.causal is None:
            raise ReelignError(
                f"{model.name} is not causal: it makes whole clips only. A recipe with a `distill` stage that has "
                "`causal` makes a model that streams."
            )
        if frames is not None and frames < 1:
            raise ReelignError(f"a stream has at least one frame, not {frames}.")
        if frames is None and model.causal.config.window is None:
            raise ReelignError(
                f"{model.name} remembers all its past, so a stream without an end fills the memory: give it a window "
                "(--window), or the stream a length (--seconds or --frames)."
            )
        size = model.native_size
        self.height, self.width, self.fps = height or size.height, width or size.width, size.fps
        self.sampler = sampler or own_sampler(model) or SampleConfig(shift=model.scheduler_shift, guidance_scale=1.0)
        if self.sampler.guidance_scale != 1:
            raise ReelignError(f"{model.name} streams without guidance: guidance_scale=1.")
        self.limit = frames
        self._model, self._causal, self._refresh = model, model.causal, refresh
        self._noise = _Noise((seed, prompt), model.latent_shape(size.frames, self.height, self.width))
        self._decoder = model.decoder()
        self.prompt, self.cache, self.made = prompt, KVCache(), 0
        self._spoken: str | None = None
        self._conditions: Conditions = {}
        self._text = TextCache()
        self._past: dict[int, Tensor] = {}
        self._began: float | None = None

    def switch(self, prompt: str) -> None:
        """Ask for something else from the next block on; the past stays. May be called from another thread."""
        self.prompt = prompt

    @property
    def nbytes(self) -> int:
        """Memory that goes from block to block: keys and values of past and prompt, and what the decoder keeps."""
        text = sum(part.nbytes for layer in self._text.values() for part in layer)
        return self.cache.nbytes + text + self._decoder.nbytes

    def __next__(self) -> Chunk:
        """The next block. The first call reads the prompt, and its time is that to the first frame."""
        if self.limit is not None and self.made >= self.limit:
            raise StopIteration
        began = time.perf_counter()
        self._began = began if self._began is None else self._began
        self._listen()
        block, stride = self._causal.config.block, self._model.frame_stride
        coming = block * stride - (stride - 1) * (self.made == 0)
        last = self.limit is not None and self.made + coming >= self.limit
        noise = self._noise.take(block).to(self._model.device)
        found = next_block(self._model, self._conditions, noise, self.sampler, self.cache, self._text, last)
        self._remember(found.latents, noise, found.cache)
        frames = self._decoder(found.latents)[0].cpu().numpy()
        if self.limit is not None:
            frames = frames[: self.limit - self.made]
        first, now = self.made, time.perf_counter()
        self.made += len(frames)
        assert self._spoken is not None
        return Chunk(frames, first, self._spoken, now - self._began, now - began)

    def _listen(self) -> None:
        """Read the prompt when it is another one than before."""
        prompt = self.prompt
        if prompt == self._spoken:
            return
        self._conditions, self._text = self._model.encode_text([prompt]), TextCache()
        if self._refresh and self._spoken is not None:
            self.cache = self._remembered_again()
        self._spoken = prompt

    def _remember(self, latents: Tensor, noise: Tensor, cache: KVCache) -> None:
        if self._refresh:
            block = self._causal.config.block
            self._past[self.cache.end] = as_remembered(self._causal.config, self.sampler, latents, noise)
            in_sight = {frame // block * block for frame in cache.frames}
            self._past = {first: kept for first, kept in self._past.items() if first in in_sight}
        self.cache = cache

    def _remembered_again(self) -> KVCache:
        """The cache of the same past, as the prompt of now sees it."""
        cache, level = KVCache(), memory_level(self._causal.config, self.sampler)
        for first, latents in self._past.items():
            cache = remembered(self._model, self._conditions, latents, replace(cache, end=first), self._text, level)
        return cache.joined()


class _Noise:
    """Noise of a stream: whole native clips of it, (seed, prompt, number of the clip), dealt out in blocks."""

    def __init__(self, key: tuple[int, str], shape: tuple[int, int, int, int]) -> None:
        self.key, self.shape = key, shape
        self.clips = 0
        self.left: Tensor | None = None

    def take(self, frames: int) -> Tensor:
        """(1, C, frames, h, w)."""
        while self.left is None or self.left.shape[2] < frames:
            fresh = initial_noise([(*self.key, self.clips)], self.shape)
            self.left = fresh if self.left is None else torch.cat([self.left, fresh], 2)
            self.clips += 1
        taken, self.left = self.left[:, :, :frames], self.left[:, :, frames:]
        return taken
