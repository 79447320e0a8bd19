"""Serving commands: every choice of a plan is a flag or a sentence, each flag once, and the shell
takes the line as it is.
"""

import dataclasses
import itertools
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from simulator.base.frozen import validate
from simulator.config.deployment import DeploymentSpec
from simulator.deployment.plan import make_plan
from simulator.planner.launch import list_commands
from simulator.planner.serving import find_weights
from simulator.planner.serving.engines import ENGINES, find_free_share, find_memory_share


def plan(engine="vllm", split=(1, 1, 1), gpus=8, model="gpt-oss-20b", pp=1, **keys):
    tp, dp, ep = split
    parallel = {"tp": tp, "attention_dp": dp, "ep": ep if ep > 1 else None, "pp": pp}
    table = {
        "name": "test",
        "model": model,
        "cluster": f"h100-sxm-{gpus}",
        "parallel": parallel,
        "engine": engine,
        **keys,
    }
    table.setdefault("scheduling", {"kind": "chunked", "token_budget": 2048, "max_sequences": 256})
    return make_plan(validate(DeploymentSpec, table, "test"), 1, "test", Path())


def launched(*arguments, **keys):
    made = plan(*arguments, **keys)
    return list_commands(made, made.spec.model, 3000, 4000)


def flags(command):
    """Flag to value (or ``True``) of the last line that the shell runs."""
    words = shlex.split(command.splitlines()[-1])
    found = {}
    for word, after in itertools.pairwise([*words, "--"]):
        if word.startswith("--"):
            assert word not in found, f"{word} twice"
            found[word] = True if after.startswith("--") else after
    return found


def said(commands):
    return " ".join(sentence for one in commands for sentence in one.not_expressed)


