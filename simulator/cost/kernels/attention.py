"""Coefficients of attention kernels, from fits and the accelerator's peaks.

Pairs are computed by matrix products and exponentials that overlap, so both matter: heads of 64 do
half of the products of heads of 128, and as many exponentials. A sequence's last query tokens must
wait for all of its keys on the one multiprocessor that computes them, so a short batch leaves
others idle. Rows, sequences and tokens that are written into the cache take a time each on one
multiprocessor; there are as many at once as there are multiprocessors.
"""

from __future__ import annotations

from typing import Literal

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import AttentionFit
from simulator.cost.kernels.context import Rates
from simulator.work.context_kernels import ContextKernel

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
