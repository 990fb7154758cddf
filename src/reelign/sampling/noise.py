"""Noise as a recipe: every random number follows from a readable key, on the CPU, in float32.

Any rank, any device and any resume draws the same noise for the same key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

NoiseKey = tuple[int, str, int]
"""(run seed, prompt id, sample index)."""


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose state follows from the key alone."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)


def initial_noise(keys: Sequence[NoiseKey], shape: Sequence[int]) -> Tensor:
    """Standard normal float32 noise (len(keys), *shape), one key a sample."""
    return torch.stack([torch.randn(*shape, generator=generator("initial", *key)) for key in keys])


def noise_after(initial: Tensor, index: int) -> Tensor:
    """Standard normal float32 noise, on the CPU, of the shape of `initial` (B, ...), for step `index` of the sampler.

    Each row follows from the same row of the initial noise, so it is known wherever the initial noise is.
    """
    rows = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in initial.detach().float().cpu().contiguous()]
    return torch.stack([torch.randn(initial.shape[1:], generator=generator("step", index, row)) for row in rows])
