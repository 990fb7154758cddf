"""The miniature's eye: what a video shows, and whether it fits words, before anybody has voted.

A reward for real videos is fitted on top of a model that has seen much (a vision-language model), because a few
thousand votes do not teach what a ring or a flicker is. The eye is that model for the miniature: the generator's own
denoiser, which knows the world (arXiv 2511.21541 rewards latents so), looks at clean latents, and is trained on
rendered clips of training scenes to tell

- which caption of a batch belongs to which clip (contrastive, arXiv 2103.00020), and
- which planted defect a clip has and how strong it is (as arXiv 2110.13266 pretrains judges of quality).

No judge is involved, and no clip that a model made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reelign.errors import ReelignError
from reelign.miniature.captions import full_prompt, user_prompt
from reelign.miniature.render import MOTION_DEFECTS, VISUAL_DEFECTS, defective, render
from reelign.miniature.world import FRAMES, scenes
from reelign.models.base import Conditions, VideoModel
from reelign.models.load import load_model

EYE = Path(__file__).parent / "assets" / "eye"
DEFECTS = VISUAL_DEFECTS + MOTION_DEFECTS
MATCH = 64
"""Dimensions in which clips and captions are compared."""
CLIPS, BATCH, STEPS = 12_288, 96, 1000
TRUNK_RATE, HEAD_RATE = 3e-4, 1e-3
FRAMES_SEEN = (FRAMES + 3) // 4
"""Latent frames of a clip."""
LEVEL = 100.0
"""The timestep at which the denoiser looks: nearly clean, as it was trained."""


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
        inside = denoiser["num_attention_heads"] * denoiser["attention_head_dim"]
        self.register_buffer("nothing", nothing)
        self.width = inside * FRAMES_SEEN
        self.norm = nn.LayerNorm(self.width)
        self.see = nn.Sequential(nn.Linear(self.width, 256), nn.SiLU(), nn.Linear(256, MATCH))
        channels = nothing.shape[-1]
        self.say = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 256), nn.SiLU(), nn.Linear(256, MATCH))
        self.warmth = nn.Parameter(torch.tensor(2.0))
        self.defect = nn.Sequential(nn.Linear(self.width, 128), nn.SiLU(), nn.Linear(128, len(DEFECTS) + 2))

    def forward(self, latents: Tensor) -> Tensor:
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

    def match(self, seen: Tensor, words: Tensor) -> Tensor:
        """How what was seen fits words (B, channels), in each of `MATCH` dimensions; their sum is the cosine."""
        return F.normalize(self.see(seen), dim=-1) * F.normalize(self.say(words), dim=-1)

    def save(self, folder: Path) -> None:
        """Write `eye.safetensors` in half precision and `eye.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.half().contiguous() for name, value in self.state_dict().items()}, folder / "eye.safetensors"
        )
        settings = {name: value for name, value in self.denoiser.config.items() if not name.startswith("_")}
        (folder / "eye.json").write_text(json.dumps(settings, indent=1))


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
    return eye


def words_of(conditions: Conditions) -> Tensor:
    """The encoded prompts as one vector each, float32 (B, channels): the mean of their tokens."""
    [tokens] = conditions.values()
    real = (tokens.abs().sum(-1, keepdim=True) > 0).float()
    return (tokens.float() * real).sum(1) / real.sum(1).clamp(min=1)


def train_eye(out: Path, progress: Callable[[str, int, int, float], None] | None = None) -> Path:
    """Train it from the shipped denoiser, seeded, in about ten minutes; returns `out/eye`."""
    folder = out / "eye"
    if (folder / "eye.json").exists():
        return folder
    torch.manual_seed(0)
    model = load_model("miniature", device="cpu")
    [nothing] = model.encode_text([""]).values()
    denoiser = model.denoisers()["transformer"]
    eye = Eye(dict(denoiser.config), nothing.float())
    eye.denoiser.load_state_dict(denoiser.state_dict(), strict=False)  # its last layers are not looked through
    latents, words, defects, strengths = _lessons(model, progress)
    trunk = {id(value) for value in eye.denoiser.parameters()}
    heads = [value for value in eye.parameters() if id(value) not in trunk]
    groups = [{"params": list(eye.denoiser.parameters()), "lr": TRUNK_RATE}, {"params": heads, "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate)
    for step in range(STEPS):
        chosen, style = torch.randint(CLIPS, (BATCH,)), torch.randint(2, (BATCH,))
        loss = _loss(eye, latents[chosen].float(), words[chosen, style], defects[chosen], strengths[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(eye.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if progress is not None:
            progress("eye", step + 1, STEPS, float(loss.detach()))
    eye.save(folder)
    return folder


def _rate(step: int) -> float:
    return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / STEPS))


def _loss(eye: Eye, latents: Tensor, words: Tensor, defects: Tensor, strengths: Tensor) -> Tensor:
    seen = eye(latents)
    fits = eye.warmth.exp() * F.normalize(eye.see(seen), dim=-1) @ F.normalize(eye.say(words), dim=-1).T
    own, told = torch.arange(len(fits)), eye.defect(seen)
    contrast = (F.cross_entropy(fits, own) + F.cross_entropy(fits.T, own)) / 2
    return contrast + 0.5 * F.cross_entropy(told[:, :-1], defects) + (told[:, -1] - strengths).square().mean()


@torch.no_grad()
def _lessons(
    model: VideoModel, progress: Callable[[str, int, int, float], None] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents (N, C, F, h, w) in half precision, a full and a user's caption (N, 2, channels), defects, strengths."""
    pool, latents, words, defects, strengths = scenes(held_out=False), [], [], [], []
    for start in range(0, CLIPS, 64):
        frames, captions = [], []
        for index in range(start, start + 64):
            source = np.random.default_rng((4242, index))
            scene = pool[int(source.integers(len(pool)))]
            defect, strength = len(DEFECTS), 0.0
            if source.random() < 0.5:
                defect, strength = int(source.integers(len(DEFECTS))), float(source.uniform(0.2, 1.2))
            frames.append(defective(scene, source, DEFECTS[defect], strength) if strength else render(scene, source))
            captions += [full_prompt(scene).text, user_prompt(scene, source).text]
            defects.append(defect)
            strengths.append(strength)
        latents.append(model.encode_video(torch.from_numpy(np.stack(frames))).half())
        words.append(words_of(model.encode_text(captions)).unflatten(0, (-1, 2)))
        if progress is not None:
            progress("eye: clips", start + 64, CLIPS, 0.0)
    return torch.cat(latents), torch.cat(words), torch.tensor(defects), torch.tensor(strengths)
