"""SGLang, and its router.

Flags and the conditions between them as in the release of :data:`_SERVER`, and its documentation
("Server Arguments", "Expert Parallelism", "PD Disaggregation", "Pipeline Parallelism", "SGLang
Model Gateway"). With ``--attn-dp-size``, ``--chunked-prefill-size`` and ``--max-running-requests``
are those of all data-parallel ranks together, which the server divides
(``arg_groups/parallel_hook.py``); a plan's are each rank's. Before that release
``--attn-dp-size N`` was ``--dp-size N --enable-dp-attention``, which goes at the end of 2026.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from simulator.base.frozen import Frozen
from simulator.planner.serving import Place, Program, Role, Server, two_at_random, visible, words

_LOW_LATENCY_TOKENS = 128
"""That low-latency kernels take from a rank, unless an environment variable says more."""
_MOST_LOW_LATENCY_TOKENS = 1024
_PREFILL_TOKENS = 16384
"""Default of ``--max-prefill-tokens``."""
_BOOTSTRAP_PORT = 8998
_CACHE = {"bf16": "bf16", "fp8": "fp8_e4m3", "nvfp4": "nvfp4"}
_SENT = ("bf16", "fp8", "int8", "nvfp4")
"""Formats that DeepEP's dispatcher sends tokens in."""
_POLICIES = {"round_robin": "round_robin", "random": "random"}

_SERVER = Program(
    begins=("python", "-m", "sglang.launch_server"),
    title="SGLang",
    release="0.5.23",
    read_on="2026-11-27",
    source="sglang/srt/server_args.py and sglang/srt/arg_groups of its wheel on PyPI",
    flags={
        "--model-path": "text",
        "--host": "text",
        "--port": "whole",
        "--tp-size": "whole",
        "--attn-dp-size": "whole",
        "--enable-dp-lm-head": "none",
        "--moe-dense-tp-size": "whole",
        "--ep-size": "whole",
        "--pp-size": "whole",
        "--moe-a2a-backend": ("deepep", "mori"),
        "--deepep-mode": ("auto", "normal", "low_latency"),
        "--deepep-dispatcher-output-dtype": _SENT,
        "--nnodes": "whole",
        "--node-rank": "whole",
        "--dist-init-addr": "text",
        "--chunked-prefill-size": "whole",
        "--max-running-requests": "whole",
        "--max-prefill-tokens": "whole",
        "--context-length": "whole",
        "--mem-fraction-static": "share",
        "--kv-cache-dtype": ("auto", *_CACHE.values()),
        "--ep-num-redundant-experts": "whole",
        "--enable-eplb": "none",
        "--enable-two-batch-overlap": "none",
        "--quantization": ("fp8",),
        "--disable-radix-cache": "none",
        "--enable-mixed-chunk": "none",
        "--scheduler-recv-interval": "whole",
        "--disaggregation-mode": ("prefill", "decode"),
        "--disaggregation-transfer-backend": ("mooncake",),
        "--disaggregation-bootstrap-port": "whole",
    },
)
_ROUTER = Program(
    begins=("python", "-m", "sglang_router.launch_router"),
    title="sglang-router",
    release="0.3.2",
    read_on="2026-11-27",
    source="sglang_router/router_args.py of its wheel on PyPI",
    flags={
        "--host": "text",
        "--port": "whole",
        "--policy": ("random", "round_robin", "cache_aware", "power_of_two", "manual"),
        "--worker-urls": "text",
        "--pd-disaggregation": "none",
        "--prefill": "text",
        "--decode": "text",
    },
)


