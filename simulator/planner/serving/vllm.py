"""vLLM.

Flags as in its documentation of 0.12 to 0.24 ("Expert Parallel Deployment", "Data Parallel
Deployment", "Parallelism and Scaling", "Dual Batch Overlap", "NixlConnector Usage Guide") and in
the help of vllm-router 0.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from simulator.base.frozen import Frozen
from simulator.planner.serving import Place, Role, Server, two_at_random, visible, words

_EXCHANGES = {
    "all_gather": "allgather_reducescatter",
    "per_expert": "deepep_low_latency",
    "per_node": "deepep_high_throughput",
    "per_rank": "deepep_high_throughput",
}
_POLICIES = {"round_robin": "round_robin", "random": "random"}
_RPC_PORT = 13345
_SIDE_PORT = 5600
"""Of NIXL's handshake; each data-parallel rank of a node takes the next one."""


class Vllm(Frozen):
    """``vllm serve``."""

    quantises: bool = True

    def nodes_to_start(self, place: Place) -> int:
        return len(place.hosts)

    def start(self, server: Server, place: Place, node: int) -> str:
        plan, layout = server.plan, server.plan.layout
        environment = visible(place)
        command: list[object] = ["vllm", "serve", server.weights.path]
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
            plan.rules.token_budget,
            "--max-num-seqs",
            plan.rules.max_sequences,
        ]
        command += [
            "--gpu-memory-utilization",
            plan.spec.memory_fraction,
            "--kv-cache-dtype",
            _cache(plan.precision.kv),
        ]
        if (
            plan.model.max_context_tokens is not None
            and plan.capacity.tokens < plan.model.max_context_tokens
        ):
            longest = -(-server.longest_tokens // 1024) * 1024
            command += ["--max-model-len", min(longest, plan.model.max_context_tokens)]
        if server.is_placed_by_load:
            command += [
                "--enable-eplb",
                "--eplb-config",
                json.dumps({"num_redundant_experts": server.spare_experts}),
            ]
        if plan.spec.overlap == "two_batch":
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
            "vllm-router",
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
        plan, layout = server.plan, server.plan.layout
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
                f"Tokens travel to experts in {plan.precision.dispatch} in the plan; "
                "in vLLM the weights' format decides."
            )
        if layout.pp > 1:
            said.append(
                f"The plan spreads requests evenly over the {layout.pp} batches in flight; "
                "vLLM gives each batch whatever waits when it is formed, "
                "so that others may be emptier."
            )
        if plan.precision.kv not in ("bf16", "fp16", "fp8"):
            said.append(
                f"The plan keeps the cache in {plan.precision.kv}, which is not among the formats "
                "documented for vLLM's cache."
            )
        return said


def _exchange(server: Server) -> str:
    kind = (server.plan.spec.dispatch or {}).get("kind")
    if server.is_amd and kind != "all_gather":
        return "mori"
    if kind in _EXCHANGES:
        return _EXCHANGES[kind]
    return "deepep_low_latency" if server.role == "decoding" else "deepep_high_throughput"


def _port(first_gpu: int) -> int:
    """One for each replica of a host."""
    return 8000 + first_gpu


def _cache(dtype: str) -> str:
    return {"bf16": "bfloat16", "fp16": "float16", "fp8": "fp8"}.get(dtype, "auto")
