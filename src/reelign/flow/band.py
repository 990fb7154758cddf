"""The low spatial frequencies of a latent: where a stochastic step explores.

A policy gradient from G clips finds the direction of a reward's slope among D random numbers with a signal-to-noise
ratio that falls as `sqrt(G / D)`. A denoiser forgets the high frequencies of what is added at a noisy level, so they
cost dimensions and decide little. The band is the span of the lowest type-II cosines along height and width; it is a
linear subspace with an orthonormal basis, so a density in its coordinates is a density of the subspace.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def kept(side: int, band: float) -> int:
    """Frequencies of a side that belong to the band, at least one."""
    return max(1, math.ceil(band * side - 1e-9))


def to_band(x: Tensor, band: float) -> Tensor:
    """Coordinates in the band, (..., kept(h), kept(w)) of (..., h, w); `x` itself when the band is everything."""
    if band == 1:
        return x
    rows, columns = (_basis(side, kept(side, band)).to(x) for side in x.shape[-2:])
    return rows.T @ x @ columns


def from_band(coordinates: Tensor, size: tuple[int, int], band: float) -> Tensor:
    """The latent of size (..., h, w) that has these coordinates and nothing outside the band."""
    if band == 1:
        return coordinates
    rows, columns = (_basis(side, kept(side, band)).to(coordinates) for side in size)
    return rows @ coordinates @ columns.T


def within(x: Tensor, band: float) -> Tensor:
    """The part of `x` that lies in the band, same shape."""
    return from_band(to_band(x, band), (x.shape[-2], x.shape[-1]), band)


@lru_cache(maxsize=64)
def _basis(side: int, count: int) -> Tensor:
    """Orthonormal type-II cosines, float64 (side, count), slowest first."""
    place = torch.arange(side, dtype=torch.float64) + 0.5
    waves = torch.cos(math.pi / side * place[:, None] * torch.arange(count, dtype=torch.float64))
    return waves / waves.norm(dim=0)
