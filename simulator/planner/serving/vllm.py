"""vLLM, and the router of its project.

Flags and the conditions between them as in the release of :data:`_SERVER`; that a replica of
several nodes is started with ``--nnodes``, or with data-parallel ranks that are shared out, as in
its documentation ("Expert Parallel Deployment", "Data Parallel Deployment", "Parallelism and
Scaling", "Dual Batch Overlap", "NixlConnector Usage Guide").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import ClassVar

from simulator.base.frozen import Frozen
from simulator.deployment.memory import Capacity
from simulator.planner.serving import Place, Program, Role, Server, two_at_random, visible, words

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
"""Of NIXL's handshake; each data-parallel rank of a node takes the next one."""

_SERVER = Program(
    begins=("vllm", "serve"),
    title="vLLM",
    release="0.33.0",
    read_on="2026-11-27",
    source=(
        "vllm/engine/arg_utils.py, vllm/config and vllm/entrypoints/common/cli_args.py of its "
        "wheel on PyPI"
    ),
    flags={
        "--port": "whole",
        "--tensor-parallel-size": "whole",
        "--data-parallel-size": "whole",
        "--pipeline-parallel-size": "whole",
        "--nnodes": "whole",
        "--node-rank": "whole",
        "--master-addr": "text",
        "--headless": "none",
        "--data-parallel-size-local": "whole",
        "--data-parallel-address": "text",
        "--data-parallel-rpc-port": "whole",
        "--data-parallel-start-rank": "whole",
        "--enable-expert-parallel": "none",
        "--all2all-backend": ("allgather_reducescatter", *_ON_AMD, *_ON_AMD.values()),
        "--max-num-batched-tokens": "whole",
        "--max-num-seqs": "whole",
        "--gpu-memory-utilization": "share",
        "--kv-cache-dtype": ("auto", *_CACHE.values()),
        "--max-model-len": "whole",
        "--enable-eplb": "none",
        "--eplb-config": "json",
        "--enable-dbo": "none",
        "--quantization": ("fp8",),
        "--no-enable-prefix-caching": "none",
        "--kv-transfer-config": "json",
    },
)
_ROUTER = Program(
    begins=("vllm-router",),
    title="vllm-router",
    release="0.1.17",
    read_on="2026-11-27",
    source="vllm_router/router_args.py of its wheel on PyPI",
    flags={
        "--host": "text",
        "--port": "whole",
        "--policy": ("random", "round_robin", "cache_aware", "power_of_two", "consistent_hash"),
        "--worker-urls": "text",
        "--vllm-pd-disaggregation": "none",
        "--prefill": "text",
        "--decode": "text",
    },
)


