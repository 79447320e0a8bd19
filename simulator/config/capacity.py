"""A plan's question, as written in a TOML file: this traffic, these targets, these models, these
machines, this budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import PrivateAttr, field_validator, model_validator

from simulator.base.frozen import Frozen, ListOf, Policy, SomeOf
from simulator.base.kinds import PolicyOf
from simulator.base.quantities import (
    Budget,
    Duration,
    Factor,
    GpuCount,
    Gpus,
    Label,
    NodeCount,
    Nodes,
    Price,
    Ranks,
    Ratio,
    ReplicaGpus,
    Score,
    Sequences,
    Share,
    Stages,
    TokenBudget,
    TokenRate,
    Tokens,
    Variants,
    Watts,
    value_range,
)
from simulator.config.dtypes import DType
from simulator.config.engine import EngineName
from simulator.config.failures import FailureRates
from simulator.config.job import Job
from simulator.config.named import ClusterName, ModelName
from simulator.config.pairing import DenseOf, MoeOf, check_one_model, model_text
from simulator.config.sparsity import Pruning
from simulator.config.workload import WorkloadSpec

_DECIDED = {
    **dict.fromkeys(("name", "model", "dense_of", "moe_of", "routing", "engine"), "[[models]]"),
    "cluster": "clusters.cluster",
    "network_speed": "clusters.network_speed",
    "price_per_gpu_hour": "clusters.price_per_gpu_hour",
    "parallel": "space.tp, space.attention_dp, space.pp and space.ep",
    **dict.fromkeys(("replicas", "idle_gpus"), "targets and limits"),
    "prefill": "space.disaggregate",
    "weight_dtype": "models.weight_dtypes",
    "kv_dtype": "models.kv_dtypes",
    "dispatch_dtype": "models.dispatch_dtypes",
    "pruning": "models.prunings",
    "placement": "space.placements and space.redundant_experts",
    "overlap": "space.overlap",
    "scheduling.token_budget": "space.token_budgets",
    "scheduling.max_sequences": "space.max_sequences",
}
"""Keys of a deployment that a search decides, and where a question says how."""


def _check_keys(keys: Iterable[str], where: str) -> None:
    """Refuse keys of a deployment that the search decides."""
    for key in keys:
        decided = next((one for one in _DECIDED if key == one or key.startswith(f"{one}.")), None)
        if decided is not None:
            raise ValueError(
                f"{where} has {key}, which the search decides; say in {_DECIDED[decided]} what "
                "it may try, or leave it out"
            )


def list_keys(table: Mapping[str, object], before: str = "") -> Iterator[str]:
    """Dotted keys of a table's values.

    >>> list(list_keys({"scheduling": {"watermark": 0.1}, "usage": "server"}))
    ['scheduling.watermark', 'usage']
    """
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from list_keys(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


class Percentiles(Frozen):
    """Limits in seconds at percentiles over requests; an absent one is not promised."""

    mean: Duration | None = None
    """Limit on the mean over requests, seconds; absent = none."""
    p50: Duration | None = None
    """Limit on the median over requests, seconds; absent = none."""
    p90: Duration | None = None
    """Limit on the 90th percentile over requests, seconds; absent = none."""
    p95: Duration | None = None
    """Limit on the 95th percentile over requests, seconds; absent = none."""
    p99: Duration | None = None
    """Limit on the 99th percentile over requests, seconds; absent = none."""

    def limits(self) -> dict[str, float]:
        """Limits that are given, seconds by name."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class Targets(Frozen):
    """Latency and throughput that a deployment must reach for the workload."""

    ttft_s: Percentiles = Percentiles()
    """Limits on the time to first token, queueing included, seconds."""
    tpot_s: Percentiles = Percentiles()
    """Limits on the time per output token, seconds."""
    e2e_s: Percentiles = Percentiles()
    """Limits on the time from arrival to the last token, seconds."""
    attainment: Share | None = None
    """Share of requests that must each keep all of ``workload.slo``; absent = none."""
    output_tokens_per_s: TokenRate | None = None
    """Least output tokens per second of the whole deployment; absent = none."""

    @property
    def latencies(self) -> dict[str, dict[str, float]]:
        """Limits in seconds by latency and level, the highest percentile last."""
        own = {"ttft_s": self.ttft_s, "tpot_s": self.tpot_s, "e2e_s": self.e2e_s}
        return {name: percentiles.limits() for name, percentiles in own.items()}

    @property
    def limits(self) -> dict[str, float]:
        """Limits by target (``ttft_s.p90``), in seconds, as shares or in tokens per second."""
        others = {"attainment": self.attainment, "output_tokens_per_s": self.output_tokens_per_s}
        return {
            f"{name}.{level}": limit
            for name, limits in self.latencies.items()
            for level, limit in limits.items()
        } | {name: limit for name, limit in others.items() if limit is not None}

    @field_validator("ttft_s", "tpot_s", "e2e_s", mode="before")
    @classmethod
    def _says_of_whom(cls, value: object) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(  # noqa: TRY004 - pydantic reports no TypeError
                f"says not for how many requests; write {{ p90 = {value} }} for nine of ten, "
                "or mean, p50, p95, p99"
            )
        return value

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not self.limits:
            raise ValueError("sets no target; give one, such as tpot_s = { p90 = 0.05 }")
        return self


