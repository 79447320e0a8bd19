"""SGLang, and its router.

Flags and the conditions between them as in the release of ``cluster_configs/launch/sglang.toml``,
and its documentation ("Server Arguments", "Expert Parallelism", "PD Disaggregation", "Pipeline
Parallelism", "SGLang Model Gateway"). With ``--attn-dp-size``, ``--chunked-prefill-size`` and
``--max-running-requests`` are those of all data-parallel ranks together, which the server divides
(``arg_groups/parallel_hook.py``); a plan's are each rank's. Before that release
``--attn-dp-size N`` was ``--dp-size N --enable-dp-attention``, which goes at the end of 2026.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from simulator.base.frozen import Frozen
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

_LOW_LATENCY_TOKENS = 128
"""Tokens that low-latency kernels take from a rank, unless an environment variable says more."""
_MOST_LOW_LATENCY_TOKENS = 1024
_PREFILL_TOKENS = 16384
"""Default of ``--max-prefill-tokens``."""
_BOOTSTRAP_PORT = 8998
_CACHE = {"bf16": "bf16", "fp8": "fp8_e4m3", "nvfp4": "nvfp4"}
_SENT = ("bf16", "fp8", "int8", "nvfp4")
"""Formats that DeepEP's dispatcher sends tokens in."""
_POLICIES = {"round_robin": "round_robin", "random": "random"}
_SIDES: dict[Role, str] = {"prompts": "prefill", "decoding": "decode"}


