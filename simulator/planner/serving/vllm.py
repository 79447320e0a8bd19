"""vLLM, and the router of its project.

Flags and the conditions between them as in the release of ``cluster_configs/launch/vllm.toml``;
that a replica of several nodes is started with ``--nnodes``, or with data-parallel ranks that are
shared out, as in its documentation ("Expert Parallel Deployment", "Data Parallel Deployment",
"Parallelism and Scaling", "Dual Batch Overlap", "NixlConnector Usage Guide").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from simulator.base.frozen import Frozen
from simulator.deployment.memory import Capacity
from simulator.planner.serving import (
    Address,
    Place,
    Role,
    Server,
    compare_two_at_random,
    list_urls,
    load_programs,
    restrict_gpus,
    write_line,
)

_EXCHANGES = {
    "all_gather": "allgather_reducescatter",
    "per_expert": "deepep_low_latency",
    "per_node": "deepep_high_throughput",
    "per_rank": "deepep_high_throughput",
}
_ON_AMD = {
    "deepep_low_latency": "mori_low_latency",
    "deepep_high_throughput": "mori_high_throughput",
}
"""The exchange of ROCm that takes the place of DeepEP's."""
_OVERLAPPING = ("deepep_low_latency", "deepep_high_throughput")
"""Exchanges that vLLM can hide behind the other half of a batch; with another one it refuses to
start (``vllm/config/vllm.py``)."""
_CACHE = {"bf16": "bfloat16", "fp16": "float16", "fp8": "fp8", "nvfp4": "nvfp4"}
_POLICIES = {"round_robin": "round_robin", "random": "random"}
_RPC_PORT = 13345
_SIDE_PORT = 5600
"""Port of NIXL's handshake; each data-parallel rank of a node takes the next one."""


