"""Load imbalance of uniform routing at a batch size: the part of a rank's excess load that is
chance.

Few tokens never spread evenly. Where a token takes ``K`` of ``P`` expert slots, each as likely as
any other, the pairs of a rank scatter around their mean, and the busiest of ``R`` ranks lies above
it the further, the fewer the tokens: where a rank has many pairs, by up to
``sqrt(2 ln R / mean pairs of a rank)`` of the mean (the fullest of R bins, Raab and Steger 1998).
A decode batch has too few for that, so the expectation is drawn rather than approximated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.jit import jit

_DRAWN_TOKENS = 32768
"""Tokens of all batches that an expectation is the mean of, about: large batches scatter little."""
_FEWEST_DRAWS, _MOST_DRAWS = 32, 2048
"""Batches drawn. With 8 of 256 experts over 32 ranks the expectation then has a standard error of
0.4 % or less, whatever the number of tokens."""
_LOW, _HIGH = 0.05, 0.95
"""Quantiles of single batches: nine in ten lie between them."""


@dataclass(frozen=True)
class UniformImbalance:
    """Ratio of the busiest rank's token-expert pairs to the mean rank's, under uniform routing."""

    mean: float
    """Expected ratio."""
    low: float
    """5th percentile of the ratio over single batches."""
    high: float
    """95th percentile of the ratio over single batches."""


def draw_uniform_imbalance(
    rank_P: Ints, top_k: int, num_tokens: int, rng: np.random.Generator
) -> UniformImbalance:
    """Draw batches of uniform routing and summarise their imbalance.

    Every token takes ``top_k`` distinct slots, all equally likely. Where experts have copies these
    are slots too: a placement with copies means to load slots evenly, so what a batch has above
    this is what the routing's skew leaves behind after placement.

    Args:
        rank_P: rank of every expert slot of a layer, ``[P]``; every rank has one at least.
        top_k: slots of a token, at most ``P``.
        num_tokens: of the batch, above 0.
    """
    num_draws = min(max(_DRAWN_TOKENS // num_tokens, _FEWEST_DRAWS), _MOST_DRAWS)
    ratio_D = _busiest_over_mean(
        rng.random((num_draws, num_tokens, top_k)), rank_P, int(rank_P.max()) + 1
    )
    low, high = np.quantile(ratio_D, [_LOW, _HIGH])
    mean = min(max(float(ratio_D.mean()), float(ratio_D.min())), float(ratio_D.max()))  # rounding
    return UniformImbalance(mean, float(low), float(high))


@jit
def _busiest_over_mean(uniform_DTK: Floats, rank_P: Ints, num_ranks: int) -> Floats:
    """Ratios of the busiest rank's pairs to the mean rank's, ``[D]``, with slots chosen by the
    first ``K`` exchanges of a Fisher-Yates shuffle.

    Args:
        uniform_DTK: random numbers in [0, 1).
    """
    num_draws, num_tokens, top_k = uniform_DTK.shape
    shuffled_P, num_slots = rank_P.copy(), len(rank_P)
    ratio_D, pairs_R = np.empty(num_draws), np.empty(num_ranks)
    for draw in range(num_draws):
        pairs_R[:] = 0.0
        for token in range(num_tokens):
            for place in range(top_k):  # what was shuffled before is as good an order as any
                other = place + int(uniform_DTK[draw, token, place] * (num_slots - place))
                rank = shuffled_P[other]
                shuffled_P[other] = shuffled_P[place]
                shuffled_P[place] = rank
                pairs_R[rank] += 1.0
        ratio_D[draw] = pairs_R.max() * num_ranks / (num_tokens * top_k)
    return ratio_D
