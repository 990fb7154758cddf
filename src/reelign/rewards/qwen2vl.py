"""Qwen2-VL as a judge: a head on its last hidden states, read where reward tokens stand in the text.

What HPSv3 and VideoReward share. Of a Qwen2-VL folder only `config.json` and the tokenizer are read; the weights come
from the reward. Pictures are resized and cut into patches here too, because transformers' own video processor needs
torchvision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLModel

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.rewards.base import RewardError


class TokenJudge:
    """Qwen2-VL whose last hidden states go through a head where reward tokens stand in the text.

    The text around the pictures is Qwen2-VL's chat template; padding is on the right; a picture is what the tower sees
    of one image or of one video. Nothing here draws random numbers or reaches the network.
    """

    def __init__(
        self,
        base: Path,
        weights: Mapping[str, Tensor],
        head: Any,
        tokens: Sequence[str],
        dtype: str,
        device: torch.device | str | None,
    ) -> None:
        """Build the model of `base` around `weights`.

        Args:
            base: folder with `config.json` and the tokenizer of a Qwen2-VL.
            weights: named as transformers 4.45 or as 5 names them, the head as `rm_head.*`; `lm_head` is not used.
            head: hidden width -> module.
            tokens: reward tokens, in the order in which they were added to the vocabulary.
            dtype: of all but the head.
            device: by default the CUDA device when there is one.

        Raises:
            ReelignError: see `HPSv3`.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer = tokenizer_of(base)
        self.tokenizer.add_tokens(list(tokens), special_tokens=True)
        self._tokens = torch.tensor(self.tokenizer.convert_tokens_to_ids(list(tokens)), device=self.device)
        config: Any = _config(base)
        config.text_config.vocab_size = len(self.tokenizer)
        with init_empty_weights():
            self._model: Any = Qwen2VLModel(config)
            self._model.rm_head = head(config.text_config.hidden_size)
        named = {_current_name(name): value for name, value in weights.items()}
        named.pop("lm_head.weight", None)
        self._fill(named, getattr(torch, dtype), base)
        self._model.requires_grad_(False).eval().to(self.device)

    def _fill(self, weights: Mapping[str, Tensor], dtype: torch.dtype, base: Path) -> None:
        """Give every parameter its weight; a name or a shape without its partner is an error."""
        expected = {name: tuple(value.shape) for name, value in self._model.state_dict().items()}
        given = {name: tuple(value.shape) for name, value in weights.items()}
        for what, names in (
            ("lack", expected.keys() - given.keys()),
            ("hold the unknown", given.keys() - expected.keys()),
            ("hold another shape of", {name for name in expected if given.get(name) != expected[name]}),
        ):
            if names:
                first = min(names)
                both = first in expected and first in given
                shapes = f" {given[first]}, where the model has {expected[first]}" if both else ""
                raise ReelignError(
                    f"the reward weights {what} {first}{shapes} (and {len(names) - 1} more). They do not belong to the "
                    f"Qwen2-VL whose config and tokenizer are in {base}: is it the right size, and are all files whole?"
                )
        head = {name for name in weights if name.startswith("rm_head.")}
        filled = {name: value.to(torch.float32 if name in head else dtype) for name, value in weights.items()}
        self._model.load_state_dict(filled, assign=True)

    def refuse_own_words(self, reward: str, clips: Sequence[Clip]) -> None:
        """Raise a `RewardError` for prompts with words that mean something to the model, such as <|im_end|>."""
        words = self.tokenizer.get_added_vocab()
        if bad := [clip.id for clip in clips if any(word in clip.prompt for word in words)]:
            raise RewardError(reward, bad, "the prompt holds one of the model's own words (<|...|>); take it out.")

    @torch.no_grad()
    def __call__(self, looks: Sequence[Tensor], texts: Sequence[str], kind: Literal["image", "video"]) -> Tensor:
        """Look and read.

        Args:
            looks: for each text one picture, float (T, 3, H, W) in 0..255, T = 1 for an image.
            texts: what the user says after the picture; holds each reward token once.
            kind: which of the model's two picture tokens stands for it.

        Returns:
            What the head says, float32 (B, tokens, outputs) on the CPU.
        """
        vision = self._model.config.vision_config
        patches, grids = zip(*(patchify(look, vision) for look in looks), strict=True)
        cells = [math.prod(grid) // vision.spatial_merge_size**2 for grid in grids]
        words = self.tokenizer(
            [chat(placeholders(kind, count), text) for text, count in zip(texts, cells, strict=True)],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(self.device)
        ids = words.input_ids
        hidden = self._model(
            input_ids=ids,
            attention_mask=words.attention_mask,
            position_ids=torch.arange(ids.shape[1], device=self.device).expand_as(ids),
            use_cache=False,
            **{
                "pixel_values" if kind == "image" else "pixel_values_videos": torch.cat(patches).to(self.device),
                f"{kind}_grid_thw": torch.tensor(grids, device=self.device),
            },
        ).last_hidden_state
        places = (ids[:, None] == self._tokens[:, None]).int().argmax(2)
        read = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2]))
        return self._model.rm_head(read.float()).cpu()


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
"""What Qwen2-VL and Qwen2.5-VL read first where nothing else is said."""


