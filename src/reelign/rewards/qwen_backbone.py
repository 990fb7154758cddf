"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL as backbones: their folders, and how each of them is shown a clip.

The three take patches of two frames each and differ in how they are told of time:

    Qwen2-VL     all pairs stand between one vision_start and vision_end, and a pair is one step of the rotary
                 embedding (arXiv 2409.12191). The frame rate shows only in which frames are taken.
    Qwen2.5-VL   as Qwen2-VL, but a step is a fixed part of a second (arXiv 2502.13923).
    Qwen3-VL     each pair has its own vision_start and vision_end, and its time in words before them:
                 "<0.3 seconds>" (arXiv 2511.21631).

Words and pixels follow transformers' processors, which are not used themselves: those of video need torchvision. One
thing is done as transformers 4.57 did, with which Qwen3-VL came, and not as today's does: the placeholder of a whole
video is replaced together with its vision_start and vision_end, which would otherwise stand around all pairs twice.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Qwen2_5_VLModel, Qwen2VLModel, Qwen3VLModel

from reelign.errors import ReelignError
from reelign.rewards.qwen2vl import MEAN, STD, SYSTEM, chat, placeholders


@dataclass(frozen=True)
class Family:
    """What tells one kind of Qwen-VL from another.

    Attributes:
        model: its class in transformers, without a head.
        system: what it reads first.
        mean, std: of red, green and blue, taken off the pixels.
        timestamps: whether the time of each pair of frames stands in the text.
        real_time: whether it is handed the seconds between pairs of frames.
    """

    model: Any
    system: str = SYSTEM
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    timestamps: bool = False
    real_time: bool = False

    def conversation(self, text: str, chosen: np.ndarray, fps: float, grid: tuple[int, int, int], vision: Any) -> str:
        """What the model reads of a clip: the placeholders of its cells, and `text`.

        Args:
            text: what the user says after the video.
            chosen: places of the shown frames in the clip.
            fps: frames a second of the clip.
            grid: of its patches: pairs of frames, rows, columns.
            vision: config of the vision tower.
        """
        cells = math.prod(grid) // vision.spatial_merge_size**2
        if not self.timestamps:
            return chat(placeholders("video", cells), text, self.system)
        each = placeholders("video", cells // grid[0])
        together = vision.temporal_patch_size
        seconds = [float(at) / fps for at in chosen]
        seconds += seconds[-1:] * (-len(seconds) % together)
        middles = [(seconds[at] + seconds[at + together - 1]) / 2 for at in range(0, len(seconds), together)]
        return chat("".join(f"<{middle:.1f} seconds>{each}" for middle in middles), text, self.system)


FAMILIES = {
    "qwen2_vl": Family(Qwen2VLModel),
    "qwen2_5_vl": Family(Qwen2_5_VLModel, real_time=True),
    "qwen3_vl": Family(Qwen3VLModel, system="", mean=(0.5,) * 3, std=(0.5,) * 3, timestamps=True),
}
"""By the model_type of config.json."""


def family_of(base: Path) -> Family:
    """Which Qwen-VL lies in a folder.

    Raises:
        ReelignError: none of them.
    """
    path = base / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReelignError(
            f"cannot read {path} ({error}). Give the local folder of a vision-language model: config.json, tokenizer "
            "and *.safetensors."
        ) from error
    kind = found.get("model_type") if isinstance(found, dict) else None
    if kind not in FAMILIES:
        raise ReelignError(f"{path} describes a {kind!r}; a reward can be fitted on {', '.join(FAMILIES)}.")
    return FAMILIES[kind]


def load_backbone(base: Path, dtype: str) -> Any:
    """The model in a folder, without its head for words, on the CPU.

    Raises:
        ReelignError: weights are missing or damaged, or do not fit config.json.
    """
    try:
        model, report = family_of(base).model.from_pretrained(
            base, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ReelignError(f"cannot load the model in {base} ({first}). Are its files complete?") from error
    if report["missing_keys"]:
        lacking = sorted(report["missing_keys"])
        raise ReelignError(f"the weights in {base} lack {lacking[0]} (and {len(lacking) - 1} more). Copy them again.")
    return model


def fingerprint(model: nn.Module) -> str:
    """Tells apart models of one architecture: a digest of 64 values of every weight."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().flatten()
        some = flat[:: max(1, len(flat) // 64)][:64].contiguous()
        digest.update(name.encode() + some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
