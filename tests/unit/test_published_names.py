"""Names, splits and conditions as publications write them."""

import numpy as np
import pandas as pd
import pytest

from simulator.base.errors import UserError
from simulator.validation.published._names import (
    accelerator_of,
    cluster_of,
    engine_of,
    model_name,
    precision_of,
)
from simulator.validation.published.wide_ep import _read, _value


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("LLaMA v3.1 70B", "llama-3.1-70b"),
        ("LLaMA v3.3 70B", "llama-3.1-70b"),
        ("Mixtral 8x7B", "mixtral-8x7b"),
        ("llama2-70b-99.9", "llama-2-70b"),
        ("llama3.1-405b", "llama-3.1-405b"),
        ("DeepSeek-V3", "deepseek-v3"),
        ("DeepSeek R1 0528", "deepseek-r1"),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", "llama-3.1-70b"),
    ],
)
def test_models(text, name):
    assert model_name(text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("H100-80GB", "h100-sxm"),
        ("NVIDIA H200-SXM-141GB", "h200-sxm"),
        ("A100 80GB", "a100-sxm"),
        ("NVIDIA A100-PCIe-80GB", "a100-pcie"),
        ("NVIDIA L40S", "l40s"),
        ("AMD Instinct MI300X 192GB HBM3", "mi300x"),
        ("GB200 NVL72", "gb200"),
        ("NVIDIA RTX PRO 6000", "rtx-pro-6000"),
    ],
)
def test_accelerators(text, name):
    assert accelerator_of(text).name == name
    assert cluster_of(name, 1)


@pytest.mark.parametrize(
    "text", ["GH200-96GB", "A100-40GB", "NVIDIA H100-NVL-94GB", "TPU v5e", "", "nan"]
)
def test_other_parts_are_not_taken_for_known_ones(text):
    with pytest.raises(UserError):
        accelerator_of(text)


def test_formats_and_engines():
    assert [
        precision_of(text) for text in ("FP8", "fp8 (NVIDIA config)", "FP16", "NVFP4", "INT4 AWQ")
    ] == [*("fp8", "fp8", "bf16", "nvfp4", "int4")]
    assert [
        engine_of(text)
        for text in ("TensorRT 10.2.0, CUDA 12.4", "SGLang 2025-05", "vLLM 0.8", "?")
    ] == [*("trtllm", "sglang", "vllm", None)]


def row(**changes):
    usual = {
        "case": "SGLang decode EP72",
        "unit": "tok/s/node",
        "model": "DeepSeek-V3",
        "hardware": "H100 SXM 80GB, IB",
        "n_gpus": 72,
        "parallelism": "EP72 (9 nodes)",
        "conditions": "256 req/GPU, KV 2000, out 100",
        "dtype": "FP8",
        "engine": "SGLang",
    }
    return pd.Series({**usual, **changes})


def test_conditions_in_words_become_a_batch():
    case = _read(row()).case
    assert (case.num_gpus, case.ep, case.sequences, case.new, case.context) == (
        72,
        72,
        256,
        1,
        2050,
    )
    assert case.has_eplb
    assert case.has_overlap
    assert case.dtype is None  # as released: block-scaled fp8
    prompt = _read(
        row(
            case="prefill",
            conditions="16384 tok/GPU batch, prompt 4096, perfectly balanced routing",
        )
    ).case
    assert (prompt.sequences, prompt.new, prompt.context) == (4, 4096, 0)
    assert prompt.is_balanced
    assert not prompt.has_eplb
    both = row(
        case="InferSim decode actual",
        n_gpus=np.nan,
        parallelism=np.nan,
        conditions="(EP32 prefill 4K; EP128 decode bs128 KV4K)",
    )
    assert _read(both).case.num_gpus == 128
    assert (_read(both).case.sequences, _read(both).case.context) == (128, 4096)


def test_gains_compare_two_systems_that_differ_in_one_thing():
    eplb = _read(row(case="EPLB decode speedup", unit="x"))
    assert eplb.other == eplb.case._replace(has_eplb=False)
    overlap = _read(row(case="TBO decode slowdown bs32", unit="x", conditions="32 tok/device"))
    assert overlap.other == overlap.case._replace(has_overlap=False)
    assert overlap.case.sequences == 32


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "nobody/knows"},
        {"hardware": "TPU v5e"},
        {"n_gpus": np.nan, "parallelism": "EP"},
        {"unit": "watts"},
        {"case": "latency"},
        {"model": "Llama-3.1-70B"},
    ],
)
def test_what_cannot_be_read_says_why(changes):
    with pytest.raises(UserError):
        _read(row(**changes))


def test_ranges_count_as_their_middle():
    assert _value("1.27-1.35") == pytest.approx(1.309, rel=1e-3)
    assert np.isnan(_value("0.17 ms/layer in situ"))
