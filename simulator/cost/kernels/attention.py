"""Attention over the context: coefficients, and seconds from sums over the sequences of a step."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from simulator.base.arrays import Floats
from simulator.base.jit import jit, jit_inner
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import AttentionFit
from simulator.work.context import ContextKernel

_HIDING = 3.0
"""Exponent of the overlap of products and exponentials, the same as of compute and memory in dense
products."""
_APPEND_THREADS = 512
"""Most threads of the block that vLLM's ``reshape_and_cache_flash`` runs for each token written
into the cache, each thread writing one element or more. Beyond 512 elements the time of a thread
grows no longer with the width."""


def context_rates(
    accelerator: AcceleratorSpec,
    fit: AttentionFit,
    kernel: ContextKernel,
    phase: Literal["prefill", "decode"],
) -> Rates:
    """Coefficients of one kernel that reads the attention context."""
    is_prompt = phase == "prefill" and not fit.absorbs
    flops, entry_bytes, token_bytes = (
        (kernel.prefill_flops, kernel.prefill_bytes, kernel.prefill_token_bytes)
        if is_prompt
        else (kernel.decode_flops, kernel.decode_bytes, kernel.decode_token_bytes)
    )
    parallel, heads = accelerator.num_multiprocessors, kernel.num_heads
    products_s = flops / (accelerator.flops_per_s(fit.computed_as) * fit.compute_fraction)
    softmax_s = heads * fit.softmax_s / parallel
    pair_s = (products_s**_HIDING + softmax_s**_HIDING) ** (1 / _HIDING)
    bytes_per_s = accelerator.memory_bytes_per_s * fit.memory_fraction
    append_s = min(kernel.appended, _APPEND_THREADS) * fit.append_s / parallel
    return Rates(
        floor_s=fit.floor_s,
        pair_s=pair_s,
        longest_s=fit.longest_rows * pair_s * parallel / heads if heads else 0.0,
        entry_s=entry_bytes * fit.entry_passes / bytes_per_s,
        token_s=token_bytes / bytes_per_s + append_s,
        row_s=heads * fit.row_s / parallel,
        sequence_s=kernel.num_kv_heads * fit.sequence_s / parallel,
        overlap=fit.overlap,
        tile_rows=float(fit.tile_rows),
        window_block=fit.window_block if kernel.slides else 0.0,
        split_entries=fit.split_entries,
        split_s=fit.split_s,
    )


NUM_SUMS = 6
"""Sums over a step's sequences that a kernel's time depends on."""


class Rates(NamedTuple):
    """Coefficients of one kernel on one rank, in one layer: seconds of the whole accelerator."""

    floor_s: float
    """Seconds of a call."""
    pair_s: float = 0.0
    """Seconds for a (query, key) pair, all heads."""
    longest_s: float = 0.0
    """Seconds for each entry of the longest attended context."""
    entry_s: float = 0.0
    """Seconds for a cached entry, read once."""
    token_s: float = 0.0
    """Seconds for a new token."""
    row_s: float = 0.0
    """Seconds for a row: a new token, or one that fills up a sequence's last tile."""
    sequence_s: float = 0.0
    """Seconds for a sequence."""
    overlap: float = 1.0
    """Exponent of overlap: 1 where the three parts run one after the other, large where the longest
    hides the rest."""
    tile_rows: float = 1.0
    """Rows of a tile."""
    window_block: float = 0.0
    """Entries that a kernel reads beyond a sliding window."""
    split_entries: float = 0.0
    """Entries beyond which a context is split over multiprocessors."""
    split_s: float = 0.0
    """Seconds to combine the parts, once where the longest context has more entries than
    ``split_entries``."""


@jit_inner
def split_s(rates: Floats, sums: Floats) -> float:
    """Seconds to combine the parts of a long context, once for a kernel whatever its number of
    sequences.
    """
    seconds: float = rates[11] if sums[5] > rates[10] else 0.0
    return seconds


@jit_inner
def work_s(rates: Floats, sums: Floats) -> float:
    """Seconds of one kernel beyond its floor.

    Args:
        rates: fields of :class:`Rates`.
        sums: sums over the sequences, ``[NUM_SUMS]``: pairs, entries, tokens, rows, sequences; the
            last is no sum but the longest attended context, in entries.
    """
    compute = sums[0] * rates[1] + sums[5] * rates[2]
    stream = sums[1] * rates[3]
    setup = sums[2] * rates[4] + sums[3] * rates[5] + sums[4] * rates[6]
    seconds: float = split_s(rates, sums)
    overlap, most = rates[7], max(compute, stream, setup)
    if overlap == 1.0:
        seconds += compute + stream + setup
    elif most > 0.0:  # divided by the largest, so that no power overflows
        total = (compute / most) ** overlap + (stream / most) ** overlap + (setup / most) ** overlap
        seconds += most * total ** (1.0 / overlap)
    return seconds


@jit
def kernels_s(rates_nk: Floats, sums_nk: Floats) -> Floats:
    """Seconds of many kernels, floors included, ``[n]``."""
    seconds = np.empty(len(rates_nk))
    for i in range(len(rates_nk)):
        seconds[i] = rates_nk[i, 0] + work_s(rates_nk[i], sums_nk[i])
    return seconds
