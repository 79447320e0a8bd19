"""A deployment: one model on one cluster, how it is split, and the policies that run it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.base.frozen import Frozen, ListOf, Policy
from simulator.base.kinds import PolicyOf
from simulator.base.quantities import (
    MOST_RANKS,
    Bytes,
    ExchangeChunks,
    ExpertCount,
    Factor,
    GpuCount,
    Label,
    Price,
    Ranks,
    Replicas,
    Seconds,
    Share,
    Stages,
    TokenBudget,
)
from simulator.config.accelerator import Speeds
from simulator.config.dtypes import DType
from simulator.config.engine import EngineName
from simulator.config.failures import Degraded
from simulator.config.host import TierName
from simulator.config.named import ClusterName, ModelName
from simulator.config.pairing import DenseOf, MoeOf, check_one_model
from simulator.config.sparsity import Pruning


class OffloadSpec(Frozen):
    """Routed experts that lie below a GPU's memory, and its cache of some of them."""

    tier: TierName = "dram"
    """Memory that holds all experts: ``dram`` or ``storage`` of the cluster's ``[host]``."""
    slots: ExpertCount
    """Experts of each layer that stay in the GPU's memory."""
    uploads: ExpertCount | None = None
    """Most missing experts that a layer brings to the GPU in one step, those with most tokens
    first; the processor computes the others where they lie. 0 = it computes all that are missing,
    absent = all are brought."""
    bring_from_tokens: TokenBudget | None = None
    """Fewest tokens of a step in which all missing experts are brought, whatever ``uploads`` says:
    many tokens share what is brought (32 in llama.cpp, ``GGML_OP_OFFLOAD_MIN_BATCH``); absent =
    steps of all sizes are alike."""
    caching: Annotated[Policy, PolicyOf("caching")] = {"kind": "lru"}
    """Caching policy: which experts stay in the slots."""
    prefetching: Annotated[Policy, PolicyOf("prefetching")] = {"kind": "none"}
    """Prefetching policy: which experts are brought before their layer asks for them."""

    @property
    def brings_experts(self) -> bool:
        """Whether some steps bring experts to the GPU."""
        return self.uploads != 0 or self.bring_from_tokens is not None


class ParallelSpec(Frozen):
    """Split of one replica over its GPUs: ``tp x attention_dp`` ranks, whose routed experts form
    groups of ``ep``, in each of ``pp`` stages.
    """

    tp: Ranks = 1
    """Tensor parallelism: ranks that share attention heads and dense blocks."""
    attention_dp: Ranks = 1
    """Attention data parallelism: groups of ``tp`` ranks that hold different requests and step
    together."""
    ep: Ranks | None = None
    """Expert parallelism: ranks that share the routed experts whole; absent = 1, and experts are
    split like dense blocks."""
    pp: Stages = 1
    """Pipeline parallelism: stages that hold consecutive layers, each on ``tp x attention_dp``
    GPUs. As many batches as stages are in flight."""

    @model_validator(mode="after")
    def _is_one_replica(self) -> Self:
        num_gpus = self.num_ranks * self.pp
        if num_gpus > MOST_RANKS:
            raise ValueError(
                f"tp x attention_dp x pp ({num_gpus:,}) must be at most {MOST_RANKS:,} GPUs of one "
                "replica; more replicas are how more GPUs are used"
            )
        return self

    @property
    def num_ranks(self) -> int:
        """``R``, GPUs of one stage."""
        return self.tp * self.attention_dp


Overlap = Literal["none", "two_batch", "shared_experts"]
"""Overlap of computation and communication in a step."""


class PrefillPoolSpec(Frozen):
    """Replicas that compute prompts only, and transfer their KV caches over the links to the
    deployment's own, which decode.

    Prefill and decode disaggregated as in DistServe (arXiv:2401.09670), Splitwise
    (arXiv:2311.18677) and Mooncake (arXiv:2407.00079): a prompt never delays the tokens of others,
    and each phase is split as suits it.
    """

    parallel: ParallelSpec = ParallelSpec()
    """Split of one replica of the pool over its GPUs."""
    replicas: Replicas = 1
    """Replicas of the pool."""
    scheduling: Annotated[Policy, PolicyOf("scheduling", is_partial=True)] | None = None
    """Scheduling policy of the pool, whatever the deployment's own says; absent keys are as the
    engine sets them by itself on these GPUs. A prompt yields its first token here and leaves, so
    there is nothing but prompts."""
    cluster: ClusterName | None = None
    """Name of the pool's cluster; absent = the deployment's, whose GPUs the two pools then share
    out."""
    overlap: Overlap = "none"
    """Overlap of computation and communication in the pool's steps, as ``overlap`` of the
    deployment, which holds for decode."""
    wire_fraction: Share = 0.7
    """Share of the links' peak that transfers achieve. Assumed, between what Mooncake's transfer
    engine is published to reach: 87 of 100 GB/s on four 200 Gb/s cards, 190 of 400 GB/s on eight
    400 Gb/s cards."""
    handshake_s: Seconds | None = None
    """Seconds from the end of a prompt until its cache leaves; absent = as the engine's file in
    ``cluster_configs/engines`` has it."""
    scaling: Annotated[Policy, PolicyOf("scaling")] = {"kind": "none"}
    """Scaling policy of the pool: how many of its replicas serve at which time, whatever the
    deployment's own says."""
    layerwise: bool = False
    """Whether each layer's cache leaves as soon as it is computed, so that only what the links have
    not carried by the prompt's end is left (Splitwise, 4.3); if not, transfers start when the
    prompt is done, as vLLM's and SGLang's connectors do."""


