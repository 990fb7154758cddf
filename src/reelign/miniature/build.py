"""The parts of the miniature's pipeline at their shipped sizes: stock diffusers and transformers classes."""

from __future__ import annotations

from typing import Any

from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from reelign.miniature.captions import vocabulary

TEXT_WIDTH, TEXT_LENGTH = 96, 20
FLOW_SHIFT = 3.0
GUIDANCE_SCALE = 2.0
"""Of deployment. From 3 on, guidance hides what careless captions did to the base."""


def word_tokenizer(*marks: str) -> Tokenizer:
    """One token a word of the world, lower case; `marks` are further tokens, and what is none of these is `<unk>`."""
    words = ["<pad>", "</s>", "<unk>", *marks, *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, lower case; words outside the world become `<unk>`."""
    tokenizer = word_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_text_encoder() -> UMT5EncoderModel:
    """Two layers; trained together with the denoiser."""
    config = UMT5Config(
        vocab_size=len(vocabulary()) + 3,
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=3,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config)


def build_denoiser() -> WanTransformer3DModel:
    """Four blocks of width 128; Xavier matrices and a zero output projection, which train from scratch."""
    denoiser = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=512,
        num_layers=4,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )
    for module in denoiser.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.zeros_(denoiser.proj_out.weight)
    return denoiser


def make_pipeline(denoiser: Any, text_encoder: Any, codec: Any) -> WanPipeline:
    """The parts as one ordinary `WanPipeline` with Wan's scheduler."""
    scheduler: Any = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=FLOW_SHIFT
    )
    tokenizer: Any = build_tokenizer()
    return WanPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, transformer=denoiser, vae=codec, scheduler=scheduler
    )