class Vllm(Frozen):
    """``vllm serve``."""

    quantises: bool = True

    def count_starts(self, place: Place) -> int:
        return len(place.hosts)

    def start_server(self, server: Server, place: Place, node: int) -> str:
        plan, layout = server.plan, server.plan.placement.layout
        rules, is_pooled = plan.serving.rules, server.role != "both"
        spans, ranks = len(place.hosts) > 1, layout.attention_dp
        shares_ranks = spans and ranks > 1
        on_each = ranks // len(place.hosts)
        side = {
            "VLLM_NIXL_SIDE_CHANNEL_HOST": place.hosts[node],
            "VLLM_NIXL_SIDE_CHANNEL_PORT": _SIDE_PORT + place.first_gpu,
        }
        hides = plan.spec.overlap == "two_batch" and _find_exchange(server) in _OVERLAPPING
        kv_role = "kv_producer" if server.role == "prompts" else "kv_consumer"
        transfer = json.dumps({"kv_connector": "NixlConnector", "kv_role": kv_role})
        balancer = json.dumps({"num_redundant_experts": server.spare_experts})
        flags = {
            "--port": None if node else _find_port(place.first_gpu),
            "--tensor-parallel-size": layout.tp,
            "--data-parallel-size": ranks if ranks > 1 else None,
            "--pipeline-parallel-size": layout.pp if layout.pp > 1 else None,
            "--nnodes": len(place.hosts) if spans and not shares_ranks else None,
            "--node-rank": node if spans and not shares_ranks else None,
            "--master-addr": place.hosts[0] if spans and not shares_ranks else None,
            "--data-parallel-size-local": on_each if shares_ranks else None,
            "--data-parallel-address": place.hosts[0] if shares_ranks else None,
            "--data-parallel-rpc-port": _RPC_PORT if shares_ranks else None,
            "--data-parallel-start-rank": node * on_each if shares_ranks and node else None,
            "--headless": spans and node > 0,
            "--enable-expert-parallel": layout.ep > 1,
            "--all2all-backend": _find_exchange(server) if server.travels else None,
            "--max-num-batched-tokens": rules.token_budget,
            "--max-num-seqs": _count_sequences(server),
            "--scheduling-policy": "priority" if server.is_by_priority else None,
            "--gpu-memory-utilization": find_memory_share(plan.serving.capacity),
            "--kv-cache-dtype": _CACHE.get(plan.placement.precision.kv, "auto"),
            "--max-model-len": server.context_tokens,
            "--enable-eplb": server.is_placed_by_load,
            "--eplb-config": balancer if server.is_placed_by_load else None,
            "--enable-dbo": hides,
            "--quantization": "fp8" if server.weights.quantises else None,
            "--no-enable-prefix-caching": not plan.spec.prefix_caching,
            "--kv-offloading-backend": "native" if server.host_bytes else None,
            # Of all ranks of an engine, GiB.
            "--kv-offloading-size": int(server.host_bytes * layout.tp * layout.pp / 2**30) or None,
            "--kv-transfer-config": transfer if is_pooled else None,
        }
        environment = restrict_gpus(place) | (side if is_pooled else {})
        return write_line(load_programs("vllm").server, [server.weights.path], flags, environment)

    def start_router(self, servers: Mapping[Role, list[Address]], balancing: str) -> str:
        flags: dict[str, object] = {
            "--host": "0.0.0.0",
            "--port": 30000,
            "--policy": _POLICIES.get(balancing, "power_of_two"),
        }
        urls = {role: list_urls(own, _find_port) for role, own in servers.items()}
        if "both" in servers:
            return write_line(
                load_programs("vllm").router, [], flags | {"--worker-urls": urls["both"]}
            )
        line = write_line(
            load_programs("vllm").router, [], flags | {"--vllm-pd-disaggregation": True}
        )
        prompts = (f"--prefill {url}" for url in urls["prompts"])
        return " ".join([line, *prompts, *(f"--decode {url}" for url in urls["decoding"])])

    def describe_router(self, balancing: str) -> str:
        return compare_two_at_random(balancing)

    def list_unexpressed(self, server: Server) -> list[str]:
        plan, layout = server.plan, server.plan.placement.layout
        said = []
        if 1 < layout.ep < layout.num_ranks:
            said.append(
                f"vLLM spreads experts over all {layout.num_ranks} ranks of a replica; "
                f"the plan has groups of {layout.ep}, in which each expert is split "
                f"over {layout.moe_tp} ranks."
            )
        if (
            server.travels
            and plan.spec.dispatch is not None
            and plan.spec.dispatch.get("kind") == "deepep_auto"
        ):
            said.append(
                "The plan exchanges tokens with low-latency kernels in steps of up to 128 tokens "
                "a rank and with normal ones in larger steps; a vLLM server has one kind for all, "
                f"here {_find_exchange(server)}."
            )
        if server.travels:
            said.append(
                f"Tokens travel to experts in {plan.placement.precision.dispatch} in the plan; "
                "in vLLM the weights' format decides."
            )
        if layout.pp > 1:
            said.append(
                f"The plan spreads requests evenly over the {layout.pp} batches in flight; "
                "vLLM gives each batch whatever waits when it is formed, "
                "so that others may be emptier."
            )
        if plan.spec.overlap == "two_batch" and _find_exchange(server) not in _OVERLAPPING:
            said.append(
                "The plan overlaps two halves of a batch, which vLLM does with DeepEP's exchanges "
                f"only: those by {_find_exchange(server)} are not hidden."
            )
        rules, kv = plan.serving.rules, plan.placement.precision.kv
        if _count_sequences(server) < rules.max_sequences:
            said.append(
                f"The plan lets {rules.max_sequences} requests run at once in steps of "
                f"{rules.token_budget} tokens; vLLM lets no more run than a step has tokens."
            )
        if kv not in _CACHE:
            said.append(
                f"The plan keeps the cache in {kv}, which is not among the formats of vLLM's cache."
            )
        return said


def _find_exchange(server: Server) -> str:
    if not server.travels:
        return _EXCHANGES["all_gather"]  # vLLM's own choice, where no flag says another
    kind = (server.plan.spec.dispatch or {}).get("kind")
    usual = "deepep_low_latency" if server.role == "decoding" else "deepep_high_throughput"
    exchange = _EXCHANGES.get(str(kind), usual)
    return _ON_AMD.get(exchange, exchange) if server.is_amd else exchange


def _count_sequences(server: Server) -> int:
    """Requests at once of a data-parallel rank; vLLM refuses to start with more than tokens of a
    step.
    """
    return min(server.plan.serving.rules.max_sequences, server.plan.serving.rules.token_budget)


def _find_port(first_gpu: int) -> int:
    """Port of a replica, another for each of a host."""
    return 8000 + first_gpu


def find_memory_share(capacity: Capacity) -> float:
    """Share of a GPU's memory that the engine may use, rounded down where it was not given so."""
    if capacity.kind == "of_total":
        return capacity.share
    used = capacity.weights_bytes + capacity.step_bytes + capacity.kv_bytes
    return math.floor(used / capacity.total_bytes * 1000) / 1000
