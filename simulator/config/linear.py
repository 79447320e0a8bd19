"""A weight matrix that every token passes through, and how tensor parallelism splits it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Split = Literal["column", "row", "whole"]


class Linear(NamedTuple):
    """``out_features x in_features`` weights: the common currency of parameter counts, FLOPs and
    tensor parallelism.
    """

    name: str
    in_features: int
    out_features: int
    split: Split
    """``column`` splits the outputs over the tensor-parallel ranks, ``row`` the inputs, ``whole``
    is copied to each."""
    copies: int = 1
    """Equal matrices side by side (one per block-diagonal group); a token passes through each."""

    @property
    def num_parameters(self) -> int:
        """Weights, without a bias."""
        return self.in_features * self.out_features * self.copies