class Sglang(Frozen):
    """``python -m sglang.launch_server``."""

    server_program: ClassVar[Program] = _SERVER
    router_program: ClassVar[Program] = _ROUTER
    quantises: bool = True

    def nodes_to_start(self, place: Place) -> int:
        return len(place.hosts)

    def start(self, server: Server, place: Place, node: int) -> str:
        plan, layout = server.plan, server.plan.placement.layout
        budget, sequences = (
            plan.serving.rules.token_budget * layout.attention_dp,
            plan.serving.rules.max_sequences * layout.attention_dp,
        )
        environment = visible(place)
        command: list[object] = [*_SERVER.begins, "--model-path", server.weights.path]
        command += [
            "--host",
            "0.0.0.0",
            "--port",
            _port(place.first_gpu),
            "--tp-size",
            layout.num_ranks,
        ]
        if layout.attention_dp > 1:
            command += ["--attn-dp-size", layout.attention_dp, "--enable-dp-lm-head"]
            if layout.tp == 1 and any(
                ffn.experts is None for ffn in plan.placement.model.ffns.values()
            ):
                command += ["--moe-dense-tp-size", 1]
        if layout.ep > 1:
            command += ["--ep-size", layout.ep]
        if layout.pp > 1:
            command += ["--pp-size", layout.pp]
        if _uses_deepep(server):
            mode = {"both": "auto", "prompts": "normal", "decoding": "low_latency"}[server.role]
            command += [
                "--moe-a2a-backend",
                "mori" if server.is_amd else "deepep",
                "--deepep-mode",
                mode,
            ]
            if (
                plan.placement.precision.dispatch != "fp8"
                and plan.placement.precision.dispatch in _SENT
            ):
                command += ["--deepep-dispatcher-output-dtype", plan.placement.precision.dispatch]
            if _needs_room(server):
                most = min(plan.serving.rules.max_sequences, _MOST_LOW_LATENCY_TOKENS)
                environment["SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"] = most
        if len(place.hosts) > 1:
            command += [
                "--nnodes",
                len(place.hosts),
                "--node-rank",
                node,
                "--dist-init-addr",
                f"{place.hosts[0]}:5000",
            ]
        command += [
            "--chunked-prefill-size",
            budget if plan.serving.rules.splits_prompts else -1,
            "--max-running-requests",
            sequences,
        ]
        if (
            plan.serving.rules.token_budget > _PREFILL_TOKENS
            or not plan.serving.rules.splits_prompts
        ):
            command += ["--max-prefill-tokens", plan.serving.rules.token_budget]
        command += ["--context-length", server.context_tokens]
        command += [
            "--mem-fraction-static",
            _memory(server),
            "--kv-cache-dtype",
            _CACHE.get(plan.placement.precision.kv, "auto"),
        ]
        if server.is_placed_by_load:
            command += ["--ep-num-redundant-experts", server.spare_experts, "--enable-eplb"]
        if plan.spec.overlap == "two_batch":
            command.append("--enable-two-batch-overlap")
        if server.weights.quantises:
            command += ["--quantization", "fp8"]
        if not plan.spec.prefix_caching:
            command.append("--disable-radix-cache")
        if plan.serving.rules.mixes_phases:
            command.append("--enable-mixed-chunk")
        if plan.serving.rules.poll_steps > 1:
            command += ["--scheduler-recv-interval", plan.serving.rules.poll_steps]
        if server.role != "both":
            mode = "prefill" if server.role == "prompts" else "decode"
            command += [
                "--disaggregation-mode",
                mode,
                "--disaggregation-transfer-backend",
                "mooncake",
            ]
        if server.role == "prompts":
            command += ["--disaggregation-bootstrap-port", _BOOTSTRAP_PORT + place.first_gpu]
        return words(environment, command)

    def router(self, fronts: Mapping[Role, list[tuple[str, int]]], balancing: str) -> str:
        command: list[object] = [*_ROUTER.begins, "--host", "0.0.0.0", "--port", 8000]
        command += ["--policy", _POLICIES.get(balancing, "power_of_two")]
        if "both" in fronts:
            return words(
                {},
                [
                    *command,
                    "--worker-urls",
                    *(f"http://{host}:{_port(gpu)}" for host, gpu in fronts["both"]),
                ],
            )
        command.append("--pd-disaggregation")
        for host, gpu in fronts["prompts"]:
            command += ["--prefill", f"http://{host}:{_port(gpu)}", _BOOTSTRAP_PORT + gpu]
        for host, gpu in fronts["decoding"]:
            command += ["--decode", f"http://{host}:{_port(gpu)}"]
        return words({}, command)

    def unbalanced(self, balancing: str) -> str:
        return two_at_random(balancing)

    def not_expressed(self, server: Server) -> list[str]:
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


def _port(first_gpu: int) -> int:
    """One for each replica of a host; with attention data parallelism a server takes those above it
    for its ranks.
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


def _memory(server: Server) -> float:
    """Share of a GPU that weights and cache take, rounded down: activations come out of the
    rest.
    """
    capacity = server.plan.serving.capacity
    if capacity.kind == "before_loading":
        return capacity.share
    return (
        math.floor((capacity.weights_bytes + capacity.kv_bytes) / capacity.total_bytes * 1000)
        / 1000
    )
