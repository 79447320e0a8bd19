"""How far the calibration is from the kernels it was fitted on, and from some that it was not.

Tables: NVIDIA aiconfigurator-core 0.12.0, Apache-2.0. Errors are of ``ln(predicted / measured)`` on fixed random samples; each
limit leaves about a quarter more than was seen when the fit was made.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.cost.compute.roofline import Roofline
from simulator.spec.accelerator import load_accelerator
from simulator.spec.calibration import load_calibration

MEASUREMENTS = Path(__file__).parents[2].parent / "shared" / "measurements"
pytestmark = pytest.mark.skipif(not MEASUREMENTS.is_dir(), reason="the measured tables are not beside this checkout")

GPUS = {"h100": "h100-sxm", "b200": "b200-sxm"}


def table(name, query, size=None):
    rows = pd.read_csv(MEASUREMENTS / f"{name}.csv.gz").query(query)
    return rows.sample(min(size or len(rows), len(rows)), random_state=7)


def model(gpu):
    accelerator = load_accelerator(GPUS[gpu], "test")
    return Roofline().prepare(accelerator, load_calibration(accelerator.calibration, "test").on("any"))


def check(predicted_s, measured_s, median, tail, bias):
    error = np.log(np.asarray(predicted_s) / np.asarray(measured_s))
    seen = {"median": np.median(np.abs(error)), "tail": np.quantile(np.abs(error), 0.9), "bias": abs(np.median(error))}
    limits = {"median": median, "tail": tail, "bias": bias}
    assert all(seen[name] <= limits[name] for name in limits), f"{seen} exceeds {limits}"


def expert_layer_s(roofline, row, rows_G, dtype):
    inner = row.inter_size // row.moe_tp_size
    up = roofline.grouped_gemm_s(rows_G[None], row.hidden_size, 2 * inner, dtype)[0]
    return up + roofline.grouped_gemm_s(rows_G[None], inner, row.hidden_size, dtype)[0]


def balanced(row):
    pairs, experts = row.num_tokens * row.topk // row.moe_ep_size, row.num_experts // row.moe_ep_size
    rows_G = np.full(experts, pairs // experts, dtype=float)
    rows_G[: pairs % experts] += 1
    return rows_G


USABLE = "not (engine == 'vllm' and moe_dtype == 'fp8') and not (model == 'deepseek-v3' and engine != 'trtllm')"
"""Untuned kernels, and times shorter than the weights can be read in."""


@pytest.mark.parametrize(
    ("gpu", "measured_as", "dtype", "median", "tail"),
    [
        ("h100", ["bfloat16"], "bf16", 0.08, 0.5),
        ("h100", ["fp8", "fp8_block"], "fp8", 0.08, 0.48),
        ("b200", ["bfloat16"], "bf16", 0.2, 0.75),
        ("b200", ["fp8", "fp8_block"], "fp8", 0.2, 0.65),
        ("b200", ["nvfp4"], "nvfp4", 0.31, 1.1),
    ],
)
def test_balanced_experts(gpu, measured_as, dtype, median, tail):
    query = f"gpu == '{gpu}' and moe_dtype in {measured_as} and distribution == 'balanced' and moe_ep_size == 1 and {USABLE}"
    rows = table("moe_grouped_gemm", query, 500)
    roofline = model(gpu)
    predicted = [expert_layer_s(roofline, r, balanced(r), dtype) for r in rows.itertuples()]
    check(predicted, rows.latency_ms / 1e3, median, tail, bias=0.06)


def power_law(row, exponent, rng):
    """Tokens of each expert: loads drawn from a density ``x^-exponent`` on [1, 0.8 T] (assumed), scaled to all pairs."""
    power, most = 1 - exponent, max(0.8 * row.num_tokens, 2.0)
    loads = ((most**power - 1) * rng.random(row.num_experts) + 1) ** (1 / power)
    shares = np.minimum(loads / loads.sum() * row.num_tokens * row.topk, row.num_tokens)
    return np.floor(shares + rng.random(row.num_experts))


@pytest.mark.parametrize("exponent", [1.01, 1.2])
def test_skewed_experts_roughly(exponent):
    # Not fitted. The table does not say how many tokens each expert got, so the draw differs row by row.
    query = f"gpu == 'h100' and moe_dtype == 'fp8_block' and distribution == 'power_law_{exponent}' and moe_ep_size == 1"
    rows = table("moe_grouped_gemm", f"{query} and {USABLE} and num_tokens >= 16", 300)
    roofline, rng = model("h100"), np.random.default_rng(7)
    predicted = [expert_layer_s(roofline, r, power_law(r, exponent, rng), "fp8") for r in rows.itertuples()]
    check(predicted, rows.latency_ms / 1e3, median=0.3, tail=0.8, bias=0.25)
