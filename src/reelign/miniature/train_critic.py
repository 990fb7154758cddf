"""What the critic learns beside the eye: to hear what words ask for, to follow a track, and what is usual."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reelign.miniature.critic import FOLLOWED, MOVING, STILL, Critic, covered, sights
from reelign.miniature.eye import Eye
from reelign.miniature.lessons import Lessons
from reelign.miniature.render import render
from reelign.miniature.signals import read
from reelign.miniature.world import FRAMES, MOTIONS, SPEEDS, VALUES, scenes

BATCH, STEPS, RATE = 256, 3000, 2e-3
STRETCH, SHEAR = 1.4, 0.2
"""Tracks are stretched or shrunk by up to this factor, as much the one as the other, so that a way between slow and
fast is taken for the nearer one; and they are bent, by a matrix with this deviation from the identity."""
TREMOR = 0.5
"""Most tremor of a track, in pixels."""
ASTRAY, STRAYING = 0.25, (2.0, 14.0)
"""Share of tracks that wander at random, and their extent in pixels: models draw what is no motion of the world."""
RIDGE = 0.1
"""What keeps the additions of values that come together from growing against each other."""
STANDARD = 4096
"""Lessons over which opinions are standardised."""


def teach_critic(eye: Eye, lessons: Lessons) -> Critic:
    """A critic with a trained eye, seeded; half a minute."""
    torch.manual_seed(0)
    critic = Critic(eye)
    motion, speed = (lessons.looks[:, list(VALUES).index(name)] for name in FOLLOWED)
    _descend(critic.hear, lambda: _heard(critic, lessons))
    _descend(critic.follow, lambda: _followed(critic, lessons.tracks, motion, speed))
    with torch.no_grad():
        critic.due.copy_(_ways(lessons.tracks, motion, speed))
        critic.usual.copy_(_usual())
        _standardise(critic.eval(), lessons)
    return critic


def _descend(network: nn.Module, loss_of_a_batch: Callable[[], Tensor]) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / STEPS)))
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of_a_batch().backward()
        optimizer.step()
        rate.step()


def _heard(critic: Critic, lessons: Lessons) -> Tensor:
    """Loss of what captions of both styles are heard to ask for."""
    rows, style = torch.randint(len(lessons.spoken), (BATCH,)), torch.randint(2, (BATCH,))
    heard = critic.asked(lessons.spoken[rows, style])
    asked = lessons.asked[rows, style]
    return torch.stack([F.cross_entropy(heard[name], asked[:, n]) for n, name in enumerate(VALUES)]).sum()


def _followed(critic: Critic, tracks: Tensor, motion: Tensor, speed: Tensor) -> Tensor:
    """Loss of what motion and speed tracks are found to show. Half of them are mixtures of two, with the shares of both
    as what is true: models draw much that lies between two motions. Some wander, and have no speed."""
    one, two = torch.randint(len(tracks), (2, BATCH))
    share = torch.where(torch.rand(BATCH) < 0.5, 1.0, torch.rand(BATCH))[:, None]
    own = tracks - tracks.mean(1, keepdim=True)
    path = _between(own[one], own[two], share[..., None]) @ (torch.eye(2) + SHEAR * torch.randn(BATCH, 2, 2))
    path = path * STRETCH ** torch.empty(BATCH, 1, 1).uniform_(-1, 1)
    path = path + TREMOR * torch.rand(BATCH, 1, 1) * torch.randn_like(path)
    motions = _between(F.one_hot(motion[one], len(MOTIONS) + 1), F.one_hot(motion[two], len(MOTIONS) + 1), share)
    speeds = _between(_speed(motion[one], speed[one]), _speed(motion[two], speed[two]), share)
    astray = round(ASTRAY * BATCH)
    path[:astray] = _wandering(astray)
    motions[:astray] = F.one_hot(torch.tensor(len(MOTIONS)), len(MOTIONS) + 1).float()
    speeds[:astray] = 0
    found, strays = critic.followed(path)
    return _miss(torch.cat([found["motion"], strays], -1), motions) + _miss(found["speed"], speeds)


def _wandering(count: int) -> Tensor:
    """Tracks (count, T, 2) whose steps remember more or less of the step before."""
    memory = 0.9 * torch.rand(count, 1, 1)
    steps = [torch.randn(count, 1, 2)]
    for _ in range(FRAMES - 1):
        steps.append(memory * steps[-1] + (1 - memory**2).sqrt() * torch.randn(count, 1, 2))
    path = torch.cat(steps, 1).cumsum(1)
    extent = (path.amax(1, keepdim=True) - path.amin(1, keepdim=True)).amax(-1, keepdim=True)
    least, most = STRAYING
    return (path - path.mean(1, keepdim=True)) / extent * least * (most / least) ** torch.rand(count, 1, 1)


def _between(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return share * one + (1 - share) * other


def _miss(logits: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy with shares (B, values) in place of one true value."""
    return -(shares * logits.log_softmax(-1)).sum(-1).mean()


def _speed(motion: Tensor, speed: Tensor) -> Tensor:
    """Each speed's share of one track; what stands still has none."""
    return F.one_hot(speed, len(SPEEDS)) * (motion != STILL)[:, None]


def _ways(tracks: Tensor, motion: Tensor, speed: Tensor) -> Tensor:
    """The way of each motion at each speed: the median, for some of these tracks tremble or jump."""
    ways = covered(tracks)
    of = [[ways[(motion == place) & (speed == number)] for number in range(len(SPEEDS))] for place in MOVING]
    return torch.stack([torch.stack([some.median() for some in row]) for row in of])


def _usual() -> Tensor:
    """What each value beside one of another attribute adds to the signals of a clean clip, (SIGHTS, signals): a ridge
    over a clip of each training scene."""
    pool = scenes(held_out=False)
    clean = [read(render(scene, np.random.default_rng((23, number)))).signals for number, scene in enumerate(pool)]
    looks = {
        name: F.one_hot(torch.tensor([values.index(getattr(scene, name)) for scene in pool]), len(values)).double()
        for name, values in VALUES.items()
    }
    shown = sights(looks)
    found = torch.linalg.solve(
        shown.T @ shown + RIDGE * torch.eye(shown.shape[1]).double(),
        shown.T @ torch.from_numpy(np.stack(clean)).double(),
    )
    return found.float()


def _standardise(critic: Critic, lessons: Lessons) -> None:
    """Centre and scale over clips with their own captions of both styles, and with those of others."""
    said = []
    for rows in torch.arange(min(STANDARD, len(lessons.words))).split(256):
        latents, tracks, measures = lessons.latents[rows].float(), lessons.tracks[rows], lessons.measures[rows]
        for style, others in ((0, 0), (1, 0), (0, 1)):
            words, spoken = (text[rows, style].roll(others, 0) for text in (lessons.words, lessons.spoken))
            said.append(critic.opinions(critic.eye(latents, words), spoken, tracks, measures))
    every = torch.cat(said)
    critic.centre.copy_(every.mean(0))
    critic.scale.copy_(every.std(0).clamp(min=1e-3))
