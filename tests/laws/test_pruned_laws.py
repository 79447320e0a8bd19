"""Pruned matrices on accelerators: bytes that are exact, and times that no kernel could beat."""

import numpy as np
import pytest

from simulator.base.data import available_files
from simulator.config.accelerator import load_accelerator
from simulator.config.calibration import CalibrationFile
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.host import load_any_calibration
from simulator.config.sparsity import TwoFour, Unstructured, stored_bytes
from simulator.cost.compute.roofline import RooflineModel
from simulator.step.prices import Prices
from tests.parts import freeze

ROWS = np.array([0, 1, 8, 64, 512, 8192])
N, K = 8192, 4096


def unstructured(sparsity, stored_as="csr"):
    return Unstructured(kind="unstructured", sparsity=sparsity, format=stored_as)


def pruning_for(kernels, sparsity=0.5):
    return TwoFour(kind="two_four") if kernels == "two_four" else unstructured(sparsity, kernels)


def everything_measured():
    for name in available_files("cluster_configs/accelerators"):
        accelerator = load_accelerator(name, "test")
        calibration = load_any_calibration(accelerator.calibration, "test")
        if isinstance(calibration, CalibrationFile):
            for kernels, dtypes in calibration.pruned.items():
                for dtype in dtypes:
                    yield pytest.param(accelerator, kernels, dtype, id=f"{name}-{kernels}-{dtype}")


MEASURED = list(everything_measured())
BY_SPARSITY = [case for case in MEASURED if case.values[1] != "two_four"]


def model_of(accelerator):
    return RooflineModel(
        accelerator, load_any_calibration(accelerator.calibration, "test").choose_engine("vllm")
    )


@pytest.mark.parametrize(
    ("pruning", "expected"),
    [
        (TwoFour(kind="two_four"), 128 * 256 / 2 * 2 + 128 * 256 / 2 / 4),
        (unstructured(0.75), 128 * 256 / 4 * (2 + 4) + 4 * 129),
        (unstructured(0.75, "tiled_csl"), 128 * 256 / 4 * (2 + 2) + 4 * (4 + 1)),
        (unstructured(0.75, "bitmap"), 128 * 256 / 4 * 2 + 128 * 256 / 8 + 4 * (2 * 4 + 1)),
    ],
)
def test_what_is_stored_is_exact(pruning, expected):
    assert stored_bytes(pruning, 128, 256, 2.0) == expected


@pytest.mark.parametrize(("accelerator", "kernels", "dtype"), MEASURED)
def test_no_product_is_faster_than_its_bytes_and_multiplications_allow(accelerator, kernels, dtype):
    pruning = pruning_for(kernels, 0.8)
    seconds = model_of(accelerator).gemm_s(ROWS, K, N, dtype, pruning=pruning)
    weights = stored_bytes(pruning, N, K, BYTES_PER_ELEMENT[dtype])
    assert seconds[0] == 0.0
    assert np.all(seconds[1:] >= weights / accelerator.memory_bytes_per_s)
    assert np.all(
        seconds >= 2.0 * ROWS * pruning.num_stored(N, K) / (1.15 * accelerator.flops_per_s(dtype))
    )
    assert np.all(np.diff(seconds) >= 0)


@pytest.mark.parametrize(("accelerator", "kernels", "dtype"), BY_SPARSITY)
def test_more_sparsity_never_takes_longer_and_none_at_all_is_slower_than_the_whole(
    accelerator, kernels, dtype
):
    model = model_of(accelerator)
    times = np.array(
        [
            model.gemm_s(ROWS[1:], K, N, dtype, pruning=pruning_for(kernels, share))
            for share in (0.0, 0.3, 0.5, 0.8, 0.95)
        ]
    )
    assert np.all(np.diff(times, axis=0) <= 0)
    assert np.all(times[0] > model.gemm_s(ROWS[1:], K, N, dtype))


def deployment(model="qwen3-32b", cluster="h100-sxm-8", tp=2, **more):
    table = {
        "name": "a",
        "model": model,
        "cluster": cluster,
        "parallel": {"tp": tp},
        "replicas": 1,
        **more,
    }
    return freeze(table)


def test_a_pruned_deployment_holds_exactly_the_bytes_that_are_left():
    whole, pruned = (
        deployment(weight_dtype="bf16"),
        deployment(weight_dtype="bf16", pruning={"kind": "two_four"}),
    )
    model = whole.placement.model
    weights = (
        3
        * model.hidden_size
        * next(iter(model.ffns.values())).intermediate_size
        * model.num_layers
        / 2
    )
    assert (
        whole.serving.capacity.weights_bytes - pruned.serving.capacity.weights_bytes
        == pytest.approx(weights * (2 - 1 - 1 / 8))
    )
    assert pruned.serving.capacity.tokens > whole.serving.capacity.tokens


def test_a_pruned_deployment_s_blocks_are_priced_as_such():
    rows = np.array([1, 64, 8192])
    pruning = {"kind": "two_four"}
    name, whole_s = next(
        iter(Prices(deployment(weight_dtype="bf16").placement, 8192, rows).ffn_s.items())
    )
    pruned_s = Prices(deployment(weight_dtype="bf16", pruning=pruning).placement, 8192, rows).ffn_s[
        name
    ]
    assert (
        1.3 < whole_s[2] / pruned_s[2] < 2.0
    )  # cuSPARSELt on H100, 4,096 tokens and more: 1.4 to 1.7
