"""Wan through diffusers' `WanPipeline`: 2.1 T2V, 2.2 A14B (two experts) and 2.2 TI2V-5B (a timestep for each token)."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from safetensors import SafetensorError
from torch import Tensor, nn

from reelign.errors import ReelignError
from reelign.models.base import Conditions, NativeSize, VideoModel, write_card
from reelign.models.causal import CausalAttention
from reelign.models.kv_cache import CausalConfig
from reelign.models.stream_decoder import StreamDecoder

TEXT_LENGTH = 512
"""Tokens that Wan was trained with; a tokenizer may ask for fewer."""
WAN_480P = NativeSize(81, 480, 832, 16.0)
WAN_5B = NativeSize(121, 704, 1280, 24.0)


class WanModel(VideoModel):
    """A `WanPipeline` as a video model; networks are diffusers' own, nothing is forked."""

    def __init__(self, pipeline: WanPipeline, name: str, native_size: NativeSize | None = None) -> None:
        self.pipeline, self.name = pipeline, name
        config = pipeline.config
        self.expand_timesteps = bool(config.get("expand_timesteps"))
        self.boundary: float | None = config.get("boundary_ratio")
        self.native_size = native_size or (WAN_5B if self.expand_timesteps else WAN_480P)
        schedule = pipeline.scheduler.config
        self.scheduler_shift = float(schedule.get("flow_shift") or schedule.get("shift") or 1.0)
        self.compute_dtype: torch.dtype = next(iter(self.denoisers().values())).dtype
        self.text_length = min(TEXT_LENGTH, pipeline.tokenizer.model_max_length)
        pipeline.text_encoder.requires_grad_(False).eval()
        pipeline.vae.requires_grad_(False).eval()
        if isinstance(pipeline.vae, AutoencoderKLWan):
            pipeline.vae.enable_slicing()  # a batch of 81-frame clips at once takes tens of GiB in the decoder
        for network in self.denoisers().values():
            network.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(iter(self.denoisers().values())).device

    @property
    def frame_stride(self) -> int:
        """4 for every Wan autoencoder."""
        return int(self.pipeline.vae_scale_factor_temporal)

    @property
    def side_multiple(self) -> int:
        """The autoencoder's reduction times the patch of the denoiser."""
        return int(self.pipeline.vae_scale_factor_spatial) * self._network_config.patch_size[1]

    @property
    def _network_config(self) -> Any:
        return next(iter(self.denoisers().values())).config

    def denoisers(self) -> dict[str, Any]:
        """`transformer`, and for two experts `transformer_2`, which takes the levels below the boundary."""
        parts = {name: getattr(self.pipeline, name, None) for name in ("transformer", "transformer_2")}
        return {name: network for name, network in parts.items() if network is not None}

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Conditions:
        """As `WanPipeline` encodes: cleaned, padded to the text length, padding zeroed; key "text" (B, L, D)."""
        words = self.pipeline.tokenizer(
            [prompt_clean(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.text_length,
            truncation=True,
            return_tensors="pt",
        )
        encoder = self.pipeline.text_encoder
        mask = words.attention_mask.to(encoder.device)
        text = encoder(words.input_ids.to(encoder.device), mask).last_hidden_state
        return {"text": text * mask[..., None].to(text.dtype)}

    @torch.no_grad()
    def encode_video(self, frames: Tensor) -> Tensor:
        """The mode of the autoencoder's posterior, normalised."""
        vae = self.pipeline.vae
        video = frames.to(vae.device).permute(0, 4, 1, 2, 3).to(vae.dtype) / 127.5 - 1
        latents = vae.encode(video).latent_dist.mode().float()
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Denormalise, decode, clamp, round."""
        return _pixels(self.pipeline.vae.decode(self._denormalised(latents), return_dict=False)[0])

    def decoder(self) -> StreamDecoder:
        """See the base class."""
        return StreamDecoder(self.pipeline.vae, self._denormalised, _pixels)

    def _denormalised(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = latents.to(vae.device).float()
        mean, std = self._statistics(latents)
        return (latents * std + mean).to(vae.dtype)

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        config = self.pipeline.vae.config
        mean, std = (latents.new_tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return mean, std

    def velocity(self, latents: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """One call of the denoiser; with two experts each sample goes to the one that its level belongs to."""
        if self.boundary is None or sigma.ndim == 2:
            return self._call(self.pipeline.transformer, latents, sigma, conditions)
        high = sigma >= self.boundary
        if bool(high.all()):
            return self._call(self.pipeline.transformer, latents, sigma, conditions)
        if not bool(high.any()):
            return self._call(self.pipeline.transformer_2, latents, sigma, conditions)
        velocity = torch.empty_like(latents, dtype=torch.float32)
        for network, rows in ((self.pipeline.transformer, high), (self.pipeline.transformer_2, ~high)):
            chosen = {name: value[rows] for name, value in conditions.items()}
            velocity[rows] = self._call(network, latents[rows], sigma[rows], chosen)
        return velocity

    def _call(self, network: nn.Module, latents: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        timestep = 1000 * sigma
        if self.expand_timesteps or sigma.ndim == 2:
            _, _, frames, height, width = latents.shape
            patch = self._network_config.patch_size
            tokens = (height // patch[1]) * (width // patch[2])
            levels = timestep if sigma.ndim == 2 else timestep[:, None].expand(-1, frames)
            timestep = levels.repeat_interleave(tokens, 1)
        text = conditions["text"]
        return network(
            hidden_states=latents.to(self.compute_dtype),
            timestep=timestep,
            encoder_hidden_states=text.to(self.compute_dtype),
            return_dict=False,
        )[0].float()

    def make_causal(self, config: CausalConfig) -> None:
        """See the base class; with two experts it is not clear whose keys a cache would hold."""
        if self.boundary is not None:
            raise ReelignError(f"{self.name} has two experts, and a causal student has one network.")
        if self.causal is None:
            self.causal = CausalAttention(self.pipeline.transformer, config)
        self.causal.config = config

    def twin(self) -> WanModel:
        """See the base class.

        Raises:
            ReelignError: this model is causal, or carries an adapter.
        """
        if self.causal is not None or any(hasattr(network, "peft_config") for network in self.denoisers().values()):
            raise ReelignError(f"{self.name} is causal or carries an adapter; only a plain model is copied.")
        parts = {**self.pipeline.components, **{name: copy.deepcopy(part) for name, part in self.denoisers().items()}}
        settings = {"boundary_ratio": self.boundary, "expand_timesteps": self.expand_timesteps}
        return WanModel(WanPipeline(**parts, **settings), self.name, self.native_size)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, h, w) of a clip; see the base class."""
        stride, multiple = self.frame_stride, self.side_multiple
        if frames < 1 or (frames - 1) % stride:
            below = max(0, (frames - 1) // stride) * stride + 1
            raise ReelignError(
                f"{frames} frames do not fit the autoencoder of {self.name}, which takes 1 + {stride}k: "
                f"use {below} or {below + stride}."
            )
        for label, side in (("height", height), ("width", width)):
            if side < multiple or side % multiple:
                below = max(multiple, side // multiple * multiple)
                raise ReelignError(
                    f"{label} {side} does not fit {self.name}, whose sides are multiples of {multiple}: "
                    f"use {below} or {below + multiple}."
                )
        scale = int(self.pipeline.vae_scale_factor_spatial)
        return self._network_config.in_channels, (frames - 1) // stride + 1, height // scale, width // scale

    def save(self, folder: Path) -> None:
        """The whole pipeline by its own `save_pretrained`, first under another name."""
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            self.pipeline.save_pretrained(partial)
            write_card(self, partial, {"kind": "full", "native_size": asdict(self.native_size)})
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise ReelignError(f"cannot write the model {folder}: {error}. Free some space and run again.") from error
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)


def _pixels(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) in about [-1, 1] to uint8 (B, T, H, W, 3)."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
