"""A Qwen2-VL folder of a few kilobytes, as its small files are on the hub, and a network that nobody may use."""

import json
import socket
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import Qwen2Tokenizer

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
