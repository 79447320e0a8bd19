"""Facts of a deployment that decide which calibration entries price it."""

from __future__ import annotations

from typing import NamedTuple

from simulator.config.pruning import Pruning


class PriceKey(NamedTuple):
    """The facts that decide which entries of a calibration price a deployment.

    None has a default: who left one out would get the entries of another deployment, and their
    error bands with them.
    """

    weights: str
    """Format of dense matrices."""
    experts: str | None
    """Format of routed experts; ``None`` for a dense model."""
    num_experts: int | None
    """Routed experts of a layer: engines run few by other kernels; ``None`` for a dense model."""
    travels: bool
    """Whether tokens travel to their experts."""
    is_split: bool
    """Whether matrices are split over tensor-parallel ranks, whose results are summed."""
    kernels: tuple[str, ...]
    """Names of the exchange kernels between ranks and experts, for few tokens and for many."""
    cache: str
    """Format of the KV cache."""
    is_latent: bool
    """Whether the cache holds latent vectors (MLA)."""
    pruning: Pruning | None
    """Pruning of the matrices of feed-forward blocks; ``None`` where they are whole."""
