"""Qwen-VL folders of a few kilobytes, as they are on the hub, and a network that nobody may use."""

import json
import socket
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from reelign.rewards.hpsv3 import TEMPLATE

QWEN_WORDS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN = {  # flat, as the config.json of Qwen2-VL on the hub
    "model_type": "qwen2_vl",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "vision_config": {
        "depth": 1,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 2,
        "mlp_ratio": 2,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
QWEN_2_5 = QWEN | {
    "model_type": "qwen2_5_vl",
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    },
}
QWEN_3 = {  # nested, as the config.json of Qwen3-VL on the hub
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "vision_config": {
        "model_type": "qwen3_vl",
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    },
}
WHOLE = {
    "qwen2_vl": (QWEN, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (QWEN_2_5, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (QWEN_3, Qwen3VLForConditionalGeneration),
}


def tiny_whole(folder: Path, kind: str) -> Path:
    """A random model of a kind with all its files: config, tokenizer, and weights in shards with an index.

    Weights are thrice as large as usual, so that what goes in is seen in what comes out.
    """
    folder.mkdir(exist_ok=True)
    tiny_base(folder)
    config, model = WHOLE[kind]
    small = json.loads((folder / "config.json").read_text())
    ids = {name: value for name, value in small.items() if name.endswith("_token_id")}
    room = {"vocab_size": small["vocab_size"]}
    whole = config | ids | ({"text_config": config["text_config"] | room} if "text_config" in config else room)
    (folder / "config.json").write_text(json.dumps(whole))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = model(AutoConfig.from_pretrained(folder))
    for value in network.parameters():
        value.data.mul_(3 if value.dim() > 1 else 1)
    network.save_pretrained(folder, max_shard_size="150KB")
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def tiny_base(folder: Path) -> Path:
    """The small files of a Qwen2-VL: config.json and a byte-level BPE tokenizer with Qwen's own words."""
    letters = ByteLevelBPETokenizer()
    letters.train_from_iterator([TEMPLATE], vocab_size=900, show_progress=False)
    table = json.loads(letters._tokenizer.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=table["vocab"], merges=[tuple(pair) for pair in table["merges"]])
    tokenizer.add_tokens(QWEN_WORDS, special_tokens=True)
    tokenizer.save_pretrained(folder)
    ids = {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video")}
    room = len(tokenizer) + 40  # as Qwen: more rows than words
    (folder / "config.json").write_text(json.dumps(QWEN | ids | {"vocab_size": room}))
    return folder


def old_name(name: str) -> str:
    """The name that transformers 4.45 gave a weight of today's Qwen2VLModel."""
    return name.replace("language_model.", "model.", 1) if name.startswith("language_model.") else name


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection in a test of this file fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("a reward reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
