"""The serving engines that commands are written for: how each is started with a split, batching, a
cache and pools, and which of a plan's choices its flags have no word for.

Flags and the conditions between them as in the releases of ``cluster_configs/launch``, and as in
the engines' documentation:

- vLLM: a replica of several nodes is started with ``--nnodes``, or with data-parallel ranks that
  are shared out ("Expert Parallel Deployment", "Data Parallel Deployment", "Parallelism and
  Scaling", "Dual Batch Overlap", "NixlConnector Usage Guide").
- SGLang: "Server Arguments", "Expert Parallelism", "PD Disaggregation", "Pipeline Parallelism",
  "SGLang Model Gateway". With ``--attn-dp-size``, ``--chunked-prefill-size`` and
  ``--max-running-requests`` are those of all data-parallel ranks together, which the server divides
  (``arg_groups/parallel_hook.py``); a plan's are each rank's. Before that release
  ``--attn-dp-size N`` was ``--dp-size N --enable-dp-attention``, which goes at the end of 2026.
- TensorRT-LLM 1.2 and 1.3.0rc24: "trtllm-serve", "Parallelism in TensorRT LLM", "Disaggregated
  Serving", "Wide Expert Parallelism". Batch size and tokens are each data-parallel rank's. The
  cache's share of memory is a key of the file, not a flag: in some releases a ``kv_cache_config``
  there replaces what flags say of it.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping

from simulator.base.findings import Finding
from simulator.deployment.memory import Capacity
from simulator.planner.serving import (
    Address,
    Place,
    Programs,
    Role,
    Server,
    join_words,
    load_programs,
    restrict_gpus,
    write_line,
)

Settings = dict[str, object]
"""A YAML file's table: texts, numbers, lists and tables by key."""
_SIDES: dict[Role, str] = {"prompts": "prefill", "decoding": "decode"}


class Engine(ABC):
    """An engine with a router of its project, which is started on each node of a replica."""

    name: str
    starts_each_node = True
    """Whether a replica of several nodes is started by a command on each of them, not by a
    launcher."""

    @property
    def programs(self) -> Programs:
        """Programs that start it, and what their flags take."""
        return load_programs(self.name)

    def find_port(self, first_gpu: int) -> int:
        """Port of a replica, another for each of a host."""
        return self.programs.port + self.programs.ports_per_gpu * first_gpu

    def count_starts(self, place: Place) -> int:
        """Number of a replica's nodes on which a command is given."""
        return len(place.hosts) if self.starts_each_node else 1

    @abstractmethod
    def start_server(self, server: Server, place: Place, node: int) -> str:
        """The command that starts a replica's part on one of its nodes; its last line starts the
        program.
        """

    def start_router(self, servers: Mapping[Role, list[Address]], balancing: str) -> str:
        """The command that spreads requests over servers; empty where there is none."""
        flags: dict[str, object] = {
            "--host": "0.0.0.0",
            "--port": self.programs.router_port,
            "--policy": self.programs.policies.get(balancing, "power_of_two"),
        }
        urls = {
            role: [f"http://{host}:{self.find_port(gpu)}" for host, gpu in own]
            for role, own in servers.items()
        }
        if "both" in servers:
            return write_line(self.programs.router, [], flags | {"--worker-urls": urls["both"]})
        line = write_line(self.programs.router, [], flags | {self.programs.pools_flag: True})
        behind = [self.name_bootstrap(gpu) for _, gpu in servers["prompts"]]
        prompts = (
            f"--prefill {url}{own}" for url, own in zip(urls["prompts"], behind, strict=True)
        )
        return " ".join([line, *prompts, *(f"--decode {url}" for url in urls["decoding"])])

    def name_bootstrap(self, first_gpu: int) -> str:
        """Words behind the address of a prompt server, for a router."""
        return ""

    def describe_router(self, balancing: str) -> str:
        """Difference of its router from the plan's balancer, in a sentence; empty where there is
        none.
        """
        if balancing in self.programs.policies:
            return ""
        return (
            "The plan sends each request to the least loaded of all servers; "
            "the router compares two at random."
        )

    @abstractmethod
    def list_unexpressed(self, server: Server) -> Iterable[Finding]:
        """Choices of the plan that the engine's flags do not express."""


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
_RPC_PORT = 13345
_SIDE_PORT = 5600
"""Port of NIXL's handshake; each data-parallel rank of a node takes the next one."""