class CandidateModel(Frozen):
    """A model that would do the job."""

    model: ModelName = ""
    """Name of a model, or the path of a TOML file or a Hugging Face ``config.json``; absent =
    ``dense_of`` or ``moe_of`` says which one is made."""
    dense_of: DenseOf | None = None
    """Dense counterpart of a mixture of experts, in the place of ``model``."""
    moe_of: MoeOf | None = None
    """Mixture of experts for a dense model, in the place of ``model``."""
    quality: Score | None = None
    """Score of the model by the user's own measure, higher is better; absent = not compared."""
    engine: EngineName = "vllm"
    """Serving engine, such as ``vllm``, ``sglang`` or ``trtllm@1.2.0``."""
    weight_dtypes: SomeOf[DType] | None = None
    """Number formats of weights to try; absent = as the model is released."""
    kv_dtypes: SomeOf[DType] | None = None
    """Number formats of the KV cache to try; absent = bf16."""
    dispatch_dtypes: SomeOf[DType] | None = None
    """Number formats to try for activations on their way to experts; absent = fp8 for experts
    in fp8, fp8_block, mxfp4 or nvfp4, else bf16, or fp32 with fp32 weights."""
    routing: Annotated[Policy, PolicyOf("routing")] | None = None
    """Routing policy: which experts tokens choose; absent = the model's own default."""
    prunings: ListOf[Pruning] = ()
    """Prunings of feed-forward blocks to try besides the whole model:
    ``[{ kind = "two_four" }]``."""
    pruned_quality: Score | None = None
    """Score of the pruned model by the user's own measure; absent = not compared."""
    deployment: dict[str, Any] = {}
    """Keys of every deployment of the model, as in a scenario's ``[[deployments]]``, such as
    ``speculation`` or ``offload``; not those that the search decides."""

    @field_validator("deployment")
    @classmethod
    def _leaves_the_search_its_own(cls, table: dict[str, object]) -> dict[str, object]:
        _check_keys(list_keys(table), "deployment")
        return table

    _names_one_model = model_validator(mode="after")(check_one_model)


class CandidateCluster(Frozen):
    """Machines that could be rented, or are there."""

    cluster: ClusterName
    """Name of a cluster file without a number of GPUs: ``h100-sxm``."""
    price_per_gpu_hour: Price | None = None
    """Price of one GPU for one hour, in the cluster file's currency; absent = the cluster
    file's."""
    max_gpus: Gpus | None = None
    """Most GPUs of this kind; absent = the largest size that the file lists."""
    network_speed: Factor = 1.0
    """Factor on the rate of all links, to see what faster ones would do."""


class Limits(Frozen):
    """Limits on size, power, cost and quality."""

    gpus: Gpus | None = None
    """Most GPUs of the deployment; absent = no limit."""
    nodes: Nodes | None = None
    """Most nodes of the deployment; absent = no limit."""
    power_w: Watts | None = None
    """Most power, watts: boards of all GPUs at full load, times ``power.overhead``; absent = no
    limit."""
    budget_per_hour: Budget | None = None
    """Most cost per hour, in the clusters' currency; absent = no limit."""
    min_quality: Score | None = None
    """Lowest score of a model that is considered; absent = no limit."""