class Vllm(Frozen):
    """``vllm serve``."""

    server_program: ClassVar[Program] = _SERVER
    router_program: ClassVar[Program] = _ROUTER
    quantises: bool = True

    def nodes_to_start(self, place: Place) -> int:
        return len(place.hosts)

    def start(self, server: Server, place: Place, node: int) -> str:
        plan, layout = server.plan, server.plan.placement.layout
        environment = visible(place)
        command: list[object] = [*_SERVER.begins, server.weights.path]
        if node == 0:
            command += ["--port", _port(place.first_gpu)]
        command += ["--tensor-parallel-size", layout.tp]
        if layout.attention_dp > 1:
            command += ["--data-parallel-size", layout.attention_dp]
        if layout.pp > 1:
            command += ["--pipeline-parallel-size", layout.pp]
        if len(place.hosts) > 1 and layout.attention_dp == 1:
            command += [
                "--nnodes",
                len(place.hosts),
                "--node-rank",
                node,
                "--master-addr",
                place.hosts[0],
            ]
            command += ["--headless"] if node else []
        elif len(place.hosts) > 1:
            on_each = layout.attention_dp // len(place.hosts)
            command += [
                "--data-parallel-size-local",
                on_each,
                "--data-parallel-address",
                place.hosts[0],
            ]
            command += ["--data-parallel-rpc-port", _RPC_PORT]
            if node:
                command += ["--data-parallel-start-rank", node * on_each, "--headless"]
        if layout.ep > 1:
            command.append("--enable-expert-parallel")
        if server.travels:
            command += ["--all2all-backend", _exchange(server)]
        command += [
            "--max-num-batched-tokens",
            plan.serving.rules.token_budget,
            "--max-num-seqs",
            _sequences(server),
        ]
        command += [
            "--gpu-memory-utilization",
            _memory(plan.serving.capacity),
            "--kv-cache-dtype",
            _CACHE.get(plan.placement.precision.kv, "auto"),
        ]
        command += ["--max-model-len", server.context_tokens]
        if server.is_placed_by_load:
            command += [
                "--enable-eplb",
                "--eplb-config",
                json.dumps({"num_redundant_experts": server.spare_experts}),
            ]
        if plan.spec.overlap == "two_batch" and _exchange(server) in _OVERLAPPING:
            command.append("--enable-dbo")
        if server.weights.quantises:
            command += ["--quantization", "fp8"]
        if not plan.spec.prefix_caching:
            command.append("--no-enable-prefix-caching")
        if server.role != "both":
            side = {
                "VLLM_NIXL_SIDE_CHANNEL_HOST": place.hosts[node],
                "VLLM_NIXL_SIDE_CHANNEL_PORT": _SIDE_PORT + place.first_gpu,
            }
            environment |= side
            role = "kv_producer" if server.role == "prompts" else "kv_consumer"
            command += [
                "--kv-transfer-config",
                json.dumps({"kv_connector": "NixlConnector", "kv_role": role}),
            ]
        return words(environment, command)

    def router(self, fronts: Mapping[Role, list[tuple[str, int]]], balancing: str) -> str:
        urls = {
            role: [f"http://{host}:{_port(gpu)}" for host, gpu in found]
            for role, found in fronts.items()
        }
        command: list[object] = [
            *_ROUTER.begins,
            "--host",
            "0.0.0.0",
            "--port",
            30000,
            "--policy",
            _POLICIES.get(balancing, "power_of_two"),
        ]
        if "both" in urls:
            return words({}, [*command, "--worker-urls", *urls["both"]])
        command.append("--vllm-pd-disaggregation")
        for flag, role in (("--prefill", "prompts"), ("--decode", "decoding")):
            for url in urls[role]:  # type: ignore[index]
                command += [flag, url]
        return words({}, command)

    def unbalanced(self, balancing: str) -> str:
        return two_at_random(balancing)

    def not_expressed(self, server: Server) -> list[str]:
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
                f"here {_exchange(server)}."
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
        if plan.spec.overlap == "two_batch" and _exchange(server) not in _OVERLAPPING:
            said.append(
                "The plan overlaps two halves of a batch, which vLLM does with DeepEP's exchanges "
                f"only: those by {_exchange(server)} are not hidden."
            )
        rules, kv = plan.serving.rules, plan.placement.precision.kv
        if _sequences(server) < rules.max_sequences:
            said.append(
                f"The plan lets {rules.max_sequences} requests run at once in steps of "
                f"{rules.token_budget} tokens; vLLM lets no more run than a step has tokens."
            )
        if kv not in _CACHE:
            said.append(
                f"The plan keeps the cache in {kv}, which is not among the formats of vLLM's cache."
            )
        return said


def _exchange(server: Server) -> str:
    if not server.travels:
        return _EXCHANGES["all_gather"]  # vLLM's own choice, where no flag says another
    kind = (server.plan.spec.dispatch or {}).get("kind")
    usual = "deepep_low_latency" if server.role == "decoding" else "deepep_high_throughput"
    exchange = _EXCHANGES.get(str(kind), usual)
    return _ON_AMD.get(exchange, exchange) if server.is_amd else exchange


def _sequences(server: Server) -> int:
    """Requests at once of a data-parallel rank; vLLM refuses to start with more than tokens of a
    step.
    """
    return min(server.plan.serving.rules.max_sequences, server.plan.serving.rules.token_budget)


def _port(first_gpu: int) -> int:
    """One for each replica of a host."""
    return 8000 + first_gpu


def _memory(capacity: Capacity) -> float:
    """Share of a GPU's memory that the engine may use, rounded down where it was not given so."""
    if capacity.kind == "of_total":
        return capacity.share
    used = capacity.weights_bytes + capacity.step_bytes + capacity.kv_bytes
    return math.floor(used / capacity.total_bytes * 1000) / 1000
