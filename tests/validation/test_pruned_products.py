"""Products with 2:4 matrices against published ones, and what is known of unstructured pruning.

The table holds speed-ups over cuBLASLt of cuSPARSELt's 2:4 products, summed over the four matrices
of a layer: SlideSparse (arXiv:2603.05232), appendix B, github.com/bcacdwk/vllmbench, Apache-2.0.
The calibrations' errors leave out whole models.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.config.accelerator import load_accelerator
from simulator.config.calibration import load_calibration
from simulator.config.sparsity import TwoFour, Unstructured
from simulator.cost.kernels.gemm import gemm_s
from simulator.cost.kernels.pruned import pruned_s

POINTS = pd.read_csv(Path(__file__).parent / "pruned_products.csv")
MATRICES = {
    "Llama3.2-1B": [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)],
    "Llama3.2-3B": [(5120, 3072), (3072, 3072), (16384, 3072), (3072, 8192)],
    "Qwen2.5-7B": [(4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944)],
    "Qwen2.5-14B": [(7168, 5120), (5120, 5120), (27648, 5120), (5120, 13824)],
}
"""Output and input features."""
ON_FILE = POINTS[POINTS["gpu"] != "rtx-5080"].groupby(["gpu", "dtype"])
LARGE_OPT = [
    (28672, 7168),
    (7168, 28672),
    (36864, 9216),
    (9216, 36864),
    (49152, 12288),
    (12288, 49152),
]


def speed_up(gpu, dtype, rows, matrices, pruning):
    accelerator = load_accelerator(gpu, "test")
    calibration = load_calibration(accelerator.calibration, "test").choose_engine("vllm")
    # Inputs came in the weights' format.
    whole = calibration.matrices(dtype).model_copy(
        update={"quantise_bytes": 0.0, "quantise_row_s": 0.0, "quantise_block_s": 0.0}
    )
    fit = calibration.pruned_matrices(pruning.kernels, dtype)
    rows = np.asarray(rows, dtype=np.float64)
    whole_s = sum(gemm_s(accelerator, whole, rows, k, n, dtype) for n, k in matrices)
    return whole_s / sum(
        pruned_s(accelerator, whole, fit, rows, k, n, dtype, pruning) for n, k in matrices
    )


@pytest.mark.parametrize(("gpu", "dtype"), list(ON_FILE.groups))
def test_2_4_products_are_as_fast_as_their_calibration_says(gpu, dtype):
    points = ON_FILE.get_group((gpu, dtype))
    ratios = []  # of measured time over the predicted one
    for model, group in points.groupby("model"):
        found = speed_up(gpu, dtype, group["rows"], MATRICES[model], TwoFour(kind="two_four"))
        ratios.extend(found / group["speedup"].to_numpy())
    fit = load_calibration(load_accelerator(gpu, "test").calibration, "test").pruned["two_four"][
        dtype
    ]
    errors = np.abs(1 / np.array(ratios) - 1)
    assert len(ratios) == fit.num_rows
    assert np.median(errors) <= fit.median_error * 1.15
    assert np.quantile(errors, 0.9) <= fit.p90_error * 1.15
    low, high = fit.band
    assert np.mean((np.array(ratios) >= low) & (np.array(ratios) <= high)) >= 0.8


@pytest.mark.parametrize(("sparsity", "published"), [(0.7, 1.4), (0.8, 1.7), (0.9, 2.1)])
def test_flash_llm_on_a100(sparsity, published):
    """Means over OPT's matrices with 8 to 64 tokens, fp16 (Flash-LLM's authors, October 2023)."""
    pruning = Unstructured(kind="unstructured", sparsity=sparsity, format="tiled_csl")
    found = [
        speed_up("a100-sxm", "bf16", [8, 16, 32, 64], [matrix], pruning) for matrix in LARGE_OPT
    ]
    assert np.exp(np.mean(np.log(found))) == pytest.approx(published, rel=0.08)


def test_spinfer_on_rtx_4090():
    """1.66 at 50 %, and faster than cuBLAS from 30 % on (EuroSys 2025)."""
    matrices = [
        (12288, 4096),
        (11008, 4096),
        (4096, 11008),
        (13824, 5120),
        (5120, 13824),
        (28672, 8192),
        (8192, 28672),
    ]
    half, third = (
        Unstructured(kind="unstructured", sparsity=share, format="bitmap") for share in (0.5, 0.3)
    )
    assert speed_up("rtx-4090", "bf16", [8, 16, 32], matrices, half).mean() == pytest.approx(
        1.66, rel=0.1
    )
    assert speed_up("rtx-4090", "bf16", [8, 16, 32], matrices, third).min() > 1


def test_sparse_marlin_is_5_times_as_fast_as_fp16_with_few_tokens_and_twice_with_many():
    """Groups of 128, 2:4, int4, on RTX 3090 (Sparse-Marlin's README), here on A100."""
    accelerator = load_accelerator("a100-sxm", "test")
    calibration = load_calibration("ampere", "test").choose_engine("vllm")
    rows, (n, k) = np.array([16.0, 4096.0]), (73728, 18432)
    half = gemm_s(accelerator, calibration.matrices("bf16"), rows, k, n, "bf16")
    fit = calibration.pruned_matrices("two_four", "int4")
    pruned = pruned_s(
        accelerator, calibration.matrices("int4"), fit, rows, k, n, "int4", TwoFour(kind="two_four")
    )
    assert (half / pruned)[0] == pytest.approx(5.3, rel=0.1)
    assert (half / pruned)[1] == pytest.approx(2.0, rel=0.1)


def test_rows_of_columns_are_slower_than_whole_matrices_at_usual_sparsities():
    """cuSPARSE on H100, 8,192 cubed, fp16, 78 %: 70.1 ms against 1.46."""
    found = speed_up(
        "h100-sxm", "bf16", [8192], [(8192, 8192)], Unstructured(kind="unstructured", sparsity=0.78)
    )
    assert found[0] == pytest.approx(1.459 / 70.052, rel=0.1)
