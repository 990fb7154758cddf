"""The lessons of the eye and the critic: rendered clips of training scenes, spoiled at random, and their truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reelign.miniature.captions import Prompt, full_prompt, user_prompt
from reelign.miniature.critic import read_pixels, spoken_words
from reelign.miniature.eye import words_of
from reelign.miniature.render import DEFECTS, spoiled
from reelign.miniature.world import SIDE, VALUES, scenes
from reelign.models.base import VideoModel

DEFECT_SHARE = 0.3
"""Probability of each defect in a clip."""
AT_ONCE = 64
"""Clips that are encoded together."""

Progress = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class Lessons:
    """Rendered clips and what is known of them.

    Attributes:
        latents: (N, C, F, h, w), half precision.
        words: a full and a user's caption, encoded, (N, 2, channels).
        spoken: the words of both, (N, 2, words).
        asked: number of the value of each attribute that each caption asks for, one more than the last value's where
            it is not mentioned, (N, 2, attributes).
        defects: strength of each, (N, DEFECTS).
        places: centres of the object in [-1, 1], (N, 2 T).
        looks: number of the value of each attribute, (N, attributes).
        tracks, measures: what the pixels say, see `signals.Reading`, (N, T, 2) and (N, signals).
    """

    latents: Tensor
    words: Tensor
    spoken: Tensor
    asked: Tensor
    defects: Tensor
    places: Tensor
    looks: Tensor
    tracks: Tensor
    measures: Tensor


@torch.no_grad()
def make_lessons(model: VideoModel, count: int, progress: Progress | None) -> Lessons:
    """So many lessons, a multiple of `AT_ONCE`; each follows from its number."""
    parts = []
    for start in range(0, count, AT_ONCE):
        parts.append(_some(model, range(start, start + AT_ONCE)))
        if progress is not None:
            progress("eye: clips", start + AT_ONCE, count, 0.0)
    return Lessons(*(torch.cat(kind) for kind in zip(*parts, strict=True)))


def _some(model: VideoModel, numbers: range) -> tuple[Tensor, ...]:
    """The fields of some lessons."""
    pool = scenes(held_out=False)
    frames, captions, asked, defects, places, looks = [], [], [], [], [], []
    for number in numbers:
        source = np.random.default_rng((4242, number))
        scene = pool[int(source.integers(len(pool)))]
        strengths = {name: source.uniform(0.1, 1.2) for name in DEFECTS if source.random() < DEFECT_SHARE}
        video, centres = spoiled(scene, source, strengths)
        prompts = (full_prompt(scene), user_prompt(scene, source))
        frames.append(video)
        captions += [prompt.text for prompt in prompts]
        asked.append([_asked(prompt) for prompt in prompts])
        defects.append([strengths.get(name, 0.0) for name in DEFECTS])
        places.append((centres / (SIDE / 2) - 1).ravel())
        looks.append([values.index(getattr(scene, name)) for name, values in VALUES.items()])
    return (
        model.encode_video(torch.from_numpy(np.stack(frames))).half(),
        words_of(model.encode_text(captions)).unflatten(0, (-1, 2)),
        spoken_words(captions).unflatten(0, (-1, 2)),
        torch.tensor(asked),
        torch.tensor(defects).float(),
        torch.tensor(np.stack(places)).float(),
        torch.tensor(looks),
        *read_pixels(frames),
    )


def _asked(prompt: Prompt) -> list[int]:
    return [
        values.index(getattr(prompt.scene, name)) if name in prompt.stated else len(values)
        for name, values in VALUES.items()
    ]
