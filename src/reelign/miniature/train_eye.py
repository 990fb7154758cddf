"""How the eye learns to see, and what the critic learns with it: `reelign miniature train --parts eye`."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from reelign.miniature.critic import WEIGHTS
from reelign.miniature.eye import Eye, load_eye
from reelign.miniature.lessons import Lessons, Progress, make_lessons
from reelign.miniature.train_critic import teach_critic
from reelign.miniature.world import VALUES
from reelign.models.base import VideoModel
from reelign.models.load import load_model

CLIPS, BATCH, STEPS = 16_384, 96, 1600
TRUNK_RATE, HEAD_RATE = 3e-4, 1e-3
GRAIN = 0.15
"""Most noise on the latents, in deviations: models do not draw as cleanly as a renderer."""


def train_eye(out: Path, progress: Progress | None = None) -> Path:
    """Train both from the shipped denoiser, seeded, in about twenty minutes; returns `out/eye`."""
    folder = out / "eye"
    if (folder / WEIGHTS).exists():
        return folder
    torch.manual_seed(0)
    model = load_model("miniature", device="cpu")
    lessons = make_lessons(model, CLIPS, progress)
    if not (folder / "eye.json").exists():
        _taught(model, lessons, progress).save(folder)
    teach_critic(load_eye(folder), lessons).save(folder)
    return folder


def _taught(model: VideoModel, lessons: Lessons, progress: Progress | None) -> Eye:
    [nothing] = model.encode_text([""]).values()
    denoiser = model.denoisers()["transformer"]
    eye = Eye(dict(denoiser.config), nothing.float())
    eye.denoiser.load_state_dict(denoiser.state_dict(), strict=False)  # its last layers are not looked through
    trunk = list(eye.denoiser.parameters())
    inside = {id(value) for value in trunk}
    heads = [value for value in eye.parameters() if id(value) not in inside]
    groups = [{"params": trunk, "lr": TRUNK_RATE}, {"params": heads, "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate)
    for step in range(STEPS):
        loss = _loss(eye, lessons, torch.randint(CLIPS, (BATCH,)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(eye.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if progress is not None:
            progress("eye", step + 1, STEPS, float(loss.detach()))
    return eye


def _rate(step: int) -> float:
    return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / STEPS))


def _loss(eye: Eye, lessons: Lessons, chosen: Tensor) -> Tensor:
    clean = lessons.latents[chosen].float()
    grain = GRAIN * torch.rand(len(chosen), 1, 1, 1, 1)
    seen = eye.sight(clean + grain * torch.randn_like(clean))
    words = lessons.words[chosen, torch.randint(2, (len(chosen),))]
    fits = eye.warmth.exp() * F.normalize(eye.see(seen), dim=-1) @ F.normalize(eye.say(words), dim=-1).T
    own = torch.arange(len(fits))
    contrast = (F.cross_entropy(fits, own) + F.cross_entropy(fits.T, own)) / 2
    looks = sum(
        F.cross_entropy(eye.looks[name](seen), lessons.looks[chosen, place]) for place, name in enumerate(VALUES)
    )
    defects = (eye.defects(seen) - lessons.defects[chosen]).square().mean()
    places = (eye.places(seen) - lessons.places[chosen]).square().mean()
    return contrast + 0.2 * looks + 5 * defects + 5 * places
