"""How sure a fitted reward is of a pair, from the votes it has seen: a Laplace approximation of its last layer.

The score of an axis is linear in the features that its head reads, so the difference of a pair is w'x with the
difference x of features. Votes leave w uncertain, about normally (MacKay 1992; arXiv 2106.14806, section 2):

    precision = prior + sum over votes of h x x',    h = the expected curvature of the likelihood of a vote
    variance of the difference of a pair = x' precision^-1 x

A priori the difference of two clips has the variance `PRIOR`; the fit has the same prior.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reelign.errors import ReelignError
from reelign.flow.ties import probabilities

FILE = "certainty.safetensors"
PRIOR = 2.0


def curvature(difference: Tensor, k: float) -> Tensor:
    """Expected second derivative of the negative log-likelihood of a vote by the difference of its scores (its Fisher
    information), of `reelign.flow.ties`; the shape of `difference`."""
    a, tie, b = probabilities(difference, k).unbind(-1)
    slope_a, slope_b = (torch.sigmoid(sign * difference - math.log(k)) for sign in (1, -1))
    bend_a, bend_b = slope_a * (1 - slope_a), slope_b * (1 - slope_b)
    return a * bend_a + b * bend_b + tie * (bend_a + bend_b)


def prior_precision(features: Tensor) -> Tensor:
    """Of each weight of a head, from differences of features (..., N, F): a usual pair has the variance `PRIOR`."""
    return features.square().sum(-1).mean(-1) / PRIOR


@dataclass(frozen=True)
class Certainty:
    """What votes have told of the head of each axis.

    Attributes:
        precision: by axis, float64 (F, F).
        k: width of a tie.
    """

    precision: Mapping[str, Tensor]
    k: float

    @classmethod
    def of(cls, axes: tuple[str, ...], features: Tensor, differences: Tensor, given: Tensor, k: float) -> Certainty:
        """After some votes.

        Args:
            axes: their names.
            features: differences of the features of their pairs, (N, axes, F).
            differences: of the scores, (N, axes).
            given: which axes were voted on, (N, axes).
            k: width of a tie.
        """
        found = {}
        for place, axis in enumerate(axes):
            rows = features[:, place].double()
            weight = curvature(differences[:, place].double(), k) * given[:, place]
            prior = prior_precision(rows) * torch.eye(rows.shape[1], dtype=rows.dtype)
            found[axis] = prior + rows.T @ (weight[:, None] * rows)
        return cls(found, k)

    def save(self, folder: Path) -> None:
        """Write `certainty.safetensors`."""
        save_file({axis: value.float().contiguous() for axis, value in self.precision.items()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path, k: float) -> Certainty:
        """Read what `save` wrote.

        Raises:
            ReelignError: the file is missing or damaged.
        """
        try:
            return cls({axis: value.double() for axis, value in load_file(folder / FILE).items()}, k)
        except (OSError, SafetensorError) as error:
            raise ReelignError(
                f"cannot read {folder / FILE} ({error}). Give the whole artifact of a `reward` stage."
            ) from error
