"""Bradley-Terry with ties (Rao & Kupper 1967), as reward models of video are fitted (arXiv 2501.13918, section 3.2).

    P(A better) = s(D - log k),   P(B better) = s(-D - log k),   P(same) = (k^2 - 1) s(D - log k) s(-D - log k)

with the logistic function s, the difference D of the two sides, and k > 1, the width of "the same": at D = 0 the three
are 1 / (1 + k), 1 / (1 + k) and (k - 1) / (k + 1).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def tie_nll(difference: Tensor, worth: Tensor, k: float) -> Tensor:
    """Negative log-likelihood of votes.

    Args:
        difference: D, any shape.
        worth: +1 where A was better, 0 for the same, -1 where B was; the shape of `difference`.
        k: width of "the same", above 1.

    Returns:
        nats, the shape of `difference`.

    Raises:
        ValueError: k is not above 1.
    """
    if k <= 1:
        raise ValueError(f"k is {k}; ties need k > 1")
    width = math.log(k)
    a, b = F.logsigmoid(difference - width), F.logsigmoid(-difference - width)
    tie = a + b + math.log(k * k - 1)
    return -torch.where(worth > 0, a, torch.where(worth < 0, b, tie))


def probabilities(difference: Tensor, k: float) -> Tensor:
    """(..., 3): of A better, the same, B better."""
    a, b = (torch.sigmoid(sign * difference - math.log(k)) for sign in (1, -1))
    return torch.stack([a, 1 - a - b, b], -1)


def moderated(difference: Tensor, variance: Tensor) -> Tensor:
    """A difference that is itself only known to a variance, shrunk so that s(result) is about the mean of s over the
    normal distribution (MacKay 1992, "The evidence framework applied to classification networks", equation 26)."""
    return difference / (1 + math.pi / 8 * variance).sqrt()
