"""Flags of serving commands that hang on more than one choice of a plan."""

from types import SimpleNamespace

import pytest

from simulator.planner.serving.engines import find_free_share
from tests.unit.test_serving_commands import flags, launched


@pytest.mark.parametrize(
    ("model", "split", "is_whole"),
    [
        ("deepseek-v2-lite", (1, 4, 4), True),
        ("deepseek-v2-lite", (2, 2, 4), False),
        ("gpt-oss-20b", (1, 4, 4), False),
    ],
)
def test_sglang_keeps_dense_blocks_whole_where_attention_is(model, split, is_whole):
    found = flags(launched("sglang", split, model=model, replicas=1)[0].command)
    assert found.get("--moe-dense-tp-size") == ("1" if is_whole else None)


@pytest.mark.parametrize("split", [(1, 1, 1), (2, 1, 1), (1, 4, 4), (2, 4, 8)])
def test_a_vllm_replica_on_one_host_has_no_address_of_others(split):
    found = flags(launched("vllm", split, replicas=1)[0].command)
    assert not found.keys() & {
        "--master-addr",
        "--nnodes",
        "--data-parallel-size-local",
        "--data-parallel-address",
        "--data-parallel-rpc-port",
    }


@pytest.mark.parametrize(
    ("dispatch", "exchange"),
    [
        (None, "deepep_high_throughput"),
        ({"kind": "per_expert"}, "deepep_low_latency"),
        ({"kind": "per_node"}, "deepep_high_throughput"),
        ({"kind": "all_gather"}, "allgather_reducescatter"),
    ],
)
def test_vllm_exchanges_tokens_as_the_plan_does(dispatch, exchange):
    given = launched("vllm", (1, 4, 4), dispatch=dispatch, replicas=1)
    assert flags(given[0].command)["--all2all-backend"] == exchange


@pytest.mark.parametrize(("kv_bytes", "share"), [(20e9, 0.5), (12.37e9, 0.309), (80e9, 1.0)])
def test_trtllm_gives_the_cache_its_share_of_what_is_free_rounded_down(kv_bytes, share):
    sizes = {"total_bytes": 80e9, "weights_bytes": 37e9, "step_bytes": 3e9, "kv_bytes": kv_bytes}
    capacity = SimpleNamespace(kind="tokens", **sizes)
    plan = SimpleNamespace(serving=SimpleNamespace(capacity=capacity))
    assert find_free_share(SimpleNamespace(plan=plan)) == share
