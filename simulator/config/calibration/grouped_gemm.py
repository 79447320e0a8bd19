"""The products of the routed experts of a rank."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simulator.base.quantities import Amount, Exponent, Extent, Factor, Seconds, Size
from simulator.config.calibration.fit import Fit
from simulator.config.dtypes import DType


class GroupedGemmFit(Fit):
    """A roofline with floors for one kernel, of which a layer has two, and the passes over tokens
    that go with them.
    """

    compute_fraction: Factor
    """Achieved share of the peak FLOP/s, for whole tiles of 128 x 128."""
    computes_in: DType | None = None
    """Number format whose peak that is, where it is not the weights' own: weight-only kernels
    compute in 16 bits."""
    memory_fraction: Factor
    """Achieved share of the peak memory rate."""
    floor_s: Seconds
    """Shortest time of the kernel in seconds, launch included."""
    slot_s: Seconds = 0.0
    """Seconds added for each expert slot of the rank, whether it has tokens or not: offsets,
    descriptors, pointers."""
    touched_s: Seconds = 0.0
    """Seconds added for each expert that has tokens, beyond reading its weights."""
    overlap: Exponent = 3.0
    """Exponent that combines compute and memory time: 1 without overlap, infinity with a perfect
    one."""
    least_depth: Extent = 2048.0
    """Fewest input features of a part where fewer tiles than multiprocessors are split along
    them."""
    tile_rows: Annotated[tuple[Size, ...], Field(strict=False, min_length=1)] = (
        16,
        32,
        64,
        128,
        256,
    )
    """Tokens of a tile, of which the kernel takes the fastest."""
    tile_holds_share: bool = False
    """Whether no tile is below an expert's even share of all choices that the rank sees. Launchers
    that only know how many choices there are (Marlin, FlashInfer, TensorRT-LLM's generated kernels)
    count those of other ranks' experts too, and so compute tiles that are mostly empty where
    experts are split over ranks."""
    tile_reread: Amount = 40.0
    """Numbers by which reading slows a tile: one of ``a x b`` reads ``1/a + 1/b`` numbers for each
    multiply-add, and takes ``1 + tile_reread (1/a + 1/b)`` times as long."""
    weight_reread: Amount = 0.0
    """Share of an expert's weights that each further tile of its tokens reads from memory again,
    since the cache has lost it."""
    pair_passes: Amount = 1.0
    """Number of times that the activation and the sorting stream ``3 width + 4 hidden`` 16-bit
    numbers for each of the rank's rows."""
    choice_passes: Amount = 0.0
    """Number of times that such a stream passes for every choice of the tokens that the rank sees,
    those of other ranks' experts included: kernels that keep a row for each choice convert, zero
    and add up all of them."""
