"""Dense matrix products."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simulator.base.frozen import Frozen
from simulator.base.quantities import (
    Amount,
    Bytes,
    Duration,
    Exponent,
    Extent,
    Factor,
    MemoryBytes,
    Seconds,
    Size,
)
from simulator.config.calibration.fit import Fit


class EagerLaunch(Frozen):
    """Shortest time between kernels that Python launches one by one.

    Tables that were timed so hold it wherever the kernel is shorter; engines that replay CUDA
    graphs do not pay it, so no price in the simulator contains it. ``moesim validate kernels gemm``
    adds it to be compared with such a table.
    """

    seconds: Duration
    few_rows_s: Duration
    """For up to 16 rows, which another kernel serves."""
    narrow_s: Duration
    """For fewer than 64 output or 128 input features, which yet another one serves."""


class GemmFit(Fit):
    """A roofline with a floor: ``FLOPs / (peak x compute)`` against ``bytes / (peak x memory)``,
    plus ``floor_s``.
    """

    compute_fraction: Factor
    """Of the peak FLOP/s, for whole tiles of the largest size."""
    memory_fraction: Factor
    """Of the peak memory rate."""
    floor_s: Seconds
    """Shortest time of the kernel, launch included."""
    overlap: Exponent = 2.5
    """Exponent that combines compute and memory time: 1 without overlap, infinity with a perfect
    one."""
    tiles: Annotated[
        tuple[Annotated[tuple[Size, Size, Size], Field(strict=False)], ...], Field(strict=False)
    ] = ()
    """``(first, a, b)``: from ``first`` rows on, the kernel computes output tiles of ``a x b``;
    absent: the fastest of the usual."""
    reread: Amount = 40.0
    """A tile of ``a x b`` reads ``1/a + 1/b`` numbers for each multiply-add, which slows it by ``1
    + reread (1/a + 1/b)``."""
    start_s: Seconds = 0.0
    """A tile's start and end (filling the pipeline, writing the result) for each 128x128 numbers of
    it."""
    min_split_k: Size | None = None
    """A product with fewer tiles than multiprocessors is split along ``k`` into parts of at least
    this many; absent: never."""
    cache_bytes: MemoryBytes | None = None
    """Of the last-level cache; absent: no operand is ever read twice."""
    sweep_width: Extent | None = None
    """The kernel sweeps the shorter side of the result in strips at least so wide, and reads that
    side's operand anew for each strip; where it fits the cache, not from memory."""
    quantise_bytes: Bytes = 0.0
    """Moved for each number of the input to convert it to the weights' format, in a pass before the
    product."""
    quantise_row_s: Seconds = 0.0
    """Seconds of one multiprocessor in that pass for each row."""
    quantise_block_s: Seconds = 0.0
    """Likewise for each 2,048 numbers of a row, or what is left of them."""
    eager: EagerLaunch | None = None
    """Where the measured kernels were launched eagerly; no part of a price."""
