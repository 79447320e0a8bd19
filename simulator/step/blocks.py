"""Seconds of all layers of a model by tokens of a data-parallel rank, for the table of the ``step``
fidelity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.step.overlap import first_half
from simulator.step.prices import Prices

Floats = NDArray[np.float64]


class Blocks(NamedTuple):
    """Seconds of all layers on one kind of GPU, ``[T]`` each."""

    mixer_s: Floats
    ffn_s: Floats
    halved_s: Floats


def price_blocks(
    prices: Prices,
    mixers_halved: Counter[str],
    ffns_halved: Counter[str],
    reduces: Sequence[tuple[Floats, int, int]],
) -> Blocks:
    """Price the blocks of all layers.

    Args:
        mixers_halved: layers of each mixer that run in halves.
        ffns_halved: layers of each feed-forward block that do.
        reduces: seconds of an all-reduce, its number in all layers, and in those that do.
    """
    zeros = np.zeros(prices.max_tokens + 1)
    mixers = [
        (prices.mixer_s[name], count, mixers_halved[name])
        for name, count in prices.mixer_layers.items()
    ]
    ffns = [
        (prices.ffn_s[name], count, ffns_halved[name]) for name, count in prices.ffn_layers.items()
    ]
    blocks = (*mixers, *ffns, *reduces)
    return Blocks(
        sum((sum_layers(*block) for block in mixers), zeros),
        sum((sum_layers(*block) for block in ffns), zeros),
        sum(
            (sum_layers(block_s, halved, halved) for block_s, _, halved in blocks),
            _sum_shared(prices),
        ),
    )


def _sum_shared(prices: Prices) -> Floats:
    """Sum the seconds of all layers' shared experts, where these compute beside the dispatch."""
    found = np.zeros(prices.max_tokens + 1)
    for name, shared_s in prices.shared_s.items() if prices.hides_shared else ():
        found += shared_s * prices.ffn_layers[name]
    return found


def sum_layers(block_s: Floats, num_layers: int, num_halved: int) -> Floats:
    """Seconds of all layers of one block, of which ``num_halved`` run once for each half of the
    tokens.
    """
    rows = np.arange(len(block_s), dtype=np.int64)
    halves_s: Floats = block_s[first_half(rows)] + block_s[rows - first_half(rows)]
    return block_s * (num_layers - num_halved) + halves_s * num_halved


def price_module(module: Prices) -> Blocks:
    """Price the layers of a module that drafts, and what stands before them."""
    found = price_blocks(module, Counter(), Counter(), ())
    return found._replace(ffn_s=found.ffn_s + module.projection_s)
