"""HPSv3 on the frames of a clip.

HPSv3 (arXiv 2508.03789; MizzenAI/HPSv3, MIT) sees one image and its prompt and gives (mean, spread) of a preference;
the score is the mean. On a clip it ignores time, so training on it alone drifts to stillness.

What is needed on disk, never downloaded: `HPSv3.safetensors` (all weights, 16.6 GB) and the small files of
Qwen/Qwen2-VL-7B-Instruct (`config.json` and the tokenizer; no weights). Prompt, image size, token and head follow the
public code; its own model class and processor belong to an older transformers and are not used. Two facts of that code
that are easily lost, both read there and neither checked by a run of the 7B weights here: each image is resized to
about 256 x 28 x 28 pixels whatever its size, and the text model counts its positions 0, 1, 2, ... through the image
(the code passes none, and so never uses Qwen2-VL's three-axis positions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.rewards.base import Needs, Range, Reward
from reelign.rewards.qwen2vl import TokenJudge, resized

REWARD_TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28
"""Both the least and the most pixels of an image."""
TEMPLATE = (
    "\nYou are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a "
    "overall score to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the "
    "worst and 10 being the best. \n"
    "\n**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:\n"
    "- **Reasonableness:** The image should not contain any significant biological or logical errors, such as "
    "abnormal body structures or nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to "
    "interpret, with no blurring or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual "
    "elements (e.g., hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme, "
    "composition, atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense "
    "of harmony and balance.\n"
    "- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or "
    "adult material. If such content is present, the image quality and satisfaction score should be the lowest "
    "possible. \n"
    "\n**Text Alignment:**  \n"
    "Assess how well the image matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) "
    "align with the textual description. The subject should match the description in terms of number, "
    "appearance, and behavior.\n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well "
    "the image adheres to this style.\n"
    "- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in the image "
    "logically fit the scenario described in the prompt. The environment should support and enhance the subject "
    "without contradictions.\n"
    "- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, clothing, "
    "accessories, expressions, actions) are faithfully represented in the image. Minor deviations may be "
    "acceptable, but critical attributes should be preserved.\n"
    "- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the "
    "image. The generated content should not introduce elements that conflict with or distort the original "
    "description.\n"
    "Textual prompt - {text_prompt}\n"
    "\n\n\nPlease provide the overall ratings of this image: <|Reward|>\n"
    "\nEND\n"
)
"""What HPSv3 was trained to read, to the last blank (data, from `hpsv3/dataset/data_collator_qwen.py`, MIT)."""


class HPSv3(Reward):
    """Human preference of frames spread evenly over the clip; one dimension, "preference", unbounded."""

    name = "hpsv3"
    dimensions = dict.fromkeys(("preference",), Range())

    def __init__(
        self,
        folder: Path | str,
        base: Path | str,
        frames: int = 8,
        aggregate: Literal["mean", "top30"] = "mean",
        batch: int = 8,
        dtype: str = "bfloat16",
        device: torch.device | str | None = None,
    ) -> None:
        """Load the released weights.

        Args:
            folder: holds `HPSv3.safetensors`.
            base: local folder of Qwen/Qwen2-VL-7B-Instruct; only its config and tokenizer are read.
            frames: how many frames of a clip are looked at, from the first to the last.
            aggregate: "mean" of all frames, or "top30": of the best 30 % of them, rounded up.
            batch: frames in one forward pass.
            dtype: "float32" or "bfloat16", of all but the head, which is float32.
            device: where to compute; by default the CUDA device when there is one.

        Raises:
            ReelignError: a file is missing or damaged, or does not fit the others; an argument is out of range.
        """
        if frames < 1 or batch < 1 or aggregate not in ("mean", "top30"):
            raise ReelignError(
                f"hpsv3: frames {frames}, batch {batch}, aggregate {aggregate!r}: both numbers are 1 or more, and "
                "aggregate is 'mean' or 'top30'."
            )
        path = Path(folder) / "HPSv3.safetensors"
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ReelignError(
                f"hpsv3: cannot read {path} ({error}). Download HPSv3.safetensors of MizzenAI/HPSv3 to that folder."
            ) from error
        self.needs, self.aggregate, self.batch = Needs(frames=frames), aggregate, batch
        self._judge = TokenJudge(Path(base), weights, _head, (REWARD_TOKEN,), dtype, device)

    def score(self, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
        """The mean preference (B,) of each clip's frames under its prompt.

        Raises:
            RewardError: a prompt holds one of the model's own words.
        """
        self._judge.refuse_own_words(self.name, clips)
        looks = [(frame, clip.prompt) for clip in clips for frame in clip.frames]
        found = []
        for start in range(0, len(looks), self.batch):
            part = looks[start : start + self.batch]
            images = [resized(frame[None], PIXELS, PIXELS) for frame, _ in part]
            texts = [TEMPLATE.replace("{text_prompt}", prompt) for _, prompt in part]
            found.append(self._judge(images, texts, "image")[:, 0, 0])
        scores = torch.cat(found).view(len(clips), -1)
        kept = scores.shape[1] if self.aggregate == "mean" else math.ceil(scores.shape[1] * 3 / 10)
        return {"preference": scores.topk(kept, dim=1).values.mean(1).numpy()}


def _head(width: int) -> nn.Module:
    """Two hidden layers and (mean, spread); names in the file are `rm_head.0`, `.3` and `.5`."""
    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )
