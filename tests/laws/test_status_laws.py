"""What every family of kernels must say of rows that it cannot, or should not, be sure of."""

import numpy as np
import pandas as pd
import pytest

from simulator.base.plugins import available, build
from simulator.lab.validation import OK
from simulator.lab.validation.extrapolation import Doubt, settle
from simulator.lab.validation.hardware import accelerator_name

NAN = float("nan")
ATTENTION = {
    "phase": "generation_attention",
    "attn_dtype": "bfloat16",
    "kv_cache_dtype": "bfloat16",
    "batch_size": 8,
    "isl": 1,
    "step": 1023,
    "num_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "window_size": 0,
}
EXPERTS = {
    "moe_dtype": "fp8_block",
    "hidden_size": 7168,
    "inter_size": 2048,
    "topk": 8,
    "num_experts": 256,
    "moe_tp_size": 1,
    "moe_ep_size": 8,
    "num_tokens": 64,
}
ROWS = {
    "gemm": {"gemm_dtype": "bfloat16", "m": 64, "n": 4096, "k": 4096},
    "attention": ATTENTION,
    "mla": {
        "engine": "trtllm",
        "phase": "generation_mla",
        "mla_dtype": "bfloat16",
        "kv_cache_dtype": "bfloat16",
        "gemm_type": "bfloat16",
        "num_heads": 16,
        "batch_size": 8,
        "isl": 1,
        "step": 1023,
    },
    "moe": {**EXPERTS, "engine": "sglang", "distribution": "balanced"},
    "eplb": {**EXPERTS, "distribution": "power_law_1.01_eplb", "num_slots": 288, "moe_ep_size": 32},
    "alltoall": {
        "node_num": 1,
        "hidden_size": 7168,
        "num_token": 64,
        "num_topk": 8,
        "num_experts": 256,
        "dispatch_sms": 20,
        "combine_sms": 20,
    },
    "collective": {
        "op_name": "all_reduce",
        "nccl_dtype": "half",
        "num_gpus": 8,
        "message_elements": 65_536,
    },
}
"""One row of each family that was measured on H100."""
SEEN, SIBLINGS, ASSUMED = "h100_sxm", ("h200_sxm", "h20_sxm"), ("a100_sxm", "l40s")
MAY_BE_NOTHING = {"step", "window_size", "dispatch_sms", "combine_sms"}
NOTHING_SAID = (NAN, "many")
FEWEST_BYTES = "message_elements"


def answer(family, **columns):
    row = {"gpu": SEEN} | ROWS[family] | columns
    return build("validation.kernels", {"kind": family}, "test").answer(
        pd.DataFrame({name: [value] for name, value in row.items()})
    )


def sizes(family):
    return [name for name, value in ROWS[family].items() if isinstance(value, int)]


def width(answers):
    priced = answers.seconds > 0
    return float(np.log(answers.high[priced] / answers.low[priced]).max())


@pytest.mark.parametrize("family", ROWS)
def test_every_family_has_a_row_here(family):
    assert set(ROWS) == set(available("validation.kernels"))
    assert answer(family).status == [OK]


@pytest.mark.parametrize("gpu", SIBLINGS)
@pytest.mark.parametrize("family", ROWS)
def test_a_gpu_that_no_fit_saw_is_never_ok_and_has_a_wider_band(family, gpu):
    found = answer(family, gpu=gpu)
    assert found.status == ["extrapolated: measured on h100-sxm"]
    assert width(found) > width(answer(family))


@pytest.mark.parametrize("gpu", ASSUMED)
@pytest.mark.parametrize("family", ROWS)
def test_a_family_of_gpus_without_measurements_is_never_ok(family, gpu):
    status = answer(family, gpu=gpu).status[0]
    assert status.startswith(("extrapolated: no measured", "unsupported: "))


@pytest.mark.parametrize("family", ["gemm", "moe"])
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "fp8_block", "nvfp4", "int4_wo"])
@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm", "other"])
def test_bands_are_no_narrower_where_the_family_of_the_gpu_was_not_measured(family, dtype, engine):
    rows = {f"{family}_dtype": dtype, "engine": engine}
    known = width(answer(family, gpu="h200_sxm", **rows))
    for gpu in (*ASSUMED, "rtx_4090", "rtx_pro_6000", "mi300x"):
        assert width(answer(family, gpu=gpu, **rows)) >= known * (1 - 1e-9), gpu


@pytest.mark.parametrize("family", ["gemm", "moe"])
@pytest.mark.parametrize(
    ("gpu", "dtype", "lacking"),
    [("h100_sxm", "nvfp4", "fp4"), ("a100_sxm", "fp8", "fp8"), ("l40s", "fp8", "")],
)
def test_formats_that_hardware_cannot_multiply_are_said_and_have_wide_bands(
    family, gpu, dtype, lacking
):
    found = answer(family, gpu=gpu, **{f"{family}_dtype": dtype, "engine": "vllm"})
    name = accelerator_name(gpu)
    assert (
        f"no {lacking} arithmetic on {name}, priced as 16-bit products" in found.status[0]
    ) == bool(lacking)
    assert width(found) >= 2 * np.log(2) * (1 - 1e-9) or not lacking


@pytest.mark.parametrize("family", ROWS)
@pytest.mark.parametrize("value", [1e9, 1e18, -4, 0, 2.5, NAN, float("inf"), "many"], ids=str)
def test_absurd_sizes_are_refused_with_the_reason(family, value):
    for name in sizes(family):
        if name in MAY_BE_NOTHING and (
            value == 0 or (name.endswith("_sms") and value in NOTHING_SAID)
        ):
            continue
        if name == FEWEST_BYTES and value == 1e9:  # two gigabytes are a message
            continue
        found = answer(family, **{name: value})
        assert found.status[0].startswith("unsupported: "), (name, value)
        assert np.isnan(found.seconds).all()


def test_names_that_nvidia_smi_prints_are_understood():
    names = {
        "NVIDIA H100 80GB HBM3": "h100-sxm",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA H200": "h200-sxm",
        "NVIDIA H20": "h20-sxm",
        "NVIDIA A100-SXM4-80GB": "a100-sxm",
        "NVIDIA A100 80GB PCIe": "a100-pcie",
        "NVIDIA B200": "b200-sxm",
        "NVIDIA B300 SXM6 AC": "b300-sxm",
        "NVIDIA GB200": "gb200",
        "NVIDIA L40S": "l40s",
        "NVIDIA GeForce RTX 4090": "rtx-4090",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000",
        "AMD Instinct MI300X": "mi300x",
    }
    assert {name: accelerator_name(name) for name in names} == names
    for other in (
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA H100 NVL",
        "NVIDIA H20-3e",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "",
        "nan",
    ):
        assert accelerator_name(other) is None


def test_doubts_add_up_and_never_narrow_a_band():
    far = np.array([False, True])
    statuses, wider = settle(
        2, [Doubt("measured elsewhere", 2.0)], {"m": far}, [(Doubt("guessed", 3.0), far)]
    )
    assert statuses == [
        "extrapolated: measured elsewhere",
        "extrapolated: measured elsewhere; guessed; m outside the measured range",
    ]
    assert wider.tolist() == pytest.approx([2.0, (1 + 3 + 8 + 3) ** 0.5])
    assert settle(2, [], {}) == ([OK, OK], pytest.approx([1.0, 1.0]))


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("older", ["a100_sxm", "l40s"])
def test_an_older_gpu_is_not_priced_faster_than_a_newer_one_by_the_same_engine(older, engine):
    """With lower peaks of every kind; a fifth is what fits of different kernels may differ by."""
    formats = {"bfloat16", "fp8", "w4a16_mxfp4"} - ({"fp8"} if engine == "sglang" else set())
    for dtype in sorted(formats):
        for num_tokens in (1, 64, 4096):
            rows = {"engine": engine, "moe_dtype": dtype, "num_tokens": num_tokens}
            assert (
                answer("moe", gpu=older, **rows).seconds[0, 0]
                > 0.8 * answer("moe", **rows).seconds[0, 0]
            ), rows
    for phase in ("generation_mla", "mla_generation_module"):
        for cache in ("bfloat16", "fp8"):
            rows = {"engine": engine, "phase": phase, "kv_cache_dtype": cache}
            assert (
                answer("mla", gpu=older, **rows).seconds[0, 0]
                > 0.8 * answer("mla", **rows).seconds[0, 0]
            ), rows
