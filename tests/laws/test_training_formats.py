"""Laws of training in 8 bits: operands are converted once, and pay where their bytes say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.config.accelerator import load_accelerator
from simulator.config.calibration import load_calibration
from simulator.config.training import TrainingDeployment, TrainingSpec
from simulator.cost.compute.trained import Trained, TrainedModel
from simulator.deployment.training.plan import make_training_plan
from simulator.engine.training import run_training_step
from simulator.step.training import price_micro_batch, price_update
from tests.cases import cases

GPUS = ("h100-sxm", "h200-sxm", "b300-sxm", "gb200", "mi300x", "l40s", "rtx-pro-6000")
MOVED = {"fp8": 6.0, "fp8_block": 4.0625}
"""Bytes that converting a number moves: two reads of 2 and two copies of 1, or one read and two
copies with a scale of 4 for 128."""


def compute_on(gpu, **changes):
    accelerator = load_accelerator(gpu, "test")
    calibration = load_calibration(accelerator.calibration, "test").choose_engine("vllm")
    return Trained().prepare(accelerator.model_copy(update=changes), calibration)


def train_s(compute, rows, inner, outer, dtype):
    """Seconds of a matrix's three products, with the conversions of its input and gradient."""
    product_s = compute.gemm_s(np.array([rows]), inner, outer, dtype)[0]
    return 3.0 * product_s + float(compute.convert_s(rows * (inner + outer), dtype))


def find_break_even(compute, dtype):
    """``k n / (k + n)`` from which products gain more than conversions take: ``6 k n`` FLOPs a
    token of which all but a share ``1 / (ratio x 0.94)`` of their time is saved.
    """
    fit, gpu = compute.calibration.matrices("bf16"), compute.accelerator
    saved = 1.0 - gpu.bf16_flops_per_s / (0.94 * gpu.flops_per_s(dtype))
    saved_s = 6.0 / (gpu.bf16_flops_per_s * fit.compute_fraction) * saved
    return MOVED[dtype] / (gpu.memory_bytes_per_s * fit.memory_fraction) / saved_s


@cases(200)
@given(
    st.sampled_from(GPUS),
    st.sampled_from(sorted(MOVED)),
    st.integers(256, 65_536),
    st.integers(256, 20_000),
    st.integers(256, 20_000),
    st.floats(0.5, 2.0),
    st.floats(0.5, 4.0),
)
def test_above_its_break_even_a_format_of_twice_the_flops_is_faster(
    gpu, dtype, rows, inner, outer, memory, flops
):
    own = load_accelerator(gpu, "test")
    compute = compute_on(
        gpu,
        memory_bytes_per_s=own.memory_bytes_per_s * memory,
        bf16_flops_per_s=own.bf16_flops_per_s * flops,
        fp8_flops_per_s=own.bf16_flops_per_s * flops * 2.0,
    )
    wide, narrow = (train_s(compute, rows, inner, outer, name) for name in ("bf16", dtype))
    if inner * outer / (inner + outer) > 1.25 * find_break_even(compute, dtype):
        assert narrow < wide


@pytest.mark.parametrize("gpu", GPUS)
def test_far_below_the_break_even_conversions_take_more_than_products_gain(gpu):
    compute = compute_on(gpu)
    side = find_break_even(compute, "fp8") // 2
    wide, narrow = (train_s(compute, 100_000, side, side, name) for name in ("bf16", "fp8"))
    assert narrow > wide


def test_a_layer_gains_what_transformer_engine_measured():
    """Products of a layer of 4,096 x 16,384 with 12,288 for queries, keys and values over 15,872
    tokens on B300, forward, and backward by inputs and weights ("GEMM Profiling Across
    Precisions"): 12.835 ms in bf16, 6.830 ms in fp8 with blocks and 7.324 ms in MXFP8 without
    conversions.
    """
    compute, rows = compute_on("b300-sxm"), np.array([15_872])
    shapes = [(4096, 12288), (4096, 4096), (4096, 16384), (16384, 4096)]
    seconds = {
        dtype: 3.0 * sum(compute.gemm_s(rows, *shape, dtype)[0] for shape in shapes)
        for dtype in ("bf16", "fp8", "fp8_block")
    }
    assert seconds["bf16"] == pytest.approx(12.835e-3, rel=0.2)
    for dtype in ("fp8", "fp8_block"):
        assert 12.835 / 7.324 < seconds["bf16"] / seconds[dtype] < 1.03 * 12.835 / 6.830


def plan_of(dtype, batch=16, model="llama-3.1-8b", **keys):
    spec = TrainingDeployment.model_validate(
        {"name": "one", "model": model, "cluster": "b200-sxm", "num_gpus": 8, "dtype": dtype} | keys
    )
    training = TrainingSpec(sequence_tokens=4096, global_batch=batch)
    return make_training_plan(spec, training, 0, "test", Path())


def pass_s(plan, kind):
    """Seconds of a pass through all layers, without waits."""
    operations = price_micro_batch(plan).list_operations(plan.chunks[0], kind)
    return sum(float(one.seconds_R[0]) for one in operations if hasattr(one, "seconds_R"))


