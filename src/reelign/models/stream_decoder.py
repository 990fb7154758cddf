"""Decode a video whose latents come block after block; the frames are those of decoding the whole.

Wan's decoder and the miniature's are causal in time: a frame depends on what came before it. What it needs of that, the
last two frames before each convolution over time, is kept from call to call, so the memory of a stream does not grow
with its length. Nothing is kept in the autoencoder itself: several streams may take turns on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import Tensor

from reelign.errors import ReelignError
from reelign.models.codec import BlockCodec, Past

Change = Callable[[Tensor], Tensor]


class StreamDecoder:
    """The decoder of one stream; calls follow one another in time."""

    def __init__(self, autoencoder: Any, to_autoencoder: Change, to_frames: Change) -> None:
        """A decoder that has seen nothing yet.

        Args:
            autoencoder: an `AutoencoderKLWan` or a `BlockCodec`.
            to_autoencoder: normalised latents to what the autoencoder decodes.
            to_frames: what it gives, (B, 3, t, H, W) in about [-1, 1], to frames uint8 (B, t, H, W, 3).

        Raises:
            ReelignError: the autoencoder decodes in tiles, one after the other through the whole clip.
        """
        if getattr(autoencoder, "use_tiling", False):
            raise ReelignError("a stream is decoded without tiles: disable the tiling of the autoencoder.")
        self._to_autoencoder, self._to_frames = to_autoencoder, to_frames
        self._decode = _Wan(autoencoder) if isinstance(autoencoder, AutoencoderKLWan) else _Codec(autoencoder)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, f, h, w) that follow those of the call before, to frames uint8 (B, t, H, W, 3).

        `t` is `frame_stride * f`; the first latent frame of a stream gives one frame.
        """
        return self._to_frames(self._decode(self._to_autoencoder(latents)))

    @property
    def nbytes(self) -> int:
        """Memory of what is kept between calls."""
        return sum(part.nbytes for part in self._decode.kept())


class _Wan:
    """`AutoencoderKLWan._decode` with feature caches of our own, one for each row, as its slices are decoded."""

    def __init__(self, autoencoder: AutoencoderKLWan) -> None:
        self.autoencoder = autoencoder
        self.patch_size: int = dict(autoencoder.config)["patch_size"] or 1
        self.convolutions = sum(isinstance(part, WanCausalConv3d) for part in autoencoder.decoder.modules())
        self.rows: list[list[Any]] = []

    def __call__(self, latents: Tensor) -> Tensor:
        first = not self.rows
        if first:
            self.rows = [[None] * self.convolutions for _ in latents]
        pairs = zip(latents.split(1), self.rows, strict=True)
        return torch.cat([self._row(row, past, first) for row, past in pairs])

    def _row(self, latents: Tensor, past: list[Any], first: bool) -> Tensor:
        ready = self.autoencoder.post_quant_conv(latents)
        parts = [
            self.autoencoder.decoder(
                ready[:, :, k : k + 1], feat_cache=past, feat_idx=[0], first_chunk=first and k == 0
            )
            for k in range(latents.shape[2])
        ]
        return unpatchify(torch.cat(parts, 2), self.patch_size).clamp(-1, 1)

    def kept(self) -> list[Tensor]:
        return [part for past in self.rows for part in past if isinstance(part, Tensor)]


class _Codec:
    def __init__(self, autoencoder: BlockCodec) -> None:
        self.autoencoder = autoencoder
        self.past: Past = {}

    def __call__(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode_further(latents, self.past)

    def kept(self) -> list[Tensor]:
        return list(self.past.values())
