"""Skewed experts over balanced ones: measured of one rank's kernels, and predicted."""

import numpy as np
import pandas as pd
import pytest

from simulator.lab.validation.kernels.moe import Moe
from tests.shared import shared_file


@pytest.mark.measured
@pytest.mark.parametrize("alpha", [1.01, 1.2])
def test_skew_against_balance(alpha):
    table = pd.read_csv(shared_file("measurements/moe_grouped_gemm.csv.gz"))
    table = table[table.distribution.isin(["balanced", f"power_law_{alpha}"])].reset_index(
        drop=True
    )
    table["predicted_ms"] = Moe().answer(table).seconds[:, 0] * 1e3
    key = ["gpu", "engine", "moe_dtype", "model", "moe_tp_size", "moe_ep_size", "num_tokens"]
    times = table.pivot_table(
        ["latency_ms", "predicted_ms"], key, "distribution", aggfunc="min"
    ).dropna()
    measured_ratio, ratio = (
        times[name][f"power_law_{alpha}"] / times[name]["balanced"]
        for name in ("latency_ms", "predicted_ms")
    )
    assert np.median(np.abs(ratio / measured_ratio - 1)) <= 0.08
    assert (ratio < 1)[measured_ratio < 0.9].mean() >= 0.8  # skew is faster there
    assert (ratio > 1)[measured_ratio > 1.1].mean() >= 0.9


@pytest.mark.measured
@pytest.mark.parametrize("alpha", [1.01, 1.2])
def test_skew_over_64_ranks_by_engine(alpha):
    """Skewed experts over balanced ones, of one rank's kernels: with TensorRT-LLM on H100 2.9 to
    4.2 times at 128 tokens a rank (alpha 1.2), and nothing at 2. Seen of single rows: 5 to 6 % at
    the median, by engine at most 10 %, 20 % at the 90th percentile.
    """
    table = pd.read_csv(shared_file("measurements/moe_grouped_gemm.csv.gz"))
    skew, even = f"power_law_{alpha}", "balanced"
    table = table[(table.moe_ep_size == 64) & table.distribution.isin([even, skew])]
    table = table.reset_index(drop=True)
    table["predicted_ms"] = Moe().answer(table).seconds[:, 0] * 1e3
    key = ["gpu", "engine", "moe_dtype", "model", "moe_tp_size", "num_tokens"]
    names = ["latency_ms", "predicted_ms"]
    times = table.pivot_table(names, key, "distribution", aggfunc="min").dropna()
    measured, predicted = (times[name][skew] / times[name][even] for name in names)
    error = (predicted / measured - 1).rename("error").reset_index()
    assert error.error.abs().groupby([error.gpu, error.engine]).median().max() < 0.15
    quoted = error[(error.gpu == "h100") & (error.engine == "trtllm")]
    at = quoted.groupby("num_tokens").error.median()
    assert abs(at[64 * 2]) < 0.15
    if alpha == 1.2:
        assert abs(at[64 * 128]) < 0.15
