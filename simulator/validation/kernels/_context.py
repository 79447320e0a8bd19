"""Attention kernels of batches whose sequences are alike, as tables time them, priced by the simulator's own formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.cost.compute._attention import context_rates
from simulator.cost.compute.context import kernels_s
from simulator.spec.accelerator import AcceleratorSpec
from simulator.spec.calibration import AttentionFit
from simulator.validation import OK, Answers
from simulator.validation.bands import Band
from simulator.work.context import uniform_sums
from simulator.work.lookback import Lookback

Phase = Literal["prefill", "decode"]
Ints = NDArray[np.int64]

KV_FORMATS = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "bf16": "bf16", "fp16": "fp16", "fp8": "fp8", "int8": "int8"}
"""Names in tables: the format here."""
_BEHIND = "tokens cached before a prompt"
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


def context_s(batches: Batches, kernels: Sequence[tuple[AcceleratorSpec, AttentionFit, Lookback, Phase]]) -> NDArray[np.float64]:
    """Seconds ``[n]`` of each batch's kernel."""
    rates = [context_rates(*kernel) for kernel in kernels]
    windows = np.array(
        [k.window + int(rate.window_block) for (_, _, k, _), rate in zip(kernels, rates, strict=True)], dtype=np.int64
    )
    compressions = np.array([k.compression for _, _, k, _ in kernels], dtype=np.int64)
    rates_nk = np.array(rates)[batches.kernel]
    tile_rows = np.array([rate.tile_rows for rate in rates])
    which = batches.kernel
    sums_nk = uniform_sums(batches.batch_size, batches.context, batches.new, windows[which], compressions[which], tile_rows[which])
    seconds: NDArray[np.float64] = kernels_s(rates_nk, sums_nk)
    return seconds


def whole_numbers(table: pd.DataFrame, columns: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Columns ``[c, n]``, and which rows hold a number of 0 or more in all of them."""
    values = np.stack([pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=float) for name in columns])
    return np.floor(values), (np.isfinite(values) & (values >= 0) & (values < 2**31)).all(axis=0)


def fill(
    answers: Answers,
    places: NDArray[np.intp],
    seconds: NDArray[np.float64],
    fit: AttentionFit,
    quantities: dict[str, NDArray[np.float64]],
    guesses: list[str],
    assumed: str,
    is_behind: NDArray[np.bool_],
) -> None:
    """Put what is predicted for some rows into the answers, with bands and statuses.

    Args:
        quantities: by the names of the fit's domain.
        guesses: what is guessed about all of these rows.
        assumed: what no measurement stands behind; the fit's band is as wide as that asks for.
        is_behind: which rows are prompts behind cached tokens.
    """
    outside: list[list[str]] = [[] for _ in places]
    for name, (low, high) in fit.domain.items():
        if name in quantities:
            for place in np.flatnonzero((quantities[name] < low) | (quantities[name] > high)):
                outside[place].append(name)
    for place in np.flatnonzero(is_behind):
        outside[place].append(_BEHIND)
    is_guessed = np.array([bool(guesses or names) for names in outside])
    low_s, high_s = Band.of(fit).around(seconds, is_guessed)
    answers.seconds[places, 0], answers.low[places, 0], answers.high[places, 0] = seconds, low_s, high_s
    for place, names in zip(places, outside, strict=True):
        reasons = [assumed] if assumed else []
        reasons += [*guesses, f"{', '.join(names)} outside the measured range"] if names else guesses
        answers.status[place] = f"extrapolated: {'; '.join(reasons)}" if reasons else OK
