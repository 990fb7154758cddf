"""The miniature's autoencoder: a small causal codec on blocks of 4 frames x 4 x 4 pixels.

A linear map (initialised as the principal components of the blocks) plus a residual network of factorised causal
convolutions on each side. All work happens at the latent resolution, which makes decoding cheaper than one step of the
denoiser. It has the interface of diffusers' `AutoencoderKLWan`: 1 + 4k frames in, 1 + k latent frames out, 4 x smaller
sides. Why not `AutoencoderKLWan` itself: docs/results/codec.md has the measurements.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

TIME, SPACE = 4, 4
Past = dict[nn.Module, Tensor]
"""Of each block of the network, the last two latent frames before its convolution over time."""


class BlockCodec(ModelMixin, ConfigMixin):
    """Encode (B, 3, 1 + 4k, H, W) in [-1, 1] to (B, z_dim, 1 + k, H / 4, W / 4) and back."""

    @register_to_config
    def __init__(
        self,
        z_dim: int = 16,
        width: int = 96,
        depth: int = 3,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        scale_factor_temporal: int = TIME,
        scale_factor_spatial: int = SPACE,
    ) -> None:
        super().__init__()
        pixels = 3 * TIME * SPACE * SPACE
        self.analysis = nn.Conv3d(pixels, z_dim, 1)
        self.encoder = _Network(pixels, width, z_dim, depth)
        self.synthesis = nn.Conv3d(z_dim, pixels, 1)
        self.decoder = _Network(z_dim, width, pixels, depth)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The (deterministic) latent distribution of a video (B, 3, 1 + 4k, H, W) in [-1, 1]."""
        blocks = to_blocks(x)
        mean = self.analysis(blocks) + self.encoder(blocks)
        moments = torch.cat([mean, torch.full_like(mean, -30.0)], dim=1)
        posterior = DiagonalGaussianDistribution(moments, deterministic=True)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """The video of a latent (B, z_dim, 1 + k, h, w): (B, 3, 1 + 4k, 4h, 4w), about [-1, 1]."""
        sample = from_blocks(self.synthesis(z) + self.decoder(z))
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def decode_further(self, z: Tensor, past: Past) -> Tensor:
        """The frames of latents (B, z_dim, f, h, w) that follow the ones decoded with the same `past`, which is empty
        before the first and is brought up to date: (B, 3, 4f, 4h, 4w), and three frames fewer at the first call."""
        first = not past
        return from_blocks(self.synthesis(z) + self.decoder(z, past), first)


def to_blocks(video: Tensor) -> Tensor:
    """(B, 3, 1 + 4k, H, W) to (B, 192, 1 + k, H / 4, W / 4); the first frame fills a block of its own."""
    video = torch.cat([video[:, :, :1].expand(-1, -1, TIME - 1, -1, -1), video], dim=2)
    b, c, t, h, w = video.shape
    blocks = video.reshape(b, c, t // TIME, TIME, h // SPACE, SPACE, w // SPACE, SPACE)
    return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, -1, t // TIME, h // SPACE, w // SPACE)


def from_blocks(blocks: Tensor, first: bool = True) -> Tensor:
    """Inverse of `to_blocks`; of the first block of a video only the last frame is kept."""
    b, _, f, h, w = blocks.shape
    video = blocks.reshape(b, 3, TIME, SPACE, SPACE, f, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return video.reshape(b, 3, f * TIME, h * SPACE, w * SPACE)[:, :, (TIME - 1) * first :]


class _Network(nn.Module):
    """Residual causal network whose output starts at zero."""

    def __init__(self, inputs: int, width: int, outputs: int, depth: int) -> None:
        super().__init__()
        self.entry = nn.Conv3d(inputs, width, 1)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.exit = nn.Conv3d(width, outputs, 1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias if self.exit.bias is not None else self.exit.weight)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        h = self.entry(x)
        for block in self.blocks:
            h = h + block(h, past)
        return self.exit(functional.silu(h))


class _Block(nn.Module):
    """A 3 x 3 convolution in space, then a causal convolution over three latent frames."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.space = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(width, width, (3, 1, 1))

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        h = functional.silu(self.space(functional.silu(x)))
        before = None if past is None else past.get(self)
        h = functional.pad(h, (0, 0, 0, 0, 2, 0)) if before is None else torch.cat([before, h], 2)
        if past is not None:
            past[self] = h[:, :, -2:].clone()
        return self.time(h)
