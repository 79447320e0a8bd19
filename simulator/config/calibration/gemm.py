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
    """Shortest time of a product launched from Python, seconds."""
    few_rows_s: Duration
    """Shortest time in seconds for up to 16 rows, which another kernel serves."""
    narrow_s: Duration
    """Shortest time in seconds for fewer than 64 output or 128 input features, which yet another
    one serves."""


class GemmFit(Fit):
    """A roofline with a floor: ``FLOPs / (peak x compute)`` against ``bytes / (peak x memory)``,
    plus ``floor_s``.
    """

    compute_fraction: Factor
    """Achieved share of the peak FLOP/s, for whole tiles of the largest size."""
    memory_fraction: Factor
    """Achieved share of the peak memory rate."""
    floor_s: Seconds
    """Shortest time of the kernel in seconds, launch included."""
    overlap: Exponent = 2.5
    """Exponent that combines compute and memory time: 1 without overlap, infinity with a perfect
    one."""
    tiles: Annotated[
        tuple[Annotated[tuple[Size, Size, Size], Field(strict=False)], ...], Field(strict=False)
    ] = ()
    """Triples ``(first, a, b)``: from ``first`` rows on, the kernel computes output tiles of
    ``a x b``; absent = the fastest of the usual."""
    reread: Amount = 40.0
    """Numbers by which reading slows a tile: one of ``a x b`` reads ``1/a + 1/b`` numbers for each
    multiply-add, and takes ``1 + reread (1/a + 1/b)`` times as long."""
    start_s: Seconds = 0.0
    """Seconds of a tile's start and end (filling the pipeline, writing the result) for each 128x128
    numbers of it."""
    min_split_k: Size | None = None
    """Shortest part, in input features, that ``k`` is split into where a product has fewer tiles
    than multiprocessors; absent = never split."""
    cache_bytes: MemoryBytes | None = None
    """Size of the last-level cache in bytes; absent = no operand is ever read twice."""
    sweep_width: Extent | None = None
    """Width in numbers of the strips in which the kernel sweeps the shorter side of the result,
    reading that side's operand anew for each, from the cache where it fits."""
    quantise_bytes: Bytes = 0.0
    """Bytes moved for each number of the input to convert it to the weights' format, in a pass
    before the product."""
    quantise_row_s: Seconds = 0.0
    """Seconds of one multiprocessor in that pass for each row."""
    quantise_block_s: Seconds = 0.0
    """Seconds of one multiprocessor in that pass for each 2,048 numbers of a row, or what is left
    of them."""
    eager: EagerLaunch | None = None
    """Launch times of the measured kernels where they were launched eagerly; no part of a price."""
