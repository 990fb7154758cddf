"""How the eye learns to see: `reelign miniature train --parts eye`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reelign.miniature.captions import full_prompt, user_prompt
from reelign.miniature.eye import Eye, words_of
from reelign.miniature.render import DEFECTS, spoiled
from reelign.miniature.world import SIDE, VALUES, scenes
from reelign.models.base import VideoModel
from reelign.models.load import load_model

CLIPS, BATCH, STEPS = 16_384, 96, 1600
TRUNK_RATE, HEAD_RATE = 3e-4, 1e-3
DEFECT_SHARE = 0.3
"""Probability of each defect in a clip."""
GRAIN = 0.15
"""Most noise on the latents, in deviations: models do not draw as cleanly as a renderer."""

Progress = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class Lessons:
    """Rendered clips and what is known of them.

    Attributes:
        latents: (N, C, F, h, w), half precision.
        words: a full and a user's caption, (N, 2, channels).
        defects: strength of each, (N, DEFECTS).
        places: centres of the object in [-1, 1], (N, 2 T).
        looks: number of the value of each attribute, (N, attributes).
    """

    latents: Tensor
    words: Tensor
    defects: Tensor
    places: Tensor
    looks: Tensor


def train_eye(out: Path, progress: Progress | None = None) -> Path:
    """Train it from the shipped denoiser, seeded, in about twenty minutes; returns `out/eye`."""
    folder = out / "eye"
    if (folder / "eye.json").exists():
        return folder
    torch.manual_seed(0)
    model = load_model("miniature", device="cpu")
    [nothing] = model.encode_text([""]).values()
    denoiser = model.denoisers()["transformer"]
    eye = Eye(dict(denoiser.config), nothing.float())
    eye.denoiser.load_state_dict(denoiser.state_dict(), strict=False)  # its last layers are not looked through
    lessons = _lessons(model, progress)
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
    _standardise(eye, lessons)
    eye.save(folder)
    return folder


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


@torch.no_grad()
def _standardise(eye: Eye, lessons: Lessons) -> None:
    """Centre and scale over clips with their own captions of both styles, and with those of others."""
    said = []
    for start in range(0, min(4096, CLIPS), 256):
        rows = torch.arange(start, min(start + 256, CLIPS))
        seen, words = lessons.latents[rows].float(), lessons.words[rows]
        said += [eye(seen, words[:, 0]), eye(seen, words[:, 1]), eye(seen, words[:, 0].roll(1, 0))]
    every = torch.cat(said)
    eye.centre.copy_(every.mean(0))
    eye.scale.copy_(every.std(0).clamp(min=1e-3))


@torch.no_grad()
def _lessons(model: VideoModel, progress: Progress | None) -> Lessons:
    pool, parts = scenes(held_out=False), []
    for start in range(0, CLIPS, 64):
        frames, captions, defects, places, looks = [], [], [], [], []
        for index in range(start, start + 64):
            source = np.random.default_rng((4242, index))
            scene = pool[int(source.integers(len(pool)))]
            strengths = {name: source.uniform(0.1, 1.2) for name in DEFECTS if source.random() < DEFECT_SHARE}
            video, centres = spoiled(scene, source, strengths)
            frames.append(video)
            captions += [full_prompt(scene).text, user_prompt(scene, source).text]
            defects.append([strengths.get(name, 0.0) for name in DEFECTS])
            places.append((centres / (SIDE / 2) - 1).ravel())
            looks.append([values.index(getattr(scene, name)) for name, values in VALUES.items()])
        latents = model.encode_video(torch.from_numpy(np.stack(frames))).half()
        words = words_of(model.encode_text(captions)).unflatten(0, (-1, 2))
        parts.append(
            (latents, words, torch.tensor(defects).float(), torch.tensor(np.stack(places)).float(), torch.tensor(looks))
        )
        if progress is not None:
            progress("eye: clips", start + 64, CLIPS, 0.0)
    return Lessons(*(torch.cat(kind) for kind in zip(*parts, strict=True)))