class Spare(Frozen):
    """Machines held free for failures: all targets are still met when these are lost at once
    (N+k).

    A replica that loses a GPU is gone until it starts again elsewhere. A lost GPU takes the place
    of one replica, or of one node where a replica fills several. A lost node takes all its GPUs;
    where the cluster's market rents parts of a node, and one replica is such a part, every replica
    is rented on a node of its own, and a lost node takes one replica.
    """

    nodes: NodeCount = 0
    """Nodes that may be lost."""
    gpus: GpuCount = 0
    """GPUs that may be lost besides."""

    def __str__(self) -> str:
        """The loss in words.

        >>> str(Spare(nodes=2, gpus=1)), str(Spare())
        ('2 nodes and 1 GPU', 'nothing')
        """
        counts = ((self.nodes, "node"), (self.gpus, "GPU"))
        parts = [f"{count:,} {what}{'' if count == 1 else 's'}" for count, what in counts if count]
        return " and ".join(parts) or "nothing"


class Power(Frozen):
    """Price of electricity; 0 where the price of a GPU-hour includes it."""

    price_per_kwh: Price = 0.0
    """Price of one kilowatt-hour, in ``currency``; 0 where the price of a GPU-hour includes
    electricity."""
    overhead: Annotated[float, value_range(1, 100)] = 1.3
    """Ratio of the power of the whole machine room to that of the GPUs' boards."""
    currency: Label = "USD"
    """Currency of the price."""


class Space(Frozen):
    """Configurations that are tried. Impossible combinations are left out, with the reason."""

    tp: SomeOf[Ranks] = (1, 2, 4, 8)
    """Tensor-parallel sizes to try."""
    attention_dp: SomeOf[Ranks] = (1, 2, 4, 8, 16, 32, 64)
    """Attention data-parallel sizes to try: groups of ``tp`` ranks."""
    pp: SomeOf[Stages] = (1, 2, 4)
    """Pipeline stages to try. More than one are tried where people run them: without attention data
    parallelism; over nodes that each stage fills; inside a node over PCIe, or where tensor
    parallelism can go no further."""
    ep: SomeOf[Literal["off", "all"]] | None = None
    """Expert parallelism to try: ``"off"`` (experts split like dense blocks) and ``"all"`` (spread
    over all ranks of a replica); absent = both."""
    token_budgets: SomeOf[TokenBudget] = (2048, 8192)
    """Most tokens of one step of a data-parallel rank to try."""
    redundant_experts: SomeOf[Ratio] = (0.0, 0.125)
    """Slots for copies of hot experts to try, as a share of the experts; 0 = none."""
    placements: SomeOf[Literal["contiguous", "eplb"]] = ("contiguous",)
    """Placements to try for experts without copies: in order of their index, or by their loads of
    the day before, as those with copies always are."""
    max_sequences: SomeOf[Sequences] | None = None
    """Most requests that may run at once on a data-parallel rank to try; absent = as many as the
    engine starts with on these GPUs."""
    overlap: SomeOf[Literal["none", "two_batch"]] = ("none", "two_batch")
    """Overlaps of computation and communication to try, as ``overlap`` of a deployment."""
    disaggregate: bool = True
    """Whether prompts may have a pool of their own."""
    max_gpus_per_replica: ReplicaGpus = 64
    """Most GPUs of one replica."""
    keys: dict[str, SomeOf[Any]] = {}
    """Values to try of further keys of a deployment, by dotted key:
    ``{ "speculation.tokens" = [1, 3] }``. Every model is tried with every combination."""
    max_variants: Variants = 200
    """Most variants of models: their prunings and combinations of ``keys``."""

    @field_validator("keys")
    @classmethod
    def _leaves_the_search_its_own(cls, keys: dict[str, object]) -> dict[str, object]:
        _check_keys(keys, "keys")
        return keys


_VARIANT_S = 2.0
"""Seconds that one model on one kind of machines takes one core, roughly: a fifteenth of ``moesim
plan azure_conv``, rounded down."""


