"""Memory: what a GPU holds, what is refused, and that what a refusal names really fits."""

import re

import pytest

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.base.plugins import build
from simulator.config.accelerator import load_accelerator
from simulator.config.deployment import DeploymentSpec, ParallelSpec
from simulator.config.model import load_model
from simulator.deployment.memory import Capacity, check_memory, check_requests
from simulator.deployment.splits import Setup
from simulator.work.layout import make_layout
from simulator.work.memory import CacheSize, Precision, cache_size, weight_bytes


def precision(dtype):
    return Precision(dtype, dtype, "bf16", "bf16", "bf16")


def capacity_of(model, accelerator, dtype="bf16", **parallel):
    spec = DeploymentSpec(
        name="test", model=model, cluster="unused", parallel=ParallelSpec(**parallel)
    )
    found, hardware = load_model(model, "test"), load_accelerator(accelerator, "test")
    setup = Setup(
        spec,
        found,
        hardware,
        make_layout(spec.parallel, found, "test"),
        precision(dtype),
        build("scheduling", {"kind": "chunked"}, "test").rules(),
    )
    return check_memory(setup, "file.toml")


def test_weights_of_a_dense_model_are_its_parameters():
    model = load_model("llama-3.1-70b", "test")
    layout = make_layout(ParallelSpec(), model, "test")
    assert weight_bytes(model, layout, precision("bf16")) == pytest.approx(
        2.0 * model.num_parameters, rel=1e-5
    )


@pytest.mark.parametrize("name", sorted(available_files("workloads/models")))
def test_weights_of_any_model_on_one_rank_are_its_parameters(name):
    model = load_model(name, "test")
    layout = make_layout(ParallelSpec(), model, "test")
    assert weight_bytes(model, layout, precision("bf16")) == pytest.approx(
        2.0 * model.num_parameters, rel=1e-3
    )


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallelism_splits_weights_and_cache(tp):
    model = load_model("llama-3.1-70b", "test")
    whole, part = (make_layout(ParallelSpec(tp=n), model, "test") for n in (1, tp))
    assert weight_bytes(model, part, precision("bf16")) == pytest.approx(
        weight_bytes(model, whole, precision("bf16")) / tp, rel=1e-3
    )
    assert cache_size(model, part, precision("bf16")).bytes_per_token == 327_680 / tp


def test_a_latent_cache_is_copied_to_every_tensor_parallel_rank():
    model = load_model("deepseek-v3", "test")
    for tp in (1, 8):
        assert (
            cache_size(
                model, make_layout(ParallelSpec(tp=tp), model, "test"), precision("fp8")
            ).bytes_per_token
            == 70_272
        )


def test_what_a_gpu_holds_adds_up():
    capacity = capacity_of("llama-3.1-8b", "h100-sxm")
    assert capacity.weights_bytes + capacity.reserve_bytes + capacity.kv_bytes == pytest.approx(
        capacity.total_bytes
    )
    assert (
        capacity.num_blocks * capacity.block_bytes
        <= capacity.kv_bytes
        < (capacity.num_blocks + 1) * capacity.block_bytes
    )
    assert (
        capacity.blocks_for(capacity.tokens)
        <= capacity.num_blocks
        < capacity.blocks_for(capacity.tokens + 1)
    )


REFUSED = [
    ("llama-3.1-70b", "h100-sxm", "bf16", {}),
    ("llama-3.1-405b", "h100-sxm", "bf16", {"tp": 8}),
    ("deepseek-v3", "h100-sxm", "fp8", {"attention_dp": 4, "ep": 4}),
    ("deepseek-v3", "rtx-4090", "bf16", {"tp": 8}),
    ("mixtral-8x7b", "rtx-4090", "bf16", {"attention_dp": 2, "ep": 2}),
]


@pytest.mark.parametrize(("model", "accelerator", "dtype", "parallel"), REFUSED)
def test_a_refusal_says_what_is_needed_and_there_and_what_it_names_fits(
    model, accelerator, dtype, parallel
):
    with pytest.raises(
        UserError, match=r"file\.toml: .* does not fit: each GPU needs [\d,.]+ GB"
    ) as caught:
        capacity_of(model, accelerator, dtype, **parallel)
    message = str(caught.value)
    needed, weights, activations, cache = (
        float(number.replace(",", ""))
        for number in re.search(
            r"needs ([\d,.]+) GB \(([\d,.]+) GB of weights .*?, ([\d,.]+) GB for act\w+, ([\d,.]+) GB",
            message,
        ).groups()
    )
    assert needed == pytest.approx(weights + activations + cache, abs=0.2)
    has, share, total = (
        float(n) for n in re.search(r"has ([\d.]+) GB \((\d+)% of ([\d.]+) GB\)", message).groups()
    )
    assert has == pytest.approx(total * share / 100, abs=0.2)
    assert needed > has
    offers = re.findall(
        r'((?:(?:tp|attention_dp|ep) = \d+(?:, )?)+) \((\d+) GPUs?\)(?: with weight_dtype = "(\w+)")?',
        message,
    )
    assert offers or "no split" in message
    for text, num_gpus, narrower in offers:
        split = {
            **parallel,
            **{key: int(number) for key, number in re.findall(r"(\w+) = (\d+)", text)},
        }
        assert split.get("tp", 1) * split.get("attention_dp", 1) == int(num_gpus)
        capacity_of(model, accelerator, narrower or dtype, **split)


def test_the_longest_request_must_fit():
    capacity = Capacity(
        total_bytes=1e6,
        weights_bytes=0.0,
        reserve_bytes=0.0,
        kv_bytes=1e6,
        cache=CacheSize(1000.0, 16_000.0),
        block_tokens=16,
    )
    assert (capacity.num_blocks, capacity.sequence_blocks, capacity.tokens) == (62, 1, 976)
    check_requests(capacity, 976, "here")
    with pytest.raises(
        UserError, match="here: the longest request has 977 tokens, but the KV cache holds 976"
    ):
        check_requests(capacity, 977, "here")


def test_a_state_without_a_growing_cache_counts_in_bytes():
    capacity = Capacity(
        total_bytes=1e6,
        weights_bytes=0.0,
        reserve_bytes=0.0,
        kv_bytes=1e6,
        cache=CacheSize(0.0, 300_000.5),
        block_tokens=16,
    )
    assert capacity.block_bytes == 1.0
    assert capacity.blocks_for(10) == capacity.blocks_for(10_000_000) == 300_001
    check_requests(capacity, 10_000_000, "here")