class Sglang(Frozen):
    """``python -m sglang.launch_server``."""

    quantises: bool = True

    def count_starts(self, place: Place) -> int:
        return len(place.hosts)

    def start_server(self, server: Server, place: Place, node: int) -> str:
        plan, layout = server.plan, server.plan.placement.layout
        rules, precision, ranks = plan.serving.rules, plan.placement.precision, layout.attention_dp
        spans, sends, is_pooled = len(place.hosts) > 1, _uses_deepep(server), server.role != "both"
        has_dense = any(ffn.experts is None for ffn in plan.placement.model.ffns.values())
        is_sent = precision.dispatch in _SENT and precision.dispatch != "fp8"
        is_large = rules.token_budget > _PREFILL_TOKENS or not rules.splits_prompts
        mode = {"both": "auto", "prompts": "normal", "decoding": "low_latency"}[server.role]
        flags = {
            "--model-path": server.weights.path,
            "--host": "0.0.0.0",
            "--port": _find_port(place.first_gpu),
            "--tp-size": layout.num_ranks,
            "--attn-dp-size": ranks if ranks > 1 else None,
            "--enable-dp-lm-head": ranks > 1,
            "--moe-dense-tp-size": 1 if ranks > 1 and layout.tp == 1 and has_dense else None,
            "--ep-size": layout.ep if layout.ep > 1 else None,
            "--pp-size": layout.pp if layout.pp > 1 else None,
            "--moe-a2a-backend": ("mori" if server.is_amd else "deepep") if sends else None,
            "--deepep-mode": mode if sends else None,
            "--deepep-dispatcher-output-dtype": precision.dispatch if sends and is_sent else None,
            "--nnodes": len(place.hosts) if spans else None,
            "--node-rank": node if spans else None,
            "--dist-init-addr": f"{place.hosts[0]}:5000" if spans else None,
            "--chunked-prefill-size": rules.token_budget * ranks if rules.splits_prompts else -1,
            "--max-running-requests": rules.max_sequences * ranks,
            "--max-prefill-tokens": rules.token_budget if is_large else None,
            "--context-length": server.context_tokens,
            "--mem-fraction-static": find_memory_share(server),
            "--kv-cache-dtype": _CACHE.get(precision.kv, "auto"),
            "--ep-num-redundant-experts": server.spare_experts
            if server.is_placed_by_load
            else None,
            "--enable-eplb": server.is_placed_by_load,
            "--enable-two-batch-overlap": plan.spec.overlap == "two_batch",
            "--quantization": "fp8" if server.weights.quantises else None,
            "--disable-radix-cache": not plan.spec.prefix_caching,
            "--schedule-policy": "lpm" if server.is_by_prefix else None,
            "--enable-hierarchical-cache": server.host_bytes > 0,
            "--hicache-size": int(server.host_bytes / 1e9) or None,  # of each rank, GB
            "--enable-mixed-chunk": rules.mixes_phases,
            "--scheduler-recv-interval": rules.poll_steps if rules.poll_steps > 1 else None,
            "--disaggregation-mode": _SIDES.get(server.role),
            "--disaggregation-transfer-backend": "mooncake" if is_pooled else None,
            "--disaggregation-bootstrap-port": _BOOTSTRAP_PORT + place.first_gpu
            if server.role == "prompts"
            else None,
        }
        environment = restrict_gpus(place)
        if _needs_room(server):
            most = min(rules.max_sequences, _MOST_LOW_LATENCY_TOKENS)
            environment["SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"] = most
        return write_line(load_programs("sglang").server, [], flags, environment)

    def start_router(self, servers: Mapping[Role, list[Address]], balancing: str) -> str:
        flags: dict[str, object] = {
            "--host": "0.0.0.0",
            "--port": 8000,
            "--policy": _POLICIES.get(balancing, "power_of_two"),
        }
        urls = {role: list_urls(own, _find_port) for role, own in servers.items()}
        if "both" in servers:
            return write_line(
                load_programs("sglang").router, [], flags | {"--worker-urls": urls["both"]}
            )
        line = write_line(load_programs("sglang").router, [], flags | {"--pd-disaggregation": True})
        prompts = zip(urls["prompts"], servers["prompts"], strict=True)
        prefills = (f"--prefill {url} {_BOOTSTRAP_PORT + gpu}" for url, (_, gpu) in prompts)
        return " ".join([line, *prefills, *(f"--decode {url}" for url in urls["decoding"])])

    def describe_router(self, balancing: str) -> str:
        return compare_two_at_random(balancing)

    def list_unexpressed(self, server: Server) -> list[str]:
        plan, layout = server.plan, server.plan.placement.layout
        said = []
        if server.travels and not _uses_deepep(server):
            said.append(
                f"DeepEP takes one group of all {layout.num_ranks} ranks; "
                f"with groups of {layout.ep}, each expert split over {layout.moe_tp} ranks, "
                "SGLang gathers tokens instead of sending them."
            )
        if _needs_room(server):
            said.append(
                f"From {_LOW_LATENCY_TOKENS} tokens a rank on the plan decodes with DeepEP's "
                "normal kernels; SGLang decodes with low-latency ones whatever the batch, "
                "so the environment raises what they hold, which takes memory."
            )
        precision = plan.placement.precision
        if _uses_deepep(server) and precision.dispatch not in _SENT:
            said.append(
                f"Tokens travel to experts in {precision.dispatch} in the plan; SGLang sends "
                f"them in {', '.join(_SENT)}, whichever the weights' format asks for."
            )
        if precision.kv not in (*_CACHE, "fp16"):
            said.append(
                f"The plan keeps the cache in {precision.kv}; SGLang's formats are bf16, "
                "fp8, mxfp8 and nvfp4."
            )
        return said


def _find_port(first_gpu: int) -> int:
    """Port of a replica, another for each of a host; with attention data parallelism a server takes
    those above it for its ranks.
    """
    return 30000 + 300 * first_gpu


def _uses_deepep(server: Server) -> bool:
    layout = server.plan.placement.layout
    return (
        server.travels
        and layout.ep == layout.num_ranks
        and (server.plan.spec.dispatch or {}).get("kind") != "all_gather"
    )


def _needs_room(server: Server) -> bool:
    """Whether low-latency kernels must take more tokens of a rank than they do by themselves; those
    of ROCm take more.
    """
    return (
        _uses_deepep(server)
        and server.role != "prompts"
        and not server.is_amd
        and server.plan.serving.rules.max_sequences > _LOW_LATENCY_TOKENS
    )


def find_memory_share(server: Server) -> float:
    """Share of a GPU that weights and cache take, rounded down: activations come out of the
    rest.
    """
    capacity = server.plan.serving.capacity
    if capacity.kind == "before_loading":
        return capacity.share
    used = capacity.weights_bytes + capacity.kv_bytes
    return math.floor(used / capacity.total_bytes * 1000) / 1000
