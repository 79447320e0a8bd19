"""TensorRT-LLM, and its server in front of prompt and decode servers.

Flags and YAML keys as in ``cluster_configs/launch/trtllm.toml``, and in its documentation of 1.2
and 1.3.0rc24 ("trtllm-serve", "Parallelism in TensorRT LLM", "Disaggregated Serving", "Wide Expert
Parallelism").
Batch size and tokens are each data-parallel rank's. The cache's share of memory is a key of the
file, not a flag: in some releases a ``kv_cache_config`` there replaces what flags say of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from simulator.base.frozen import Frozen
from simulator.planner.serving import (
    Address,
    Place,
    Role,
    Server,
    join_words,
    load_programs,
    restrict_gpus,
    write_line,
)

_POLICIES = {"least_outstanding": False, "least_tokens": True}
"""Balancers that its router has: whether loads are counted in tokens rather than requests."""
_FILES: dict[Role, str] = {
    "both": "trtllm.yml",
    "prompts": "prompts.yml",
    "decoding": "decoding.yml",
}
"""Settings beside the command, by what a server computes."""


class Trtllm(Frozen):
    """``trtllm-serve``."""

    quantises: bool = False

    def count_starts(self, place: Place) -> int:
        return 1  # the launcher starts the others

    def start_server(self, server: Server, place: Place, node: int) -> str:
        plan, layout = server.plan, server.plan.placement.layout
        rules, spans = plan.serving.rules, len(place.hosts) > 1
        file = _FILES[server.role]
        launcher: list[object] = ["srun", "-N", len(place.hosts), "-w", ",".join(place.hosts)]
        launcher += ["--ntasks", layout.num_gpus]
        launcher += ["--ntasks-per-node", layout.num_gpus // len(place.hosts)]
        launcher += ["--mpi=pmix", "trtllm-llmapi-launch"]
        flags = {
            "--host": "0.0.0.0",
            "--port": _find_port(place.first_gpu),
            "--tp_size": layout.num_ranks,
            "--pp_size": layout.pp if layout.pp > 1 else None,
            "--ep_size": None if plan.placement.model.moe is None else layout.ep,
            "--max_batch_size": max(1, rules.max_sequences // layout.pp),  # of each in flight
            "--max_num_tokens": rules.token_budget,
            "--max_seq_len": server.context_tokens,
            "--extra_llm_api_options": file,
        }
        line = write_line(load_programs("trtllm").server, [server.weights.path], flags)
        start = join_words(launcher if spans else [], restrict_gpus(place))
        return f"{_write_file(file, _make_settings(server))}\n{f'{start} {line}'.lstrip()}"

    def start_router(self, servers: Mapping[Role, list[Address]], balancing: str) -> str:
        if "both" in servers:
            return ""
        settings: dict[str, Any] = {"hostname": "0.0.0.0", "port": 9000}
        pools: dict[str, Role] = {"context_servers": "prompts", "generation_servers": "decoding"}
        for key, role in pools.items():
            urls = [f"{host}:{_find_port(gpu)}" for host, gpu in servers[role]]
            settings[key] = {"num_instances": len(urls), "urls": urls}
            if balancing in _POLICIES:
                router = {"type": "load_balancing", "use_tokens": _POLICIES[balancing]}
                settings[key]["router"] = router
        file = "disaggregated.yml"
        line = write_line(load_programs("trtllm").router, [], {"-c": file})
        return f"{_write_file(file, settings)}\n{line}"

    def describe_router(self, balancing: str) -> str:
        if balancing in (*_POLICIES, "round_robin"):
            return ""
        return f"The plan's balancer is '{balancing}'; requests go round in turn instead."

    def list_unexpressed(self, server: Server) -> list[str]:
        plan, layout = server.plan, server.plan.placement.layout
        said = []
        if layout.attention_dp > 1 and layout.tp > 1:
            said.append(
                f"The plan splits attention over {layout.tp} ranks in each "
                f"of {layout.attention_dp} data-parallel groups; TensorRT-LLM's attention is "
                f"data-parallel on all {layout.num_ranks} ranks or on none."
            )
        if server.travels:
            said.append(
                f"Tokens travel to experts in {plan.placement.precision.dispatch} in the plan; "
                "in TensorRT-LLM the weights' format and the kind of exchange that it picks for "
                "the machine decide."
            )
        if server.is_placed_by_load:
            said.append(
                "Expert slots take the WIDEEP backend, which is documented for GB200 NVL72, "
                "H20 and RTX 6000D; elsewhere CUTLASS, TRTLLM or CUTEDSL take its place as far as "
                "the release supports slots there."
            )
        if plan.spec.overlap == "two_batch":
            said.append(
                "TensorRT-LLM has no option for two overlapped halves of a batch; "
                "without them exchanges are not hidden."
            )
        if plan.placement.precision.kv not in ("bf16", "fp16", "fp8", "nvfp4"):
            said.append(
                f"The plan keeps the cache in {plan.placement.precision.kv}, which "
                "TensorRT-LLM's cache has not."
            )
        if server.role == "both" and plan.serving.replicas > 1:
            said.append(
                "trtllm-serve spreads no requests: put an HTTP load balancer in front "
                f"of the {plan.serving.replicas} servers that sends each request to the one "
                "with the fewest open."
            )
        return said


def _make_settings(server: Server) -> dict[str, Any]:
    plan = server.plan
    found: dict[str, Any] = {"enable_chunked_prefill": plan.serving.rules.splits_prompts}
    if plan.placement.layout.attention_dp > 1:
        found["enable_attention_dp"] = True
        if plan.serving.rules.balance_steps:
            found["attention_dp_config"] = {
                "enable_balance": True,
                "timeout_iters": plan.serving.rules.balance_steps,
            }
    cache: dict[str, Any] = {
        "enable_block_reuse": plan.spec.prefix_caching,
        "free_gpu_memory_fraction": find_free_share(server),
    }
    if server.host_bytes:
        cache["host_cache_size"] = int(server.host_bytes)
    if plan.placement.precision.kv in ("fp8", "nvfp4"):
        cache["dtype"] = plan.placement.precision.kv
    found["kv_cache_config"] = cache
    if server.is_placed_by_load:
        slots = {"num_slots": server.num_slots, "layer_updates_per_iter": 1}
        found["moe_config"] = {"backend": "WIDEEP", "load_balancer": slots}
    if server.role != "both":
        found["cache_transceiver_config"] = {
            "backend": "DEFAULT",
            "max_tokens_in_buffer": server.longest_prompt,
        }
    if server.role == "prompts":
        found["disable_overlap_scheduler"] = True
    return found


def _find_port(first_gpu: int) -> int:
    """Port of a replica, another for each of a host."""
    return 8000 + first_gpu


def find_free_share(server: Server) -> float:
    """Share that the cache takes of what weights and activations leave."""
    capacity = server.plan.serving.capacity
    if capacity.kind == "left":
        return capacity.share
    free = capacity.total_bytes - capacity.weights_bytes - capacity.step_bytes
    return math.floor(min(1.0, capacity.kv_bytes / free) * 1000) / 1000


def _write_file(file: str, table: Mapping[str, Any]) -> str:
    """The shell's lines that write a YAML file."""
    return "\n".join([f"cat > {file} <<'EOF'", *_yaml(table, ""), "EOF"])


def _yaml(table: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", *_yaml(value, indent + "  ")]
        elif isinstance(value, list):
            lines += [f"{indent}{key}:", *(f"{indent}  - {entry}" for entry in value)]
        else:
            text = str(value).lower() if isinstance(value, bool) else value
            lines.append(f"{indent}{key}: {text}")
    return lines
