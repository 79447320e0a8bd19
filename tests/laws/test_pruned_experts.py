"""Pruned experts: bytes that are exact, and grouped products that no kernel could beat."""

import numpy as np
import pytest

from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.host import load_any_calibration
from simulator.config.sparsity import Unstructured, stored_bytes
from simulator.cost.compute.host import HostModel
from simulator.deployment.facts import warnings_of
from simulator.step.prices import Prices
from tests.laws.test_pruned_laws import BY_SPARSITY, MEASURED, model_of, pruning_for
from tests.parts import freeze

N, K = 14336, 4096
ROWS_RG = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [8, 1, 3, 0], [64, 64, 64, 64], [2048, 9, 9, 9]])
EXPERTS_MEASURED = [
    case for case in MEASURED if case.values[2] in model_of(case.values[0]).calibration.grouped_gemm
]
TWO_FOUR = {"kind": "two_four", "blocks": "experts"}


def deployment(**more):
    table = {
        "name": "a",
        "model": "mixtral-8x7b",
        "cluster": "h100-sxm-8",
        "parallel": {"tp": 2},
        "replicas": 1,
        "weight_dtype": "bf16",
        **more,
    }
    return freeze(table)


def weights_bytes(**more):
    return deployment(**more).serving.capacity.weights_bytes


def expert_seconds(**more):
    prices = Prices(deployment(**more).placement, 512, np.array([1, 512]))
    return prices.expert_step(0, np.array([512]), 0).experts_R


@pytest.mark.parametrize(("accelerator", "kernels", "dtype"), EXPERTS_MEASURED)
def test_no_grouped_product_is_faster_than_its_bytes_and_multiplications_allow(
    accelerator, kernels, dtype
):
    model = model_of(accelerator)
    pruning = pruning_for(kernels, 0.8)
    seconds = model.grouped_gemm_s(ROWS_RG, K, N, dtype, 8, pruning=pruning)
    stored = stored_bytes(pruning, N, K, BYTES_PER_ELEMENT[dtype])
    touched = (ROWS_RG > 0).sum(axis=1)
    assert seconds[0] == 0.0
    assert np.all(seconds >= touched * stored / accelerator.memory_bytes_per_s)
    computes_in = model.calibration.experts(dtype, 8).computes_in or dtype
    flops = 2.0 * ROWS_RG.sum(axis=1) * pruning.num_stored(N, K)
    assert np.all(seconds >= flops / (1.15 * accelerator.flops_per_s(computes_in)))


@pytest.mark.parametrize(("accelerator", "kernels", "dtype"), BY_SPARSITY)
def test_more_sparsity_never_takes_longer(accelerator, kernels, dtype):
    model = model_of(accelerator)
    times = [
        model.grouped_gemm_s(ROWS_RG, K, N, dtype, 8, pruning=pruning_for(kernels, share))
        for share in (0.0, 0.3, 0.5, 0.8, 0.95)
    ]
    assert np.all(np.diff(times, axis=0) <= 0)


def test_experts_lose_exactly_what_is_gone_and_nothing_else_does():
    whole, pruned = weights_bytes(), weights_bytes(pruning=TWO_FOUR)
    experts = 32 * 8 * 3 * 4096 * 14336 / 2  # of one of two ranks
    assert whole - pruned == pytest.approx(experts * (2 - 1 - 1 / 8))


def test_a_model_of_both_loses_the_sum_of_either():
    keys = {"model": "deepseek-v2-lite", "parallel": {}}
    saved = {
        blocks: weights_bytes(**keys)
        - weights_bytes(**keys, pruning={"kind": "two_four", "blocks": blocks})
        for blocks in ("dense", "experts", "all")
    }
    assert 0 < saved["dense"] < saved["experts"]
    assert saved["all"] == pytest.approx(saved["dense"] + saved["experts"])


def test_pruned_experts_are_read_and_computed_as_such_and_the_report_says_what_is_assumed():
    ratio = expert_seconds() / expert_seconds(pruning=TWO_FOUR)
    assert np.all((ratio > 1.2) & (ratio < 2.0))
    # On a dense block of a mixture without one nothing is pruned.
    assert np.array_equal(
        expert_seconds(model="deepseek-v2-lite", parallel={}),
        expert_seconds(
            model="deepseek-v2-lite", parallel={}, pruning={"kind": "two_four", "blocks": "dense"}
        ),
    )
    kinds = {one.kind for one in warnings_of(deployment(pruning=TWO_FOUR))}
    assert "warning.pruned_experts" in kinds


def test_processes_of_one_machine_multiply_each_pruned_expert_on_its_own():
    rates = load_any_calibration("this-machine", "test").choose_tables(1, 1e8)
    compute, rows_RG = HostModel(rates), np.array([[3.0, 0.0, 40.0]])
    pruning = Unstructured(kind="unstructured", sparsity=0.8)
    one_by_one = sum(
        float(compute.gemm_s(np.array([rows]), 512, 1024, "fp32", pruning=pruning)[0])
        for rows in (3, 40)
    )
    assert compute.grouped_gemm_s(rows_RG, 512, 1024, "fp32", pruning=pruning)[0] == pytest.approx(
        one_by_one
    )
