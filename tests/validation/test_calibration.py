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


def context_s(rates, pairs, entries, rows):
    flops = pairs * 4 * rows.num_heads * rows.head_dim
    num_bytes = entries * 2 * rows.num_key_value_heads * rows.head_dim * 2
    return rates.floor_s + np.maximum(flops / rates.flops_per_s, num_bytes / rates.bytes_per_s)


@pytest.mark.parametrize(("gpu", "median", "tail"), [("h100", 0.18, 0.52), ("b200", 0.26, 0.58)])
def test_prefill_attention(gpu, median, tail):
    query = f"gpu == '{gpu}' and phase == 'context_attention' and window_size == 0 and kv_cache_dtype == 'bfloat16' and isl >= 1024"
    rows = table("attention", f"{query} and head_dim == 128 and num_key_value_heads < num_heads")
    pairs = rows.batch_size * rows.isl * (rows.isl + 1) / 2
    predicted = context_s(model(gpu).context_rates("prefill"), pairs, rows.batch_size * rows.isl, rows)
    check(predicted, rows.latency_ms / 1e3, median, tail, bias=0.06)


@pytest.mark.parametrize("gpu", ["h100", "b200"])
def test_decode_attention(gpu):
    query = f"gpu == '{gpu}' and phase == 'generation_attention' and window_size == 0 and kv_cache_dtype == 'bfloat16'"
    rows = table("attention", f"{query} and batch_size <= 256")
    seen = rows.batch_size * (rows.step + 1)
    predicted = context_s(model(gpu).context_rates("decode"), seen, seen, rows)
    check(predicted, rows.latency_ms / 1e3, median=0.09, tail=0.38, bias=0.03)


@pytest.mark.parametrize(("gpu", "engine", "tail"), [("h100", "sglang", 0.5), ("h100", "trtllm", 0.5), ("b200", "trtllm", 0.73)])
def test_latent_attention_decode(gpu, engine, tail):
    # Only the compute share is fitted on these kernels; floor and memory share are those of grouped-query attention.
    query = f"gpu == '{gpu}' and engine == '{engine}' and phase == 'generation_mla' and kv_cache_dtype == 'bfloat16'"
    rows = table("mla", f"{query} and batch_size <= 256")
    rates, entries = model(gpu).context_rates("decode"), rows.batch_size * (rows.step + 1.0)
    flops, num_bytes = entries * 2 * rows.num_heads * (2 * 512 + 64), entries * 576 * 2
    predicted = rates.floor_s + np.maximum(flops / rates.flops_per_s, num_bytes / rates.bytes_per_s)
    check(predicted, rows.latency_ms / 1e3, median=0.25, tail=tail, bias=0.25)
