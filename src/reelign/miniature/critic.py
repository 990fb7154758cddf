"""The miniature's critic: what a clip shows, held against what its words ask for and against what is usual, before
anybody has voted.

The eye tells what it sees, and the pixels (`signals`) how something moves and how it is drawn. Two small networks tell
what the words ask for, attribute by attribute, and which motion and speed a track is, or whether it strays. The words
are heard one by one, for the generator's text encoder has never learned those that only users say. What votes are about
is how well these agree: what is shown with what is asked, and each measure with that of a clean clip that shows the
same. A linear head cannot find it in what is seen and asked alone, for it is a product of both
(docs/results/reward.md).

All is learned from rendered clips: no judge is involved, and no clip that a model made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reelign.errors import ReelignError
from reelign.miniature import signals
from reelign.miniature.captions import vocabulary
from reelign.miniature.eye import EYE, Eye, Sight, load_eye
from reelign.miniature.render import DEFECTS
from reelign.miniature.signals import BOUND, CALM
from reelign.miniature.world import FRAMES, MOTIONS, SPEEDS, VALUES

WEIGHTS = "critic.safetensors"
FOLLOWED = {"motion": MOTIONS, "speed": SPEEDS}
"""What a track shows."""
MOVING = tuple(place for place, name in enumerate(MOTIONS) if name != "still")
STILL, SLOW = MOTIONS.index("still"), SPEEDS.index("slow")
SPAN = 8.0
"""Pixels of a track that become 1."""
CLEAR = 4.0
"""Difference of logits at which one value is shown clearly rather than another."""
LEAST_WAY = 0.05
"""Share of its way, and probability of an asked motion, that nothing is below."""
SIGHTS = sum(len(a) * len(b) for a, b in combinations(VALUES.values(), 2))
"""Values of two attributes that a clip may show."""
NAMES = (
    "match",
    *(f"{name}: {what}" for name in VALUES for what in ("fits", "clear")),
    *(f"{name} of the track: {what}" for name in FOLLOWED for what in ("fits", "clear")),
    "way",
    "astray",
    "way astray",
    *DEFECTS,
    *(f"{name} beyond what is due" for name in signals.NAMES),
)
"""Its opinions."""


class Critic(nn.Module):
    """An eye, an ear for words and a sense of motion.

    Attributes:
        due: the way in pixels that each motion but "still" covers at each speed, (MOVING, speeds).
        usual: what each value beside one of another attribute adds to the signals of a clean clip, (SIGHTS, signals).
        centre, scale: of each opinion over the eye's lessons, (len(NAMES),).
    """

    due: Tensor
    usual: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, eye: Eye) -> None:
        """A critic without training, but for its eye."""
        super().__init__()
        asked = sum(len(values) + 1 for values in VALUES.values())
        shown = sum(len(values) for values in FOLLOWED.values())
        self.eye = eye
        self.hear = nn.Sequential(nn.Linear(len(vocabulary()), 128), nn.SiLU(), nn.Linear(128, asked))
        self.follow = nn.Sequential(
            nn.Linear(2 * FRAMES, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, shown + 1)
        )
        self.register_buffer("due", torch.ones(len(MOVING), len(SPEEDS)))
        self.register_buffer("usual", torch.zeros(SIGHTS, len(signals.NAMES)))
        self.register_buffer("centre", torch.zeros(len(NAMES)))
        self.register_buffer("scale", torch.ones(len(NAMES)))

    def asked(self, spoken: Tensor) -> dict[str, Tensor]:
        """Logits of the value of each attribute that words ask for (see `spoken_words`), (B, values + 1); the last one
        says that they do not mention it."""
        parts = self.hear(spoken).split([len(values) + 1 for values in VALUES.values()], -1)
        return dict(zip(VALUES, parts, strict=True))

    def followed(self, tracks: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits of the motion and of the speed that tracks (B, T, 2), in pixels, show, and beside those of the motions
        the logit that they stray, and show no motion of the world, (B, 1)."""
        path = (tracks - tracks.mean(1, keepdim=True)) / SPAN
        motion, astray, speed = self.follow(path.flatten(1)).split([len(MOTIONS), 1, len(SPEEDS)], -1)
        return {"motion": motion, "speed": speed}, astray

    def forward(self, latents: Tensor, words: Tensor, spoken: Tensor, tracks: Tensor, measures: Tensor) -> Tensor:
        """Its opinions, standardised over the eye's lessons, (B, len(NAMES)).

        Args:
            latents: of clips, (B, C, F, h, w).
            words: what the generator's text encoder makes of their prompts, see `eye.words_of`, (B, channels).
            spoken: the words themselves, see `spoken_words`.
            tracks: see `signals.Reading`, (B, T, 2).
            measures: see `signals.Reading`, (B, signals).
        """
        said = self.opinions(self.eye(latents, words), spoken, tracks, measures)
        return ((said - self.centre) / self.scale).clamp(-BOUND, BOUND)

    def opinions(self, sight: Sight, spoken: Tensor, tracks: Tensor, measures: Tensor) -> Tensor:
        """The same as they are, in the order of `NAMES`."""
        asked = {name: logits.softmax(-1) for name, logits in self.asked(spoken).items()}
        followed, strays = self.followed(tracks)
        astray = torch.cat([followed["motion"], strays], -1).softmax(-1)[:, -1]
        fits = [fit(logits, asked[name]) for shown in (sight.looks, followed) for name, logits in shown.items()]
        way = self.way(tracks, followed, asked["motion"]) * (1 - astray)
        ways = torch.stack([way, astray, astray * torch.log1p(covered(tracks))], -1)
        looks = {name: logits.softmax(-1) for name, logits in (sight.looks | followed).items()}
        beyond = measures - sights(looks) @ self.usual
        return torch.cat([sight.match[:, None], *fits, ways, sight.defects, beyond], -1)

    def way(self, tracks: Tensor, followed: dict[str, Tensor], asked: Tensor) -> Tensor:
        """Logarithm of the share of its way that the object covers, (B,): 0 where standing still is asked for.

        Due is the way of the motion and speed that are shown, and where nothing moves the slow way of the asked motion.
        """
        share = (covered(tracks)[:, None, None] / self.due).clamp(max=1)
        motion, speed = followed["motion"].softmax(-1), followed["speed"].softmax(-1)
        moving = (motion[:, MOVING, None] * speed[:, None] * share).sum((1, 2))
        wanted = asked[:, MOVING] + LEAST_WAY
        resting = motion[:, STILL] * (wanted * share[:, :, SLOW]).sum(-1) / wanted.sum(-1)
        return (1 - asked[:, STILL]) * torch.log(moving + resting + LEAST_WAY)

    def save(self, folder: Path) -> None:
        """Write `critic.safetensors` in half precision, beside the eye's files."""
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("eye.")}
        save_file({name: value.half().contiguous() for name, value in own.items()}, folder / WEIGHTS)


