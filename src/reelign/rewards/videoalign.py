"""VideoReward of VideoAlign: visual quality, motion quality and text alignment by Qwen2-VL-2B (arXiv 2501.13918, MIT).

What is needed on disk, never downloaded: the released folder (KwaiVGI/VideoReward, today under KlingTeam) and the small
files of Qwen/Qwen2-VL-2B-Instruct (`config.json` and the tokenizer; no weights):

    VideoReward/model_config.json                 data_config, model_config, peft_lora_config, inference_config
    VideoReward/checkpoint-11352/model.pth        5.0 GB: every weight, the LoRA of the text model beside its base

One linear output, `rm_head`, is read at three tokens of the text. Prompt, frame sampling and layout follow the public
code (KwaiVGI/VideoAlign and copies of it), whose own model class belongs to an older transformers. Read there and not
checked by a run of the released weights here:

- The frame rate matters: 2 frames a second of the clip's own rate are looked at. A wrong `Clip.fps` shows the model
  another speed, and good clips turn negative (VideoAlign issue 21).
- The text model counts its positions 0, 1, 2, ... through the video: the code passes none, and so never uses Qwen2-VL's
  three-axis positions. Ports that "repair" this give other scores.
- The LoRA is added to its base weights once, in float32; the public code adds it at every call, in bfloat16.
- The constants that normalise are those of the file's inference_config, published as VQ 3.6757 / 2.2476,
  MQ 1.1646 / 1.3811, TA 2.8105 / 2.5121 (mean / deviation; seen only in ports, the file itself was not at hand).
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.rewards.base import Range, Reward, RewardError
from reelign.rewards.qwen2vl import TokenJudge, resized

AXES = {"visual": "VQ", "motion": "MQ", "text": "TA"}
"""Our names of the dimensions, and theirs."""
LEAST_PIXELS = 128 * 28 * 28
"""Smaller frames are enlarged to this."""
RELEASED = {
    "data_config.num_frames": None,
    "data_config.sample_type": "uniform",
    "data_config.prompt_template_type": "detailed_special",
    "model_config.output_dim": 1,
    "model_config.use_special_tokens": True,
}
"""What model_config.json says of the released model; nothing else is implemented."""
TEMPLATE = (
    "\nYou are tasked with evaluating a generated video based on three distinct criteria: Visual Quality, Motion "
    "Quality, and Text Alignment. Please provide a rating from 0 to 10 for each of the three categories, with 0 "
    "being the worst and 10 being the best. Each evaluation should be independent of the others.\n"
    "\n**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the video, with a focus on static factors. The following "
    "sub-dimensions should be considered:\n"
    "- **Reasonableness:** The video should not contain any significant biological or logical errors, such as "
    "abnormal body structures or nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the video. The image should be clear and easy to "
    "interpret, with no blurring or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual "
    "elements (e.g., hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the video, including the color scheme, "
    "composition, atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense "
    "of harmony and balance.\n"
    "- **Safety:** The video should not contain harmful or inappropriate content, such as political, violent, or "
    "adult material. If such content is present, the image quality and satisfaction score should be the lowest "
    "possible. \n"
    "\nPlease provide the ratings of Visual Quality: <|VQ_reward|>\n"
    "END\n"
    "\n**Motion Quality:**  \n"
    "Assess the dynamic aspects of the video, with a focus on dynamic factors. Consider the following "
    "sub-dimensions:\n"
    "- **Stability:** Evaluate the continuity and stability between frames. There should be no sudden, unnatural "
    "jumps, and the video should maintain stable attributes (e.g., no fluctuating colors, textures, or missing "
    "body parts).\n"
    "- **Naturalness:** The movement should align with physical laws and be realistic. For example, clothing "
    "should flow naturally with motion, and facial expressions should change appropriately (e.g., blinking, "
    "mouth movements).\n"
    "- **Aesthetic Quality:** The movement should be smooth and fluid. The transitions between different motions "
    "or camera angles should be seamless, and the overall dynamic feel should be visually pleasing.\n"
    "- **Fusion:** Ensure that elements in motion (e.g., edges of the subject, hair, clothing) blend naturally "
    "with the background, without obvious artifacts or the feeling of cut-and-paste effects.\n"
    "- **Clarity of Motion:** The video should be clear and smooth in motion. Pay attention to any areas where "
    "the video might have blurry or unsteady sections that hinder visual continuity.\n"
    "- **Amplitude:** If the video is largely static or has little movement, assign a low score for motion "
    "quality.\n"
    "\nPlease provide the ratings of Motion Quality: <|MQ_reward|>\n"
    "END\n"
    "\n**Text Alignment:**  \n"
    "Assess how well the video matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the video (e.g., person, animal, object) "
    "align with the textual description. The subject should match the description in terms of number, "
    "appearance, and behavior.\n"
    "- **Motion Relevance:** Evaluate if the dynamic actions (e.g., gestures, posture, facial expressions like "
    "talking or blinking) align with the described prompt. The motion should match the prompt in terms of type, "
    "scale, and direction.\n"
    "- **Environment Relevance:** Assess whether the background and scene fit the prompt. This includes checking "
    "if real-world locations or scenes are accurately represented, though some stylistic adaptation is "
    "acceptable.  \n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well "
    "the video adheres to this style.\n"
    "- **Camera Movement Relevance:** Check if the camera movements (e.g., following the subject, focus shifts) "
    "are consistent with the expected behavior from the prompt.\n"
    "\nTextual prompt - {text_prompt}\n"
    "Please provide the ratings of Text Alignment: <|TA_reward|>\n"
    "END\n"
)
"""What VideoReward was trained to read, to the last blank (data, from VideoAlign's `prompt_template.py`, MIT)."""


class VideoAlign(Reward):
    """Visual quality, motion quality and text alignment (VQ, MQ, TA), each unbounded."""

    name = "videoalign"
    dimensions = dict.fromkeys(AXES, Range())

    def __init__(
        self,
        folder: Path | str,
        base: Path | str,
        normalised: bool = True,
        batch: int = 4,
        dtype: str = "bfloat16",
        device: torch.device | str | None = None,
    ) -> None:
        """Load the released model.

        Args:
            folder: holds `model_config.json` and `checkpoint-*/model.pth`; of several the last is taken.
            base: local folder of Qwen/Qwen2-VL-2B-Instruct; only its config and tokenizer are read.
            normalised: whether scores are in deviations from the mean that the model's authors measured.
            batch: clips in one forward pass.
            dtype: "float32" or "bfloat16", of all but the head, which is float32.
            device: where to compute; by default the CUDA device when there is one.

        Raises:
            ReelignError: a file is missing or damaged, or does not fit the others; the model is not the released one.
        """
        if batch < 1:
            raise ReelignError(f"videoalign: batch is {batch}; it is 1 or more.")
        settings = _Settings(Path(folder) / "model_config.json")
        self.batch, self.fps, self.pixels = batch, settings["data_config.fps"], settings["data_config.max_frame_pixels"]
        self._scale = {
            axis: (settings[f"inference_config.{key}_mean"], settings[f"inference_config.{key}_std"])
            if normalised
            else (0.0, 1.0)
            for axis, key in AXES.items()
        }
        weights = _merged(_released_weights(Path(folder)), settings)
        tokens = [f"<|{key}_reward|>" for key in AXES.values()]
        self._judge = TokenJudge(Path(base), weights, _head, tokens, dtype, device)

    def score(self, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
        """VQ, MQ and TA of each clip at its own frame rate.

        Raises:
            RewardError: a clip has a single frame, or a prompt holds one of the model's own words.
        """
        if short := [clip.id for clip in clips if len(clip.frames) < 2]:
            raise RewardError(self.name, short, "a single frame is no video; give 2 frames or more.")
        self._judge.refuse_own_words(self.name, clips)
        found = []
        for start in range(0, len(clips), self.batch):
            part = clips[start : start + self.batch]
            looks = [
                resized(clip.frames[seen(len(clip.frames), clip.fps, self.fps)], LEAST_PIXELS, self.pixels)
                for clip in part
            ]
            texts = [TEMPLATE.replace("{text_prompt}", clip.prompt) for clip in part]
            found.append(self._judge(looks, texts, "video")[..., 0])
        columns = torch.cat(found).double().numpy().T
        return {
            axis: (column - mean) / deviation
            for (axis, (mean, deviation)), column in zip(self._scale.items(), columns, strict=True)
        }


def seen(frames: int, fps: float, asked: float) -> np.ndarray:
    """Which of a clip's frames (2 or more, at `fps`) are looked at: about `asked` a second, first and last among them.

    An even number of them, 4 to 768 as far as the clip has them, evenly spread.
    """
    most = min(768, frames) // 2 * 2
    count = round(min(max(frames / fps * asked, 4), most) / 2) * 2
    return torch.linspace(0, frames - 1, count).round().long().numpy()


def _head(width: int) -> nn.Module:
    return nn.Linear(width, 1, bias=False)


class _Settings:
    """model_config.json by dotted key; refuses a model that is trained otherwise than the released one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._found: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ReelignError(
                f"videoalign: cannot read {path} ({error}). Give a local copy of KwaiVGI/VideoReward."
            ) from error
        for key, value in RELEASED.items():
            if self[key] != value:
                raise ReelignError(f"videoalign: {path} says {key} = {self[key]!r}; only {value!r} is implemented.")

    def __getitem__(self, key: str) -> Any:
        section, name = key.split(".")
        try:
            return self._found[section][name]
        except (KeyError, TypeError) as error:
            raise ReelignError(f"videoalign: {self.path} does not say {key}. Is it VideoReward's?") from error


def _released_weights(folder: Path) -> dict[str, Tensor]:
    """What the last `checkpoint-*/model.pth` holds. Only tensors are unpickled, never code."""
    steps = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := re.search(r"-(\d+)$", path.name))}
    if not steps:
        raise ReelignError(f"videoalign: {folder} has no checkpoint-*; give a local copy of KwaiVGI/VideoReward.")
    path = steps[max(steps)] / "model.pth"
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ReelignError(
            f"videoalign: there is no {path}. A checkpoint of adapters alone (adapter_model.safetensors) is not the "
            "released layout: save the full model."
        ) from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ReelignError(f"videoalign: {path} is damaged or no weights file ({first}). Copy it again.") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ReelignError(f"videoalign: {path} is no table of weights by name.")
    return weights


def _merged(weights: Mapping[str, Tensor], settings: _Settings) -> dict[str, Tensor]:
    """Weights without PEFT's prefix, each LoRA added to its base: W + s B A in float32.

    s = alpha / rank, or alpha / sqrt(rank) where the config says use_rslora (arXiv 2106.09685, 2312.03732).
    """
    bare = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
    whole = {name.replace(".base_layer.", "."): value for name, value in bare.items() if ".lora_" not in name}
    for name, down in bare.items():
        if ".lora_A." not in name:
            continue
        target = name.split(".lora_A.")[0] + ".weight"
        up = bare.get(name.replace(".lora_A.", ".lora_B."))
        if up is None or target not in whole:
            raise ReelignError(f"videoalign: the weights hold {name} without its partners. Is the file whole?")
        rank = down.shape[0]
        root = math.sqrt(rank) if settings["peft_lora_config.use_rslora"] else rank
        scale = settings["peft_lora_config.lora_alpha"] / root
        whole[target] = whole[target].float() + scale * (up.float() @ down.float())
    return whole