def _overlap(key: str, other: str) -> bool:
    """Whether one of two dotted keys holds the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


class Crossover(Frozen):
    """The map of where MoE wins: which models, and the loads, lengths, expert-parallel sizes and
    networks that it covers.
    """

    models: SomeOf[str] | None = None
    """Models of the map, among the question's; every MoE is held against every dense one. Absent =
    the best of each kind."""
    cluster: str | None = None
    """Cluster of the map, one of the question's; absent = the recommended one."""
    inputs: SomeOf[Tokens] = (1024, 8192, 32768)
    """Prompt lengths of the map, tokens."""
    outputs: SomeOf[Tokens] = (1024, 8192)
    """Output lengths of the map, tokens."""
    batches: SomeOf[Factor] = (1.0, 4.0, 16.0, 64.0, 256.0)
    """Loads of the map: sequences on a GPU."""
    times_s: SomeOf[Duration] = (0.01, 0.02, 0.03, 0.05, 0.1)
    """Targets of the map: seconds of one output token of one user."""
    eps: SomeOf[Ranks] = (1, 8, 32)
    """Expert-parallel sizes of the map; 1 = experts split like dense blocks, over one node at
    most. Sizes that machines and limits do not allow are left out."""
    networks: SomeOf[Factor] = (0.5, 1.0, 2.0)
    """Networks of the map: factors on the rate of all links."""


class Question(Job):
    """Question of ``moesim plan``: traffic, targets, candidate models and machines, and limits."""

    NOUN = "plan"
    FAMILY = "workloads/plans"
    TABLES = "[workload], [targets], [[models]] and [[clusters]]"
    TAKEN = "moesim plan takes"

    _where: str = PrivateAttr(default="plan")
    workload: WorkloadSpec
    """Traffic to serve; ``rate_scale`` is the growth factor."""
    peak_s: Duration | None = None
    """Seconds of the busiest stretch of the workload to plan for; absent = all of it."""
    targets: Targets
    """Latency and throughput that the deployment must reach."""
    models: SomeOf[CandidateModel]
    """Models that would do the job."""
    clusters: SomeOf[CandidateCluster]
    """Machines that could be rented, or are there."""
    limits: Limits = Limits()
    """Limits on size, power and cost."""
    spare: Spare = Spare()
    """Machines held free for failures."""
    failures: FailureRates = FailureRates()
    """Rates of failures, which say for what share of the time a spare is enough."""
    power: Power = Power()
    """Price of electricity."""
    space: Space = Space()
    """Configurations that are tried."""
    crossover: Crossover = Crossover()
    """Map of where MoE wins over dense."""

    @model_validator(mode="after")
    def _attainment_has_limits(self) -> Self:
        slo = self.workload.slo
        if self.targets.attainment is not None and not slo.is_set:
            raise ValueError(
                "targets.attainment is a share of requests that keep [workload.slo], "
                "which sets no limit"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_there_twice(self) -> Self:
        clusters = [one.cluster for one in self.clusters]
        twice = next((name for name in clusters if clusters.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"clusters lists '{twice}' {clusters.count(twice)} times, and the answer could "
                "not tell them apart; list each kind of machines once, and ask for other prices "
                "with --set clusters.0.price_per_gpu_hour=..."
            )
        for one in self.models:
            if self.models.count(one) > 1:
                raise ValueError(
                    f"models lists '{model_text(one)}' twice with the same keys; list it once"
                )
        return self

    @model_validator(mode="after")
    def _gives_keys_once(self) -> Self:
        for one in self.models:
            for key in list_keys(one.deployment):
                twice = next((name for name in self.space.keys if _overlap(key, name)), None)
                if twice is not None:
                    raise ValueError(
                        f"space.keys tries {twice}, and the deployment of {model_text(one)} "
                        f"sets {key}; give it once"
                    )
        return self

    @model_validator(mode="after")
    def _has_few_variants(self) -> Self:
        combinations = math.prod(len(values) for values in self.space.keys.values())
        count = combinations * sum(1 + len(one.prunings) for one in self.models)
        if count > self.space.max_variants:
            seconds = _VARIANT_S * count * len(self.clusters)
            raise ValueError(
                f"space.keys makes {count:,} variants of the models, which is more than "
                f"space.max_variants = {self.space.max_variants:,}: about {seconds / 60:,.0f} "
                "minutes on one core; try fewer values, or raise it"
            )
        return self

    @model_validator(mode="after")
    def _maps_its_own(self) -> Self:
        asked = self.crossover
        models = [model_text(one) for one in self.models]
        clusters = [one.cluster for one in self.clusters]
        for key, names, known in (
            ("models", asked.models or (), models),
            ("cluster", filter(None, [asked.cluster]), clusters),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"crossover.{key} names '{name}', which is not among the question's "
                        f"own: {', '.join(known)}"
                    )
        return self