def chat(picture: str, text: str, system: str = SYSTEM) -> str:
    """One user's turn, a picture and then words, and the opening of the answer."""
    return f"{system}<|im_start|>user\n{picture}{text}<|im_end|>\n<|im_start|>assistant\n"


def placeholders(kind: str, cells: int) -> str:
    """The words that stand for the cells of a picture ("image" or "video")."""
    return f"<|vision_start|>{f'<|{kind}_pad|>' * cells}<|vision_end|>"


def _current_name(name: str) -> str:
    """The name inside today's `Qwen2VLModel`: transformers 4.45 had `visual.*` and `model.*`, 5 nests both."""
    name = name.removeprefix("model.")
    inside = name.startswith(("visual.", "language_model.", "rm_head.", "lm_head."))
    return name if inside else f"language_model.{name}"


def _config(base: Path) -> Qwen2VLConfig:
    path = base / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ReelignError(
            f"cannot read {path} ({error}). Give the local folder of the Qwen2-VL that the reward was trained from."
        ) from error
    if found.get("model_type") != "qwen2_vl":
        raise ReelignError(f"{path} describes a {found.get('model_type')!r}; the reward was trained from a 'qwen2_vl'.")
    return Qwen2VLConfig.from_dict(found)


def tokenizer_of(base: Path) -> Any:
    """The tokenizer in a model's folder.

    Raises:
        ReelignError: there is no folder or no tokenizer.
    """
    if not base.is_dir():
        raise ReelignError(f"there is no folder {base}. Give the local folder of the model behind the reward.")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(base), local_files_only=True)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ReelignError(f"cannot load the tokenizer of {base} ({first}). Are its files complete?") from error
    # Without tokenizer.json, transformers makes one that knows no words and says nothing.
    if "<|vision_start|>" not in tokenizer.get_vocab():
        raise ReelignError(f"the tokenizer of {base} does not know <|vision_start|>. Is it a Qwen-VL's, and complete?")
    return tokenizer


def resized(frames: np.ndarray, least: int, most: int, cell: int = 28) -> Tensor:
    """Frames uint8 (T, H, W, 3) as float (T, 3, h, w), whole numbers in 0..255.

    h and w are multiples of `cell` with nearly the old aspect and `least` to `most` pixels where that is possible
    (qwen-vl-utils' rule). Bicubic with antialiasing in 8 bits, within 2 levels of Pillow, which the public code uses.
    """
    height, width = frames.shape[1:3]
    tall, wide = (max(cell, round(side / cell) * cell) for side in (height, width))
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        tall, wide = (max(cell, math.floor(side / shrink / cell) * cell) for side in (height, width))
    elif tall * wide < least:
        grow = math.sqrt(least / (height * width))
        tall, wide = (math.ceil(side * grow / cell) * cell for side in (height, width))
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if (tall, wide) != (height, width):
        pixels = F.interpolate(pixels, (tall, wide), mode="bicubic", antialias=True)
    return pixels.float()


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's statistics of red, green and blue, which Qwen2-VL uses."""


def patchify(
    pixels: Tensor, vision: Any, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> tuple[Tensor, tuple[int, int, int]]:
    """A picture (T, 3, H, W) in 0..255 as rows of normalised patches (N, 3 * t * p * p), with its grid (T / t, H / p,
    W / p), as Qwen2-VL's tower takes them: neighbours that will be merged follow each other. The last frame is repeated
    until T is a multiple of t.
    """
    time, side, merge = vision.temporal_patch_size, vision.patch_size, vision.spatial_merge_size
    pixels = torch.cat([pixels, pixels[-1:].expand(-len(pixels) % time, -1, -1, -1)])
    middle, width = (torch.tensor(value, device=pixels.device).view(3, 1, 1) for value in (mean, std))
    pixels = (pixels / 255 - middle) / width
    grid = (len(pixels) // time, pixels.shape[2] // side, pixels.shape[3] // side)
    split = pixels.view(grid[0], time, 3, grid[1] // merge, merge, side, grid[2] // merge, merge, side)
    return split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(math.prod(grid), -1), grid