class Vllm(Engine):
    """``vllm serve``."""

    name = "vllm"

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
            "--port": None if node else self.find_port(place.first_gpu),
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
            "--kv-cache-dtype": self.programs.cache.get(plan.placement.precision.kv, "auto"),
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
        return write_line(self.programs.server, [server.weights.path], flags, environment)

    def list_unexpressed(self, server: Server) -> Iterator[Finding]:
        plan, layout = server.plan, server.plan.placement.layout
        rules, exchange = plan.serving.rules, _find_exchange(server)
        if 1 < layout.ep < layout.num_ranks:
            facts = {"ranks": layout.num_ranks, "ep": layout.ep, "moe_tp": layout.moe_tp}
            yield Finding("launch.vllm_groups", **facts)
        if server.travels and (plan.spec.dispatch or {}).get("kind") == "deepep_auto":
            yield Finding("launch.vllm_one_exchange", exchange=exchange)
        if server.travels:
            yield Finding("launch.vllm_dispatch", dtype=plan.placement.precision.dispatch)
        if layout.pp > 1:
            yield Finding("launch.vllm_pipeline", pp=layout.pp)
        if plan.spec.overlap == "two_batch" and exchange not in _OVERLAPPING:
            yield Finding("launch.vllm_overlap", exchange=exchange)
        if _count_sequences(server) < rules.max_sequences:
            most = rules.max_sequences
            yield Finding("launch.vllm_sequences", sequences=most, tokens=rules.token_budget)


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


def find_memory_share(capacity: Capacity) -> float:
    """Share of a GPU's memory that the engine may use, rounded down where it was not given so."""
    if capacity.kind == "of_total":
        return capacity.share
    used = capacity.weights_bytes + capacity.step_bytes + capacity.kv_bytes
    return _round_down(used / capacity.total_bytes)


def _round_down(share: float) -> float:
    return math.floor(share * 1000) / 1000


_LOW_LATENCY_TOKENS = 128
"""Tokens that low-latency kernels take from a rank, unless an environment variable says more."""
_MOST_LOW_LATENCY_TOKENS = 1024
_PREFILL_TOKENS = 16384
"""Default of ``--max-prefill-tokens``."""
_BOOTSTRAP_PORT = 8998
_SENT = ("bf16", "fp8", "int8", "nvfp4")
"""Formats that DeepEP's dispatcher sends tokens in."""


class Sglang(Engine):
    """``python -m sglang.launch_server``."""

    name = "sglang"

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
            "--port": self.find_port(place.first_gpu),
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
            "--mem-fraction-static": find_static_share(server),
            "--kv-cache-dtype": self.programs.cache.get(precision.kv, "auto"),
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
        return write_line(self.programs.server, [], flags, environment)

    def name_bootstrap(self, first_gpu: int) -> str:
        return f" {_BOOTSTRAP_PORT + first_gpu}"

    def list_unexpressed(self, server: Server) -> Iterator[Finding]:
        layout, sent = server.plan.placement.layout, server.plan.placement.precision.dispatch
        if server.travels and not _uses_deepep(server):
            facts = {"ranks": layout.num_ranks, "ep": layout.ep, "moe_tp": layout.moe_tp}
            yield Finding("launch.sglang_groups", **facts)
        if _needs_room(server):
            yield Finding("launch.sglang_low_latency", tokens=_LOW_LATENCY_TOKENS)
        if _uses_deepep(server) and sent not in _SENT:
            yield Finding("launch.sglang_dispatch", dtype=sent, known=_SENT)


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


def find_static_share(server: Server) -> float:
    """Share of a GPU that weights and cache take, rounded down: activations come out of the
    rest.
    """
    capacity = server.plan.serving.capacity
    if capacity.kind == "before_loading":
        return capacity.share
    used = capacity.weights_bytes + capacity.kv_bytes
    return _round_down(used / capacity.total_bytes)


_FILES: dict[Role, str] = {
    "both": "trtllm.yml",
    "prompts": "prompts.yml",
    "decoding": "decoding.yml",
}
"""Settings beside the command, by what a server computes."""


