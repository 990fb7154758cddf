"""Random Wan pipelines of a few thousand weights in the real on-disk layout: the same classes, files and configs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

from reelign.miniature.build import build_tokenizer
from reelign.models.base import VideoModel

Kind = Literal["2.1", "2.2-a14b", "2.2-5b"]
KINDS: tuple[Kind, ...] = ("2.1", "2.2-a14b", "2.2-5b")
TEXT_WIDTH = 32


def tiny_wan(folder: Path, kind: Kind = "2.1", solver: str = "unipc", shift: float = 3.0) -> Path:
    """Write a random pipeline of the layout of Wan `kind`; the same weights at every call."""
    torch.manual_seed(0)
    channels = 48 if kind == "2.2-5b" else 16
    tokenizer = build_tokenizer()
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    if solver == "unipc":
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
        )
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    parts = {"transformer": _denoiser(channels)}
    if kind == "2.2-a14b":
        parts |= {"transformer_2": _denoiser(channels), "boundary_ratio": 0.875}
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=_autoencoder(kind, channels),
        scheduler=scheduler,
        expand_timesteps=kind == "2.2-5b",
        **parts,
    )
    pipeline.save_pretrained(folder)
    return folder


def stir(model: VideoModel) -> None:
    """Let fresh adapters do something: B, which begins at zero, becomes random."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for network in model.denoisers().values():
            for name, parameter in network.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def _denoiser(channels: int) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=channels,
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def _autoencoder(kind: Kind, channels: int) -> AutoencoderKLWan:
    statistics = {"latents_mean": [0.1] * channels, "latents_std": [1.5] * channels}
    if kind != "2.2-5b":
        return AutoencoderKLWan(base_dim=8, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **statistics)
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        scale_factor_spatial=16,
        **statistics,
    )