class DeploymentSpec(Frozen):
    """Deployment of a scenario: a model on a cluster, its split and its policies."""

    name: Label = Field(min_length=1)
    """Name of the deployment, which differs from the others'."""
    model: ModelName = ""
    """Name of a model, or the path of a TOML file or a Hugging Face ``config.json``; absent =
    ``dense_of`` or ``moe_of`` says which one is made."""
    dense_of: DenseOf | None = None
    """Dense counterpart of a mixture of experts, in the place of ``model``."""
    moe_of: MoeOf | None = None
    """Mixture of experts for a dense model, in the place of ``model``."""
    cluster: ClusterName
    """Name of a cluster with its number of GPUs, such as ``h100-sxm-8``."""
    parallel: ParallelSpec = ParallelSpec()
    """Split of one replica over its GPUs."""
    prefill: PrefillPoolSpec | None = None
    """Pool of its own for prompts; ``parallel`` and ``replicas`` are then the decode pool's. Absent
    = replicas do both."""
    engine: EngineName = "vllm"
    """Serving engine whose kernels and overheads are priced: ``vllm``, ``sglang``, ``trtllm``, or
    one that a calibration adds; kernels it has no entry for are priced as for any engine. A version
    may follow, ``trtllm@1.2.0``, since engines become faster."""
    replicas: Replicas | None = None
    """Number of replicas, or with ``scaling`` the most that there can be; absent = as many as fill
    the cluster, or what the prefill pool leaves of it."""
    idle_gpus: GpuCount = 0
    """GPUs of the cluster that are held and paid for beside those of the replicas, for what may be
    lost, say."""
    weight_dtype: DType | None = None
    """Number format of all matrices; absent = as the model is released (experts may then differ
    from the rest)."""
    expert_dtype: DType | None = None
    """Number format of routed experts, where they are stored in another one than
    ``weight_dtype``."""
    kv_dtype: DType | None = None
    """Number format of the KV cache; absent = bf16, or fp32 with fp32 weights."""
    dispatch_dtype: DType | None = None
    """Number format of activations on their way to the experts; absent = fp8 for experts
    in fp8, fp8_block, mxfp4 or nvfp4, else bf16, or fp32 with fp32 weights."""
    combine_dtype: DType | None = None
    """Number format of activations on their way back from the experts; absent = bf16, or fp32 with
    fp32 weights."""
    memory_fraction: Share | None = None
    """Share of each GPU's memory that weights, activations and the KV cache may use (vLLM's
    ``gpu_memory_utilization``; of what is free before loading, SGLang's ``mem_fraction_static``);
    absent = as the engine's release starts by itself, see ``cluster_configs/engines``."""
    free_memory_fraction: Share | None = None
    """Share of the memory left by weights and activations that the KV cache may use (TensorRT-LLM's
    ``kv_cache_free_gpu_memory_fraction``); give this or ``memory_fraction``."""
    activation_bytes: Bytes | None = None
    """Bytes held free on each GPU for activations and communication buffers; absent = what the
    engine's largest step takes, by the rules in ``cluster_configs/engines``."""
    kv_block_tokens: TokenBudget | None = None
    """Tokens of one KV block; by default the engine's, or 16."""
    prefix_caching: bool = True
    """Whether KV blocks of finished prompts are kept for requests with the same prefix (only traces
    with prefix blocks gain)."""
    kv_tiers: ListOf[Annotated[Policy, PolicyOf("kv_tiers")]] = ()
    """Memory below the GPU's own that prefix blocks are kept in, the fastest first; of a prefill
    pool where there is one."""
    pruning: Pruning | None = None
    """Pruning of the matrices of feed-forward blocks: dense ones, experts, or both; absent =
    none."""
    weights: str | None = None
    """Path of a safetensors file for ``execute``, relative to the scenario; absent = weights are
    drawn from the seed."""
    routing: Annotated[Policy, PolicyOf("routing")] | None = None
    """Routing policy: which experts tokens choose; absent = the model's own default."""
    reduction: Annotated[Policy, PolicyOf("reduction")] | None = None
    """Reduction policy: the model serves with fewer experts than were trained, which are pruned or
    merged, or with a lower top-k; absent = with all."""
    overflow: Annotated[Policy, PolicyOf("overflow")] | None = None
    """Overflow policy: choices that an expert or a rank has no room for, which are dropped or go to
    other experts; absent = ``none``, as serving engines do."""
    placement: Annotated[Policy, PolicyOf("placement")] = {"kind": "contiguous"}
    """Placement policy: which ranks hold which experts, and which experts have copies."""
    replica_choice: Annotated[Policy, PolicyOf("replica_choice")] = {"kind": "turns"}
    """Policy that chooses the copy of an expert that a token goes to, where there are several."""
    spilling: Annotated[Policy, PolicyOf("spilling")] = {"kind": "none"}
    """Spilling policy: excess tokens of a step that other ranks compute, to which the weights of
    their experts travel."""
    offload: OffloadSpec | None = None
    """Offloading of routed experts to memory below the GPU's own; absent = the GPUs hold all."""
    dispatch: Annotated[Policy, PolicyOf("dispatch")] | None = None
    """Dispatch policy: how tokens travel to their experts and back; absent = ``deepep_auto`` on
    accelerators, ``per_node`` between processes of one machine, whose times were measured so."""
    usage: Literal["server", "offline"] = "server"
    """Whether the engine serves over HTTP or is given all requests by a program, which vLLM starts
    with larger steps."""
    scheduling: Annotated[Policy, PolicyOf("scheduling", is_partial=True)] | None = None
    """Scheduling policy: which requests form a step; absent keys are as the engine sets them by
    itself on these GPUs, see ``cluster_configs/engines``."""
    order: Annotated[Policy, PolicyOf("order")] = {"kind": "first_come"}
    """Order policy: which of the requests that wait at a rank is first."""
    balancing: Annotated[Policy, PolicyOf("balancing")] = {"kind": "least_outstanding"}
    """Balancing policy: which replica a request is sent to."""
    failures: ListOf[Annotated[Policy, PolicyOf("failures")]] = ()
    """GPUs and nodes that fail while it serves."""
    degraded: ListOf[Degraded] = ()
    """GPUs and links of its cluster that are slower than the others, always or for a while, beside
    those that the cluster's file names."""
    recovery: Annotated[Policy, PolicyOf("recovery")] = {"kind": "restart"}
    """Recovery policy: what the engine does when GPUs of a replica fail, and when they work again;
    of a prefill pool as well."""
    scaling: Annotated[Policy, PolicyOf("scaling")] = {"kind": "none"}
    """Scaling policy: how many of the replicas serve at which time, which start and drain
    meanwhile."""
    rebalancing: Annotated[Policy, PolicyOf("rebalancing")] = {"kind": "none"}
    """Rebalancing policy: when experts are placed anew while it serves; those of a prefill pool
    stay where they are."""
    speculation: Annotated[Policy, PolicyOf("speculation")] = {"kind": "none"}
    """Speculation policy: how output tokens are drafted, several of which a step verifies at
    once."""
    overlap: Overlap = "none"
    """Overlap of computation and communication. ``two_batch``: a step's tokens go through the
    layers with routed experts in two halves, one computing while the other is on the links
    (DeepSeek-V3's dual micro-batches; SGLang's ``--enable-two-batch-overlap``).
    ``shared_experts``: shared experts compute while tokens travel to the routed ones (SGLang's
    ``--enable-single-batch-overlap``)."""
    exchange_chunks: ExchangeChunks = 1
    """Chunks that tokens travel to experts and back in: experts compute those that have arrived
    while others are on the links, and read their weights once (COMET, arXiv:2502.19811)."""
    network_speed: Factor = 1.0
    """Factor on the rate of every link of the cluster, inside fast domains and between them, to see
    what faster ones would do; latencies stay."""
    speeds: Speeds = Speeds()
    """Speeds of other parts of the machine and of the engine, to see what faster ones would do."""
    price_per_gpu_hour: Price | None = None
    """Price of one GPU for one hour, in the cluster file's currency; absent = the cluster file's. A
    prefill pool on another cluster keeps the price of that one."""
    compute: Annotated[Policy, PolicyOf("cost.compute")] | None = None
    """Prices of computation; absent = as the calibration needs: ``roofline`` for shares of peaks,
    ``host`` for times of a machine."""
    communication: Annotated[Policy, PolicyOf("cost.comm")] | None = None
    """Prices of communication; absent = as the calibration needs: ``alpha_beta`` for shares of
    peaks, ``host`` for times of a machine."""
    calibration: str | None = None
    """Name of a file in ``cluster_configs/calibration``; absent = the accelerator's."""

    _names_one_model = model_validator(mode="after")(check_one_model)
