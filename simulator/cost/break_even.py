"""Sparsity from which products with pruned matrices are faster than those with whole ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from simulator.base.arrays import Floats
from simulator.config.sparsity import FORMATS, Block, Pruning, TwoFour, Unstructured
from simulator.cost.compute import ComputeModel

MOST_SPARSITY = 0.9999
_STEPS = 40
"""Halvings of the range in which the break-even lies: to the twelfth digit."""


class Product(NamedTuple):
    """A product ``tokens x in_features @ in_features x out_features``."""

    tokens: int
    out_features: int
    in_features: int
    dtype: str
    """Number format of the weights."""


def make_pruning(kernels: str, sparsity: float) -> Pruning:
    """Make the pruning of a kind of kernels, as calibrations name them.

    Raises:
        ValueError: if there is none.
    """
    if kernels == "two_four":
        return TwoFour(kind="two_four")
    if kernels == "block":
        return Block(kind="block", sparsity=sparsity)
    found = next(name for name in FORMATS if name == kernels)
    return Unstructured(kind="unstructured", sparsity=sparsity, format=found)


def find_speed_up(compute: ComputeModel, product: Product, pruning: Pruning) -> float:
    """Time of the product with the whole matrix over that with the pruned one."""
    rows = np.array([product.tokens])
    shape = product.in_features, product.out_features
    whole_s: Floats = compute.gemm_s(rows, *shape, product.dtype)
    pruned_s = compute.gemm_s(rows, *shape, product.dtype, pruning=pruning)
    return float(whole_s[0] / pruned_s[0])


def find_break_even(
    speed_up: Callable[[float], float], low: float = 0.0, high: float = MOST_SPARSITY
) -> float | None:
    """Find the least sparsity from ``low`` to ``high`` at which a product is as fast as the whole
    one; ``None`` where none is.

    Args:
        speed_up: by sparsity, never falling.
    """
    if speed_up(high) < 1:
        return None
    if speed_up(low) >= 1:
        return low
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if speed_up(middle) >= 1 else (middle, high)
    return high