@pytest.mark.parametrize(("dtype", "behind_norm"), [("fp8", 4.0), ("fp8_block", 4.0625)])
def test_operands_are_converted_once_a_tensor(monkeypatch, dtype, behind_norm):
    """Llama 3.1 8B: 32 layers of 4,096, 6,144 queries, keys and values, and 14,336 inner ones
    behind a gate. Inputs of both first matrices come from norms; gradients are those of four
    outputs. The head stays in bf16.
    """
    plan = plan_of(dtype)
    gpu, fit = plan.placement.accelerator, plan.placement.calibration.matrices("bf16")
    rate = gpu.memory_bytes_per_s * fit.memory_fraction
    tokens = 32 * 4096
    forward = tokens * (2 * 4096 * behind_norm + (4096 + 14336) * MOVED[dtype])
    backward = tokens * (6144 + 4096 + 2 * 14336 + 4096) * MOVED[dtype]
    taken = {kind: pass_s(plan, kind) for kind in ("forward", "backward", "input", "weight")}
    monkeypatch.setattr(TrainedModel, "convert_s", lambda _, numbers, *__: np.zeros_like(numbers))
    bare = {kind: pass_s(plan, kind) for kind in taken}
    more = {kind: (taken[kind] - bare[kind]) * rate for kind in taken}
    assert more["forward"] == pytest.approx(forward, rel=1e-6)
    assert more["backward"] == pytest.approx(backward, rel=1e-6)
    assert more["input"] == pytest.approx(backward, rel=1e-6)
    assert more["weight"] == pytest.approx(0.0, abs=1e-3)


def test_experts_convert_their_rows_after_these_are_permuted(monkeypatch):
    """Qwen3-30B-A3B over eight GPUs: 8 experts of 768 for each token of 2,048, used evenly."""
    plan = plan_of("fp8", 64, "qwen3-30b-a3b", parallel={"ep": 8}, routing={"kind": "uniform"})
    gpu, fit = plan.placement.accelerator, plan.placement.calibration.matrices("bf16")
    rate = gpu.memory_bytes_per_s * fit.memory_fraction

    def experts_s(kind):
        operations = price_micro_batch(plan).list_operations(plan.chunks[0], kind)
        return sum(float(one.seconds_R.mean()) for one in operations if one.phase == "experts")

    taken = [experts_s(kind) for kind in ("forward", "backward")]
    monkeypatch.setattr(TrainedModel, "convert_s", lambda _, numbers, *__: np.zeros_like(numbers))
    bare = [experts_s(kind) for kind in ("forward", "backward")]
    pairs = 48 * 4096 * 8
    numbers = [pairs * (2048 + 768), pairs * (2 * 768 + 2048)]
    for more, less, count in zip(taken, bare, numbers, strict=True):
        assert (more - less) * rate == pytest.approx(6.0 * count, rel=1e-6)


def test_weights_are_converted_once_a_step_on_every_rank_that_holds_them():
    plans = [plan_of(dtype, batch) for dtype, batch in (("bf16", 16), ("fp8", 16), ("fp8", 64))]
    usual, few, many = (price_update(plan, 0).optimizer_s for plan in plans)
    assert few == many
    gpu, fit = plans[0].placement.accelerator, plans[0].placement.calibration.matrices("bf16")
    matrices = 32 * (4096 * (6144 + 4096) + 3 * 4096 * 14336)
    moved = (few - usual) * gpu.memory_bytes_per_s * fit.memory_fraction
    assert moved == pytest.approx(6.0 * matrices, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "cluster", "parallel"),
    [
        ("qwen3-30b-a3b", "b300-sxm", {"ep": 8}),
        ("olmoe-1b-7b", "h200-sxm", {"ep": 8}),
        ("gpt-oss-20b", "mi300x", {"ep": 4}),
        ("llama-3.1-8b", "gb300", {"tp": 2}),
        ("deepseek-v2-lite", "h100-sxm", {"ep": 8}),
    ],
)
def test_models_above_the_break_even_train_faster_in_8_bits(model, cluster, parallel):
    keys = {"cluster": cluster, "parallel": parallel, "recompute": "full"}
    steps = [
        run_training_step(plan, price_micro_batch(plan)).step_s
        for plan in (plan_of(dtype, 16, model, **keys) for dtype in ("bf16", "fp8", "fp8_block"))
    ]
    assert 1.0 < steps[0] / steps[1] < 1.9
    assert 1.0 < steps[0] / steps[2] < 1.9


def test_formats_of_16_bits_convert_nothing():
    compute = compute_on("h100-sxm")
    assert compute.convert_s(1e12, "bf16") == compute.convert_s(1e12, "fp32", 1e12) == 0.0
    faster = replace(
        compute,
        accelerator=compute.accelerator.model_copy(
            update={"memory_bytes_per_s": 2.0 * compute.accelerator.memory_bytes_per_s}
        ),
    )
    assert float(faster.convert_s(1e9, "fp8")) == pytest.approx(
        float(compute.convert_s(1e9, "fp8")) / 2.0
    )
