"""Attention kernels of batches whose sequences are alike, as tables time them, priced by the
simulator's own formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import AttentionFit
from simulator.cost.kernels.attention import context_rates
from simulator.cost.kernels.context import kernels_s
from simulator.validation import Answers
from simulator.validation.error_bands import Band
from simulator.validation.extrapolation import OUTSIDE, Doubt, outside_of, settle
from simulator.validation.sizes import numbers, refusals
from simulator.work.context import uniform_sums
from simulator.work.context_kernels import ContextKernel

Phase = Literal["prefill", "decode"]
Ints = NDArray[np.int64]

KV_FORMATS = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8": "fp8",
    "int8": "int8",
}
"""Names in tables: the format here."""
_BEHIND = "tokens cached before a prompt were not measured"
_MOST_SEQUENCES = 2.0**20
_MOST_TOKENS = 2.0**31
"""Of one batch: at 128 bytes each they fill the memory of the largest GPU."""
PHASES: dict[str, Phase] = {
    "context_attention": "prefill",
    "generation_attention": "decode",
    "context_mla": "prefill",
    "generation_mla": "decode",
    "mla_context_module": "prefill",
    "mla_generation_module": "decode",
    "context": "prefill",
    "generation": "decode",
}


class Batches(NamedTuple):
    """Batches ``[n]`` of equal sequences, and which kernel each is for."""

    batch_size: Ints
    context: Ints
    """Tokens of a sequence that are in the cache already."""
    new: Ints
    kernel: Ints
    """Place in a list of kernels."""

    def take(self, rows: NDArray[np.bool_]) -> Batches:
        """Some of them."""
        return Batches(*(column[rows] for column in self))


def context_s(
    batches: Batches, kernels: Sequence[tuple[AcceleratorSpec, AttentionFit, ContextKernel, Phase]]
) -> NDArray[np.float64]:
    """Seconds ``[n]`` of each batch's kernel."""
    rates = [context_rates(*kernel) for kernel in kernels]
    windows = np.array(
        [
            k.window + int(rate.window_block)
            for (_, _, k, _), rate in zip(kernels, rates, strict=True)
        ],
        dtype=np.int64,
    )
    compressions = np.array([k.compression for _, _, k, _ in kernels], dtype=np.int64)
    rates_nk = np.array(rates)[batches.kernel]
    tile_rows = np.array([rate.tile_rows for rate in rates])
    which = batches.kernel
    sums_nk = uniform_sums(
        batches.batch_size,
        batches.context,
        batches.new,
        windows[which],
        compressions[which],
        tile_rows[which],
    )
    seconds: NDArray[np.float64] = kernels_s(rates_nk, sums_nk)
    return seconds


def whole_sizes(
    table: pd.DataFrame, columns: Sequence[str], may_be_none: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.object_]]:
    """Columns ``[c, n]`` without fractions, and why each row's are no sizes of a kernel, or ``""``.

    Args:
        columns: ``batch_size``, ``isl`` and ``step`` among them.
        may_be_none: those that may be 0.
    """
    sizes = numbers(table, columns)
    wrong = refusals(sizes, dict.fromkeys(may_be_none, 0.0), {"batch_size": _MOST_SEQUENCES})
    whole = np.floor(np.stack([np.where(wrong == "", values, 1.0) for values in sizes.values()]))
    named = dict(zip(columns, whole, strict=True))
    is_full = named["batch_size"] * (named["isl"] + named["step"]) > _MOST_TOKENS
    wrong[is_full & (wrong == "")] = (
        f"batch_size times isl + step is above {_MOST_TOKENS:,.0f} tokens, "
        "more than any cache holds"
    )
    return whole, wrong


def fill(
    answers: Answers,
    places: NDArray[np.intp],
    seconds: NDArray[np.float64],
    fit: AttentionFit,
    quantities: dict[str, NDArray[np.float64]],
    doubts: Sequence[Doubt],
    is_behind: NDArray[np.bool_],
) -> None:
    """Put what is predicted for some rows into the answers, with bands and statuses.

    Args:
        quantities: by the names of the fit's domain.
        doubts: about all of these rows.
        is_behind: which rows are prompts behind cached tokens.
    """
    outside = outside_of(fit, **quantities)
    statuses, wider = settle(len(places), doubts, outside, [(Doubt(_BEHIND, OUTSIDE), is_behind)])
    low, high = Band.of(fit).spread(seconds, wider)
    answers.seconds[places, 0], answers.low[places, 0], answers.high[places, 0] = seconds, low, high
    for place, status in zip(places, statuses, strict=True):
        answers.status[place] = status
