"""The miniature's small video network as a judge: its critic, and a linear head that votes teach what people like.

    score of an axis = w' (the critic's opinions of clip and words, what its pixels say of steadiness and sharpness)

The critic stays as it is. Two thousand votes are two thousand bits or so: trained on them, an eye of a million weights
learns the votes by heart and judges new clips no better (docs/results/reward.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.miniature import critic, signals
from reelign.miniature.eye import words_of
from reelign.miniature.world import FPS, FRAMES, SIDE
from reelign.models.load import load_model
from reelign.rewards.base import Needs
from reelign.rewards.preference import PreferenceNetwork

WEIGHTS = "network.safetensors"
FEATURES = len(critic.NAMES) + len(signals.NAMES)
"""What the head reads."""
LEAST_UNIT = 1e-2
"""A feature in which the clips hardly differ is not enlarged beyond that."""


class VideoNetworkConfig(BaseModel):
    """The miniature's small video network."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["miniature"]
    spread: bool = Field(default=False, description="Whether it also says how sure it is.")

    def build(self, axes: Sequence[str], parent: str, seed: int, device: torch.device | str) -> VideoNetwork:
        """The network before its votes; it starts with no opinion, whatever the seed."""
        return VideoNetwork(axes, self.spread).to(device)


class VideoNetwork(PreferenceNetwork):
    """See the module."""

    unit: Tensor
    kind = "miniature"
    needs = Needs(fps=FPS, frames=FRAMES, side=SIDE)

    def __init__(self, axes: Sequence[str], spread: bool) -> None:
        super().__init__()
        self.axes, self.spread = tuple(axes), spread
        self._model, self._critic = load_model("miniature", device="cpu"), [critic.load_critic()]
        self.head = nn.Linear(FEATURES, len(self.axes) * (2 if spread else 1), bias=spread)
        for value in self.head.parameters():
            nn.init.zeros_(value)
        self.register_buffer("unit", torch.ones(FEATURES))

    @torch.no_grad()
    def read(self, clips: Sequence[Clip]) -> list[dict[str, Tensor]]:
        """What the critic and the pixels say of each clip and its prompt, float32 (FEATURES,)."""
        latents = self._model.encode_video(torch.from_numpy(np.stack([clip.frames for clip in clips])))
        prompts = [clip.prompt for clip in clips]
        words, spoken = words_of(self._model.encode_text(prompts)), critic.spoken_words(prompts)
        tracks, measures = critic.read_pixels([clip.frames for clip in clips])
        opinions = self._critic[0](latents, words, spoken, tracks, measures)
        return [{"said": said} for said in torch.cat([opinions, measures], -1)]

    def features(self, seen: Sequence[dict[str, Tensor]]) -> Tensor:
        """The same for every axis, (B, axes, FEATURES)."""
        said = torch.stack([clip["said"] for clip in seen]).to(self.head.weight.device) / self.unit
        return said[:, None].expand(-1, len(self.axes), -1)

    @torch.no_grad()
    def settle(self, apart: Tensor) -> Tensor:
        """The unit of a feature is its usual difference."""
        self.unit.copy_(apart[:, 0].square().mean(0).sqrt().clamp(min=LEAST_UNIT))
        return apart / self.unit.to(apart)

    def head_weights(self) -> Tensor:
        """(axes, FEATURES)."""
        return self.head.weight.unflatten(0, (len(self.axes), -1))[:, 0]

    def judge(self, features: Tensor) -> Tensor:
        """(B, axes, outputs)."""
        return self.head(features[:, 0]).unflatten(-1, (len(self.axes), -1))

    def facts(self) -> dict[str, Any]:
        """What `load` needs."""
        return {"axes": list(self.axes), "spread": self.spread}

    def save(self, folder: Path) -> None:
        """Write the head."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any], device: torch.device | str) -> VideoNetwork:
        """Read what `save` wrote."""
        try:
            network = cls(facts["axes"], facts["spread"])
            network.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise ReelignError(f"cannot load the reward network of {folder}: {first}. Is the folder whole?") from error
        return network.to(device)