SPLITS = [(1, 1, 1), (2, 1, 1), (2, 1, 2), (1, 4, 4), (2, 4, 8), (2, 4, 1), (1, 16, 16), (4, 4, 16)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("split", SPLITS)
def test_every_rank_is_started(engine, split):
    tp, dp, ep = split
    ranks = tp * dp
    nodes = max(1, ranks // 8)
    share = {"memory_fraction": 0.8} if engine == "sglang" else {}
    given = launched(engine, split, gpus=max(ranks, 8), replicas=1, **share)
    for one in given:
        found = flags(one.command)
        if engine == "vllm":
            assert found["--tensor-parallel-size"] == str(tp)
            assert found.get("--data-parallel-size", "1") == str(dp)
            assert ("--enable-expert-parallel" in found) == (ep > 1)
            assert ("--all2all-backend" in found) == (ep > 1 and dp > 1)
        elif engine == "sglang":
            assert found["--tp-size"] == str(ranks)
            assert found.get("--attn-dp-size", "1") == str(dp)
            assert found.get("--ep-size", "1") == str(ep)
            assert (found.get("--moe-a2a-backend") == "deepep") == (ep > 1 and dp > 1)
        else:
            assert (found["--tp_size"], found["--ep_size"]) == (str(ranks), str(ep))
            assert ("enable_attention_dp: true" in one.command) == (dp > 1)
    if engine == "trtllm":
        assert len(given) == 1
        assert given[0].command.count(f"srun -N {nodes}") == (nodes > 1)
        assert ("data-parallel on all" in said(given)) == (tp > 1 and dp > 1)
    else:
        assert len(given) == nodes


@pytest.mark.parametrize("nodes", [2, 4])
def test_nodes_of_one_vllm_replica_share_out_its_data_parallel_ranks(nodes):
    found = [
        flags(one.command)
        for one in launched("vllm", (1, 8 * nodes, 8 * nodes), gpus=8 * nodes, replicas=1)
    ]
    assert [int(one.get("--data-parallel-start-rank", 0)) for one in found] == [
        8 * n for n in range(nodes)
    ]
    assert ["--headless" in one for one in found] == [False] + [True] * (nodes - 1)
    assert {one["--data-parallel-size-local"] for one in found} == {"8"}
    assert {one["--data-parallel-address"] for one in found} == {"node0"}
    assert ["--port" in one for one in found] == [True] + [False] * (nodes - 1)


def test_nodes_of_one_sglang_replica_have_ranks():
    given = launched("sglang", (1, 16, 16), gpus=16, replicas=1, memory_fraction=0.8)
    found = [flags(one.command) for one in given]
    assert [(one["--nnodes"], one["--node-rank"], one["--dist-init-addr"]) for one in found] == [
        ("2", "0", "node0:5000"),
        ("2", "1", "node0:5000"),
    ]


def test_batches_are_each_ranks_in_vllm_and_trtllm_and_all_ranks_in_sglang():
    vllm, trtllm, sglang = (
        flags(launched(one, (1, 4, 4), replicas=1)[0].command)
        for one in ("vllm", "trtllm", "sglang")
    )
    assert (vllm["--max-num-batched-tokens"], vllm["--max-num-seqs"]) == ("2048", "256")
    assert (trtllm["--max_num_tokens"], trtllm["--max_batch_size"]) == ("2048", "256")
    assert (sglang["--chunked-prefill-size"], sglang["--max-running-requests"]) == ("8192", "1024")


def test_memory_is_what_the_plan_gives_to_weights_and_cache():
    found, shares = {}, {}
    for engine in ENGINES:
        made = plan(engine, replicas=1)
        shares[engine] = made.serving.capacity.share
        (one, *_) = given = list_commands(made, made.spec.model, 100, 200)
        found[engine] = one.command
        assert f"{made.serving.capacity.tokens:,}" in said(given)
    assert float(flags(found["vllm"])["--gpu-memory-utilization"]) == shares["vllm"] == 0.92
    assert float(flags(found["sglang"])["--mem-fraction-static"]) == shares["sglang"]
    share = float(re.search(r"free_gpu_memory_fraction: (\S+)", found["trtllm"])[1])
    assert share == shares["trtllm"] == 0.9


def test_a_host_tier_is_a_flag_in_each_engines_unit_and_others_are_told():
    host = {"kind": "host", "memory_bytes": 64e9, "read_bytes_per_s": 5e10}
    found = {one: launched(one, (2, 1, 1), replicas=1, kv_tiers=[host])[0] for one in ENGINES}
    assert flags(found["vllm"].command)["--kv-offloading-size"] == "119"  # GiB of both ranks
    assert flags(found["sglang"].command)["--hicache-size"] == "64"
    assert "host_cache_size: 64000000000" in found["trtllm"].command
    assert not any("no flag here says so" in said([one]) for one in found.values())
    for one in ENGINES:
        given = launched(one, (2, 1, 1), replicas=1, kv_tiers=[host, host])
        assert "prefix blocks in host" in said(given)
        assert not any(word in given[0].command for word in ("offloading", "hicache", "host_cache"))


@pytest.mark.parametrize("engine", ENGINES)
def test_spare_experts_and_their_placement(engine):
    given = launched(engine, (1, 4, 4), replicas=1, placement={"kind": "eplb", "num_slots": 36})
    found = flags(given[0].command)
    if engine == "vllm":
        assert json.loads(found["--eplb-config"]) == {"num_redundant_experts": 4}
        assert "--enable-eplb" in found
    elif engine == "sglang":
        assert found["--ep-num-redundant-experts"] == "4"
        assert "--enable-eplb" in found
    else:
        assert "num_slots: 36" in given[0].command
    assert "36 expert slots (9 a rank)" in said(given)
    assert "eplb" not in launched(engine, (1, 4, 4), replicas=1)[0].command


@pytest.mark.parametrize(
    ("engine", "asked"),
    [
        ("vllm", "--kv-cache-dtype fp8"),
        ("sglang", "--kv-cache-dtype fp8_e4m3"),
        ("trtllm", "dtype: fp8"),
    ],
)
def test_the_caches_format(engine, asked):
    assert asked in launched(engine, replicas=1, kv_dtype="fp8")[0].command.replace(" \\\n", "")
    odd = launched(engine, replicas=1, kv_dtype="int8")
    assert "int8" not in odd[0].command
    assert "int8" in said(odd)


@pytest.mark.parametrize("engine", ENGINES)
def test_pools_have_servers_of_each_kind_and_a_router(engine):
    prefill = {"parallel": {"tp": 2}, "replicas": 2}
    given = launched(engine, (1, 4, 4), replicas=1, prefill=prefill, gpus=8)
    kinds = [one.name.partition(" on ")[0] for one in given]
    assert kinds == [*["prompt server"] * 2, "decode server", "router in front of all servers"]
    servers, router = given[:-1], given[-1].command
    seen = [re.search(r"CUDA_VISIBLE_DEVICES=(\S+)", one.command)[1] for one in servers]
    assert seen == ["4,5", "6,7", "0,1,2,3"]
    assert len({flags(one.command)["--port"] for one in servers}) == 3
    prompts, decoding = flags(given[0].command), flags(given[2].command)
    if engine == "vllm":
        roles = [json.loads(one["--kv-transfer-config"])["kv_role"] for one in (prompts, decoding)]
        assert roles == ["kv_producer", "kv_consumer"]
        assert router.count("--prefill http://node0:800") == 2
        assert router.endswith("--decode http://node0:8000")
    elif engine == "sglang":
        modes = [one["--disaggregation-mode"] for one in (prompts, decoding)]
        assert modes == ["prefill", "decode"]
        assert decoding["--deepep-mode"] == "low_latency"
        port = prompts["--disaggregation-bootstrap-port"]
        assert f"--prefill http://node0:31200 {port}" in router
    else:
        for one, is_prompts in zip(servers, (True, True, False), strict=True):
            assert "max_tokens_in_buffer: 3000" in one.command
            assert ("disable_overlap_scheduler" in one.command) == is_prompts
        assert "trtllm-serve disaggregated -c disaggregated.yml" in router
        assert "num_instances: 2\n  urls:\n    - node0:8004" in router


def test_a_share_of_memory_that_was_not_given_is_what_the_plan_uses_rounded_down():
    used = {"weights_bytes": 40e9, "step_bytes": 3.3e9, "kv_bytes": 30e9, "total_bytes": 80e9}
    assert find_memory_share(SimpleNamespace(kind="of_free", share=0.9, **used)) == 0.916
    assert find_memory_share(SimpleNamespace(kind="of_total", share=0.9, **used)) == 0.9


@pytest.mark.parametrize("engine", ENGINES)
def test_replicas_share_machines(engine):
    given = launched(engine, (4, 1, 1), gpus=32, replicas=7)
    servers = [one for one in given if one.name.startswith("server")]
    assert [one.name for one in servers] == [
        "server on each of 4 nodes (node0, node1, node2, node3), GPUs 0, 1, 2, 3",
        "server on each of 3 nodes (node0, node1, node2), GPUs 4, 5, 6, 7",
    ]
    assert "4 are held free" in said(given)
    if engine == "trtllm":
        assert "7 servers" in said(given)
    else:
        assert given[-1].command.count("http://node") == 7
        assert "compares two at random" in said(given)


def test_servers_on_one_host_do_not_take_each_others_ports():
    given = launched("sglang", (1, 2, 2), gpus=8, replicas=4)
    ports = sorted(int(flags(one.command)["--port"]) for one in given[:4])
    assert min(after - port for port, after in itertools.pairwise(ports)) > 500


def test_an_engine_without_commands_says_so():
    made = plan("vllm", (1, 1, 1), replicas=1)
    given = list_commands(
        dataclasses.replace(made, spec=made.spec.model_copy(update={"engine": "other@2"})),
        "gpt-oss-20b",
        1,
        1,
    )
    assert given[0].command == ""
    assert "'other@2'" in said(given)
    assert "release 1.2.0" in said(launched("trtllm@1.2.0", (1, 1, 1), replicas=1))


@pytest.mark.parametrize(
    ("model", "dtype", "path", "quantises", "note"),
    [
        ("gpt-oss-20b", None, "openai/gpt-oss-20b", False, ""),
        ("qwen3-8b", None, "Qwen/Qwen3-8B", False, ""),
        ("qwen3-8b", "fp8_block", "Qwen/Qwen3-8B-FP8", False, ""),
        ("qwen3-8b", "fp8", "Qwen/Qwen3-8B", True, "16-bit weights"),
        ("llama-3.1-8b", "fp8", "nvidia/Llama-3.1-8B-Instruct-FP8", False, ""),
        ("qwen3-8b", "int4", "./qwen3-8b-int4", False, "make them from Qwen/Qwen3-8B"),
    ],
)
def test_weights_are_those_published_or_must_be_made(model, dtype, path, quantises, note):
    found = find_weights(plan(model=model, weight_dtype=dtype, replicas=1), model)
    assert (found.path, found.quantises) == (path, quantises)
    assert (note in found.note) if note else not found.note


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
