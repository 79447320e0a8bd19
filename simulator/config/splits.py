"""Splits and number formats that a serving engine refuses, as its files in
``cluster_configs/engines`` have it.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from simulator.base.frozen import Frozen
from simulator.base.quantities import Width
from simulator.config.dtypes import BYTES_PER_ELEMENT

_Names = Annotated[tuple[str, ...], Field(strict=False)]
_Widths = Annotated[tuple[Width, ...], Field(strict=False)]


class Blocks(Frozen):
    """Widths that a rank's part of a matrix must be a multiple of, for one format of weights."""

    matrices: Width = 1
    """Number that the columns of a rank's part must be a multiple of in attention, dense
    feed-forward blocks and shared experts."""
    experts: Width = 1
    """Number that the columns of a rank's part of a routed expert must be a multiple of; experts
    that are kept whole are not bound by it."""
    refined_to: Width | None = None
    """Smallest number of columns that the scales of experts are refined to where their parts are no
    multiple; absent = they are not."""


class CacheHeads(Frozen):
    """A format of the KV cache on one generation of GPUs."""

    head_sizes: _Widths = ()
    """Numbers in a head that the format is there for; empty = any."""
    latent: bool = True
    """Whether the format is there for latent attention."""


class Splits(Frozen):
    """Splits and number formats that an engine refuses to start with; everything else is
    accepted.
    """

    generations: _Names = ()
    """Generations of accelerators (names of their calibrations) that it runs on; empty = any."""
    kv_heads_divide: bool = False
    """Whether tensor parallelism must divide the KV heads or be a multiple of them."""
    experts_divide: bool = False
    """Whether expert parallelism must divide the experts, copies included."""
    weights: dict[str, Blocks] = {}
    """Widths that parts of matrices must be a multiple of, by number format of the weights."""
    weights_on: dict[str, _Names] = {}
    """Generations that number formats of weights are there for; a format that is absent is for
    all."""
    cache_on: dict[str, dict[str, CacheHeads]] = {}
    """Caches that are there, by number format and generation; a generation that is absent has no
    limit."""

    @model_validator(mode="after")
    def _names_formats(self) -> Self:
        for key in ("weights", "weights_on", "cache_on"):
            for name in getattr(self, key):
                if name not in BYTES_PER_ELEMENT:
                    known = ", ".join(BYTES_PER_ELEMENT)
                    raise ValueError(f"{key} names the format '{name}', known are {known}")
        return self
