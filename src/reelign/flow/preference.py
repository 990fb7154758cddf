"""Preferences on a flow: Flow-DPO (arXiv 2501.13918, section 4), and what it makes of a tie.

Winner and loser of a pair stand at the same noise level t with the same noise eps. With `l` the flow-matching error of
a clip under the model and `l_ref` under the frozen reference, a clip's implicit reward and a pair's margin are

    r = -beta/2 (l - l_ref),   l = mean |v(x_t) - (eps - x0)|^2,   D = r_winner - r_loser

and the loss is -log sigmoid(D), with beta the same for every t: the derivation gives beta (1 - t)^2, the paper finds
the constant better. The paper writes |.|^2, a sum over dimensions; here `l` is their mean, as in the public code of
Diffusion-DPO (arXiv 2311.12908), so that beta does not depend on the size of a clip: in the paper's convention it is
beta / (C F h w).

Raters also say "the same". Under the model of Rao and Kupper (1967) with k >= 1, whose DPO is arXiv 2409.17431,

    p(winner better) = sigmoid(D - log k),   p(tie) = (k^2 - 1) sigmoid(D - log k) sigmoid(-D - log k)

A tie's loss is the same for both orders of its clips, least at D = 0 and flat there: it holds the model where raters
see no difference. k = 1 means no ties, and the loss of the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def implicit_reward(error: Tensor, reference_error: Tensor, beta: float) -> Tensor:
    """`-beta/2 (l - l_ref)`: how much better than the reference the model explains a clip, any shape.

    Args:
        error: l, of the model.
        reference_error: l_ref, at the same noise and level.
        beta: how dear it is to leave the reference.
    """
    return -beta / 2 * (error - reference_error)


def preference_loss(margin: Tensor, decided: Tensor, k: float = 1.0) -> Tensor:
    """Negative log-likelihood of what raters said of each pair, (P,).

    Args:
        margin: D (P,), of the winner over the loser; for a tie in either order.
        decided: bool (P,); the others are ties.
        k: of Rao and Kupper; see `tie_parameter`.

    Raises:
        ValueError: there is a tie, but k says that there are none.
    """
    ties = ~decided
    if k < 1 or (k == 1 and bool(ties.any())):
        raise ValueError(f"k={k:g} allows no ties; take k above 1, from their share")
    better = logsigmoid(margin - math.log(k))
    if k == 1:
        return -better
    return -better - torch.where(ties, logsigmoid(-margin - math.log(k)) + math.log(k * k - 1), 0.0)


def tie_parameter(share: float) -> float:
    """The k under which two equal clips tie with probability `share` in [0, 1): `(1 + share) / (1 - share)`.

    With the share of ties among all pairs it is the maximum-likelihood k at the reference, where every margin is 0.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share of ties must lie in [0, 1), got {share}")
    return (1 + share) / (1 - share)


def preferred(margin: Tensor) -> Tensor:
    """The implicit reward as a judge of decided pairs: 1 where the winner has more of it, 1/2 where both have as much.

    Its mean is the implicit reward accuracy: 1/2 for the reference itself, as for a coin.
    """
    return (margin > 0).to(margin) + (margin == 0).to(margin) / 2