def sights(looks: Mapping[str, Tensor]) -> Tensor:
    """Probability of each two values of two attributes, (B, SIGHTS), from those of each value, (B, values)."""
    pairs = combinations([looks[name] for name in VALUES], 2)
    return torch.cat([(one[:, :, None] * other[:, None]).flatten(1) for one, other in pairs], -1)


def covered(tracks: Tensor) -> Tensor:
    """The way in pixels, without its tremor, of tracks (B, T, 2): (B,)."""
    calm = torch.as_tensor(CALM, dtype=tracks.dtype, device=tracks.device) @ tracks
    return calm.diff(dim=1).norm(dim=-1).sum(1)


def spoken_words(texts: Sequence[str]) -> Tensor:
    """How often each word of the miniature's vocabulary is in each text, (B, words); others are not heard."""
    known = {word: place for place, word in enumerate(vocabulary())}
    counts = torch.zeros(len(texts), len(known))
    for row, text in zip(counts, texts, strict=True):
        for word in text.lower().split():
            if word in known:
                row[known[word]] += 1
    return counts


def read_pixels(videos: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """What the pixels of clips, uint8 (T, H, W, 3), say (`signals.Reading`): tracks (B, T, 2), measures (B, S)."""
    found = [signals.read(video) for video in videos]
    tracks, measures = (np.stack(values) for values in zip(*((one.track, one.signals) for one in found), strict=True))
    return torch.from_numpy(tracks).float(), torch.from_numpy(measures)


def fit(shown: Tensor, asked: Tensor) -> Tensor:
    """How well one attribute fits, (B, 2): the probability that the asked value is shown, and how clearly it is shown
    rather than the next best, in [-1, 1]. Both are 0 where it is not mentioned.

    Args:
        shown: logits of its values, (B, values).
        asked: probability of each value and of none, (B, values + 1).
    """
    values = range(shown.shape[-1])
    others = [shown[:, [other for other in values if other != value]].amax(-1) for value in values]
    clear = torch.tanh((shown - torch.stack(others, -1)) / CLEAR)
    return (asked[:, :-1, None] * torch.stack([shown.softmax(-1), clear], -1)).sum(1)


def load_critic(folder: Path = EYE) -> Critic:
    """The shipped critic, or one that `reelign miniature train` made, in float32.

    Raises:
        ReelignError: its files or the eye's are missing.
    """
    critic = Critic(load_eye(folder))
    try:
        weights = load_file(folder / WEIGHTS)
    except OSError as error:
        raise ReelignError(
            f"the miniature's critic is missing from {folder} ({error}); reinstall the package."
        ) from error
    own = {name: value for name, value in critic.state_dict().items() if name.startswith("eye.")}
    critic.load_state_dict(own | {name: value.float() for name, value in weights.items()})
    return critic.eval().requires_grad_(False)
