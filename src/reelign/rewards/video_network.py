"""The miniature's small video network as a judge: its eye, and a head that votes teach what people like.

    score = MLP(what is seen) + linear(how it fits the words)

All weights learn. Clips are looked at in the latents of the miniature's autoencoder, words as its text encoder says
them; both stay as they are.
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
from reelign.miniature.eye import MATCH, Eye, load_eye, words_of
from reelign.miniature.world import FPS, FRAMES, SIDE
from reelign.models.load import load_model
from reelign.rewards.base import Needs
from reelign.rewards.preference import PreferenceNetwork

WEIGHTS = "network.safetensors"


class VideoNetworkConfig(BaseModel):
    """The miniature's small video network."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["miniature"]
    spread: bool = Field(default=False, description="Whether it also says how sure it is.")
    hidden: int = Field(default=64, ge=1, description="Width of the head.")

    def build(self, axes: Sequence[str], parent: str, seed: int, device: torch.device | str) -> VideoNetwork:
        """The network before its votes; its head starts from `seed`."""
        return VideoNetwork(load_eye(), axes, self.spread, self.hidden, seed).to(device)


class VideoNetwork(PreferenceNetwork):
    """See the module."""

    kind = "miniature"
    needs = Needs(fps=FPS, frames=FRAMES, side=SIDE)

    def __init__(self, eye: Eye, axes: Sequence[str], spread: bool, hidden: int, seed: int) -> None:
        super().__init__()
        self.axes, self.spread, self.hidden = tuple(axes), spread, hidden
        self._model = load_model("miniature", device="cpu")
        outputs = len(self.axes) * (2 if spread else 1)
        self.eye = eye
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Sequential(nn.Linear(eye.width, hidden), nn.SiLU(), nn.Linear(hidden, outputs))
            self.fit = nn.Linear(MATCH + 1, outputs, bias=False)
        nn.init.zeros_(self.fit.weight)

    @torch.no_grad()
    def read(self, clips: Sequence[Clip]) -> list[dict[str, Tensor]]:
        """Latents in half precision and the words' vector of each clip."""
        latents = self._model.encode_video(torch.from_numpy(np.stack([clip.frames for clip in clips]))).half()
        words = words_of(self._model.encode_text([clip.prompt for clip in clips]))
        return [{"latents": clip, "words": said} for clip, said in zip(latents, words, strict=True)]

    def forward(self, seen: Sequence[dict[str, Tensor]]) -> Tensor:
        """(B, axes, outputs)."""
        device = self.fit.weight.device
        latents = torch.stack([clip["latents"] for clip in seen]).to(device).float()
        words = torch.stack([clip["words"] for clip in seen]).to(device)
        sight = self.eye(latents)
        match = self.eye.match(sight, words) * MATCH**0.5
        match = torch.cat([match, match.sum(-1, keepdim=True)], -1)
        return (self.head(sight) + self.fit(match)).unflatten(-1, (len(self.axes), -1))

    def facts(self) -> dict[str, Any]:
        """What `load` needs."""
        config = {name: value for name, value in self.eye.denoiser.config.items() if not name.startswith("_")}
        return {"axes": list(self.axes), "spread": self.spread, "hidden": self.hidden, "denoiser": config}

    def save(self, folder: Path) -> None:
        """Write all weights but those of autoencoder and text encoder."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any], device: torch.device | str) -> VideoNetwork:
        """Read what `save` wrote."""
        try:
            weights = load_file(folder / WEIGHTS)
            eye = Eye(facts["denoiser"], weights["eye.nothing"])
            network = cls(eye, facts["axes"], facts["spread"], facts["hidden"], 0)
            network.load_state_dict(weights)
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise ReelignError(f"cannot load the reward network of {folder}: {first}. Is the folder whole?") from error
        return network.to(device)