class Trtllm(Engine):
    """``trtllm-serve``."""

    name = "trtllm"
    starts_each_node = False

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
            "--port": self.find_port(place.first_gpu),
            "--tp_size": layout.num_ranks,
            "--pp_size": layout.pp if layout.pp > 1 else None,
            "--ep_size": None if plan.placement.model.moe is None else layout.ep,
            "--max_batch_size": max(1, rules.max_sequences // layout.pp),  # of each in flight
            "--max_num_tokens": rules.token_budget,
            "--max_seq_len": server.context_tokens,
            "--extra_llm_api_options": file,
        }
        line = write_line(self.programs.server, [server.weights.path], flags)
        start = join_words(launcher if spans else [], restrict_gpus(place))
        return f"{_write_file(file, self._make_settings(server))}\n{f'{start} {line}'.lstrip()}"

    def start_router(self, servers: Mapping[Role, list[Address]], balancing: str) -> str:
        if "both" in servers:
            return ""
        settings: Settings = {"hostname": "0.0.0.0", "port": self.programs.router_port}
        counted = self.programs.policies.get(balancing, "round_robin")
        pools: dict[str, Role] = {"context_servers": "prompts", "generation_servers": "decoding"}
        for key, role in pools.items():
            urls = [f"{host}:{self.find_port(gpu)}" for host, gpu in servers[role]]
            pool: Settings = {"num_instances": len(urls), "urls": urls}
            if counted != "round_robin":
                pool["router"] = {"type": "load_balancing", "use_tokens": counted == "tokens"}
            settings[key] = pool
        file = "disaggregated.yml"
        line = write_line(self.programs.router, [], {"-c": file})
        return f"{_write_file(file, settings)}\n{line}"

    def describe_router(self, balancing: str) -> str:
        if balancing in self.programs.policies:
            return ""
        return f"The plan's balancer is '{balancing}'; requests go round in turn instead."

    def list_unexpressed(self, server: Server) -> Iterator[Finding]:
        plan, layout = server.plan, server.plan.placement.layout
        if layout.attention_dp > 1 and layout.tp > 1:
            facts = {"tp": layout.tp, "dp": layout.attention_dp, "ranks": layout.num_ranks}
            yield Finding("launch.trtllm_attention", **facts)
        if server.travels:
            yield Finding("launch.trtllm_dispatch", dtype=plan.placement.precision.dispatch)
        if server.is_placed_by_load:
            yield Finding("launch.trtllm_slots")
        if plan.spec.overlap == "two_batch":
            yield Finding("launch.trtllm_overlap")
        if server.role == "both" and plan.serving.replicas > 1:
            yield Finding("launch.trtllm_balancing", replicas=plan.serving.replicas)

    def _make_settings(self, server: Server) -> Settings:
        plan = server.plan
        found: Settings = {"enable_chunked_prefill": plan.serving.rules.splits_prompts}
        if plan.placement.layout.attention_dp > 1:
            found["enable_attention_dp"] = True
            if plan.serving.rules.balance_steps:
                found["attention_dp_config"] = {
                    "enable_balance": True,
                    "timeout_iters": plan.serving.rules.balance_steps,
                }
        cache: Settings = {
            "enable_block_reuse": plan.spec.prefix_caching,
            "free_gpu_memory_fraction": find_free_share(server),
        }
        if server.host_bytes:
            cache["host_cache_size"] = int(server.host_bytes)
        if (dtype := self.programs.cache.get(plan.placement.precision.kv, "auto")) != "auto":
            cache["dtype"] = dtype
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


def find_free_share(server: Server) -> float:
    """Share that the cache takes of what weights and activations leave."""
    capacity = server.plan.serving.capacity
    if capacity.kind == "left":
        return capacity.share
    free = capacity.total_bytes - capacity.weights_bytes - capacity.step_bytes
    return _round_down(min(1.0, capacity.kv_bytes / free))


def _write_file(file: str, table: Mapping[str, object]) -> str:
    """The shell's lines that write a YAML file."""
    return "\n".join([f"cat > {file} <<'EOF'", *_yaml(table, ""), "EOF"])


def _yaml(table: Mapping[str, object], indent: str) -> list[str]:
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


ENGINES: dict[str, Engine] = {one.name: one for one in (Sglang(), Trtllm(), Vllm())}
"""Engines that commands are known for, by name."""
