"""The miniature's eye: what a video shows, and whether it fits words, before anybody has voted.

A reward for real videos is fitted on top of a model that has seen much (a vision-language model), because a few
thousand votes do not teach what a ring or a flicker is. The eye is that model for the miniature: the generator's own
denoiser, which knows the world (arXiv 2511.21541 judges latents so), looks at nearly clean latents. It is trained on
rendered clips of training scenes to tell

- which caption of a batch belongs to which clip (contrastive, arXiv 2103.00020),
- what the object is, and where it is in each frame, and
- which defects were planted and how strong they are (judges of quality are pretrained so, arXiv 2110.13266).

No judge is involved, and no clip that a model made. `critic.py` holds what it sees against what was asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reelign.errors import ReelignError
from reelign.miniature.render import DEFECTS
from reelign.miniature.world import FRAMES, VALUES
from reelign.models.base import Conditions

EYE = Path(__file__).parent / "assets" / "eye"
MATCH = 64
"""Dimensions in which clips and captions are compared."""
FRAMES_SEEN = (FRAMES + 3) // 4
"""Latent frames of a clip."""
LEVEL = 100.0
"""The timestep at which the denoiser looks: nearly clean, as it was trained."""


@dataclass(frozen=True)
class Sight:
    """What it says of clips and their words.

    Attributes:
        match: how well the words fit as a whole, in [-1, 1], (B,).
        looks: by attribute of the scene, the logits of its values, (B, values).
        defects: strength of each, (B, DEFECTS).
    """

    match: Tensor
    looks: dict[str, Tensor]
    defects: Tensor


class Eye(nn.Module):
    """A denoiser that looks at clean latents (B, C, F, h, w).

    Attributes:
        width: of what it sees of a clip.
    """

    nothing: Tensor

    def __init__(self, denoiser: dict[str, Any], nothing: Tensor) -> None:
        """An eye without training.

        Args:
            denoiser: config of the transformer.
            nothing: the empty prompt as the text encoder gives it, (1, tokens, channels).
        """
        super().__init__()
        self.denoiser: Any = WanTransformer3DModel.from_config(denoiser)
        self.denoiser.proj_out, self.denoiser.norm_out = nn.Identity(), nn.Identity()
        self.width, channels = (
            denoiser["num_attention_heads"] * denoiser["attention_head_dim"] * FRAMES_SEEN,
            nothing.shape[-1],
        )
        self.register_buffer("nothing", nothing)
        self.norm = nn.LayerNorm(self.width)
        self.see = nn.Sequential(nn.Linear(self.width, 256), nn.SiLU(), nn.Linear(256, MATCH))
        self.say = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 256), nn.SiLU(), nn.Linear(256, MATCH))
        self.warmth = nn.Parameter(torch.tensor(2.0))
        self.defects = nn.Sequential(nn.Linear(self.width, 128), nn.SiLU(), nn.Linear(128, len(DEFECTS)))
        self.places = nn.Linear(self.width, 2 * FRAMES)
        self.looks = nn.ModuleDict({name: nn.Linear(self.width, len(values)) for name, values in VALUES.items()})

    def sight(self, latents: Tensor) -> Tensor:
        """What it sees of clips, (B, width): the mean of each latent frame's tokens, normalised."""
        network = self.denoiser
        turn = network.rope(latents)
        hidden = network.patch_embedding(latents).flatten(2).transpose(1, 2)
        level = latents.new_full((len(latents),), LEVEL)
        nothing = self.nothing.expand(len(latents), -1, -1)
        _, change, words, _ = network.condition_embedder(level, nothing, None)
        for block in network.blocks:
            hidden = block(hidden, words, change.unflatten(1, (6, -1)), turn)
        return self.norm(hidden.unflatten(1, (FRAMES_SEEN, -1)).mean(2).flatten(1))

    def forward(self, latents: Tensor, words: Tensor) -> Sight:
        """What it says of clips (B, C, F, h, w) and of words (B, channels)."""
        seen = self.sight(latents)
        match = (F.normalize(self.see(seen), dim=-1) * F.normalize(self.say(words), dim=-1)).sum(-1)
        return Sight(match, {name: look(seen) for name, look in self.looks.items()}, self.defects(seen))

    def save(self, folder: Path) -> None:
        """Write `eye.safetensors` in half precision and `eye.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "eye.safetensors")
        settings = {name: value for name, value in self.denoiser.config.items() if not name.startswith("_")}
        (folder / "eye.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load_eye(folder: Path = EYE) -> Eye:
    """The shipped eye, or one that `reelign miniature train` made, in float32.

    Raises:
        ReelignError: its files are missing.
    """
    try:
        weights = load_file(folder / "eye.safetensors")
        eye = Eye(json.loads((folder / "eye.json").read_text(encoding="utf-8")), weights["nothing"].float())
    except OSError as error:
        raise ReelignError(f"the miniature's eye is missing from {folder} ({error}); reinstall the package.") from error
    eye.load_state_dict({name: value.float() for name, value in weights.items()})
    return eye.eval().requires_grad_(False)


def words_of(conditions: Conditions) -> Tensor:
    """The encoded prompts as one vector each, float32 (B, channels): the mean of their tokens."""
    [tokens] = conditions.values()
    real = (tokens.abs().sum(-1, keepdim=True) > 0).float()
    return (tokens.float() * real).sum(1) / real.sum(1).clamp(min=1)
