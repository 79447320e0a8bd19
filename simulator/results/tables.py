"""Tables that a run produces. Every backend (SimPy, compiled, in-process, Ray) returns these and
nothing else.

Tables of requests and steps, which may be long, are read a column at a time
(:mod:`simulator.base.columns`); the others are pandas frames. In these, and in every file, the
first column is ``deployment`` (the deployment's name). Times are seconds of virtual time since the
first arrival. :mod:`simulator.results.folder` writes them, :mod:`simulator.report` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.columns import Columns
from simulator.results.phases import STEP_PHASES
from simulator.work.uniform_load import UniformImbalance

ADMISSION_LIMITS = ("none", "max_sequences", "kv_cache", "token_budget", "held_back")
"""Limits that keep waiting requests waiting: none, since none wait; the number of sequences; blocks
of the KV cache; the tokens of a step; or a policy that holds prompts back until more have
arrived."""

OUTCOMES = ("finished", "lost", "unfinished", "refused")
"""Outcomes of a request: it got all its tokens; no replica was left to send it to; the run ended
before; or the engine takes no prompt of its length."""
TURNED_AWAY = ("lost", "refused")
"""Outcomes of requests that are settled without their tokens."""

REQUEST_COLUMNS = {
    "deployment": "name of the deployment",
    "request": "index in the trace",
    "replica": (
        "replica that served it last: of the decode pool where prompts have one of their own, "
        "-1 if it had nothing to decode"
    ),
    "dp_rank": (
        "attention data-parallel rank within the replica; of a pipeline, "
        "counted on from batch in flight to batch"
    ),
    "arrival_s": "arrival",
    "scheduled_s": "first time tokens of it were in a step",
    "first_token_s": "first output token",
    "finish_s": "last output token",
    "stream_s": (
        "from the engine to the client, for each of its tokens: one process serves all requests "
        "that run on a replica. Its latencies contain it; 0 with a prefill pool, whose latencies "
        "were fitted without"
    ),
    "num_input": "prompt tokens",
    "num_output": "output tokens",
    "domain": "kind of text, as the trace names it; empty where it names none",
    "priority": "its priority, as the trace or the workload has it; 0 where they have none",
    "num_cached": "prompt tokens found in the prefix cache",
    "num_read": "tokens of these that were read from tiers below the GPU (kv_tiers)",
    "num_preemptions": "times it lost its KV blocks and was computed again",
    "num_retries": "times that its replica was gone and it was sent to another one",
    "outcome": f"one of {', '.join(OUTCOMES)}",
    "prefill_replica": (
        "replica of the prefill pool that computed its prompt, -1 without such a pool"
    ),
    "room_wait_s": (
        "for which it waited until a step of the decode pool found KV blocks for its prompt's "
        "cache; 0 without such a pool"
    ),
    "transfer_s": (
        "from the end of its prompt until its KV cache was at the decode pool, less what it waited "
        "for room there meanwhile; 0 without a transfer"
    ),
    "transfer_bytes": "of its KV cache that went there, on all receiving ranks",
    "read_wait_s": (
        "from when KV blocks were reserved for it until its first prefix blocks were read from "
        "tiers below the GPU, before it was first scheduled; 0 where none were"
    ),
}
"""Columns of the table of requests, with their descriptions."""
STEP_COLUMNS = {
    "deployment": "name of the deployment",
    "replica": (
        "replica that ran it; those of a prefill pool are numbered on from the decode pool's"
    ),
    "pool": "'both', or 'prefill' and 'decode' where they are pools of their own",
    "start_s": "start of the step, or of the first one that the row stands for",
    "duration_s": "time until every rank was done, added up over steps",
    "num_steps": (
        "steps that the row stands for: decode steps one after another that differ in nothing but "
        "their contexts, 1 for all others"
    ),
    "prefill_tokens": "prompt tokens computed, all ranks of the replica",
    "decodes": (
        "running sequences that each computed their newest token, and a draft behind it where "
        "tokens are drafted, added up over steps"
    ),
    "decode_tokens": (
        "output tokens that these got, of drafts those that were kept; first tokens, which come "
        "out of the prompt's last chunk, not counted. A step that was cut off, since its replica "
        "stopped, computed none of them"
    ),
    "running": "requests holding KV blocks",
    "waiting": (
        "requests queued for KV blocks or their first chunk, in a decode pool those among them "
        "whose caches are still to come"
    ),
    "kv_used": "share of KV blocks in use, mean over ranks, in the last of the steps",
    "limited_by": (
        f"what kept the longest queue waiting, one of {', '.join(ADMISSION_LIMITS)}; "
        "'none' where none waits"
    ),
    **{f"{phase}_s": f"part of the duration: {phase}" for phase in STEP_PHASES},
}
"""Columns of the table of steps, with their descriptions."""
MOVE_COLUMNS = {
    "deployment": "name of the deployment",
    "request": "index in the trace",
    "replica": "replica that stopped while it had the request",
    "at_s": "when it stopped",
}
"""Columns of the table of requests that lost their replica, with their descriptions."""
RANK_COLUMNS = {
    "deployment": "name of the deployment",
    "phase": "'decode' or 'prefill': which of the sampled steps (SampledStep)",
    "layer": "index among the MoE layers",
    "rank": "rank of the replica",
    "num_pairs": "token-expert pairs computed on this rank",
    "experts_s": "time of its expert computation",
    "wait_s": "time of its straggler wait",
}
"""Columns of the table of ranks, with their descriptions."""
EXPERT_COLUMNS = {
    "deployment": "name of the deployment",
    "layer": "index among the MoE layers",
    "expert": "logical expert",
    "load": "its tokens over the layer's mean, 1.0 = even",
}
"""Columns of the table of experts, with their descriptions."""
TRAFFIC_COLUMNS = {
    "deployment": "name of the deployment",
    "phase": "'decode' or 'prefill': which of the sampled steps (SampledStep)",
    "direction": "'dispatch' or 'combine'",
    "source": "sending rank",
    "destination": "receiving rank",
    "num_bytes": (
        "bytes in one mean MoE layer of the step; same-rank copies are not traffic and left out"
    ),
}
"""Columns of the table of traffic, with their descriptions."""
SPAN_COLUMNS = {
    "deployment": "name of the deployment",
    "phase": "'decode' or 'prefill': which of the sampled steps (SampledStep)",
    "rank": "rank of the replica",
    "name": "what it did (one of STEP_PHASES)",
    "layer": "index of the layer, -1 for the whole step",
    "start_s": "since the start of the step",
    "duration_s": "length",
}
"""Columns of the table of spans, with their descriptions."""
LONG_TABLES = {"requests": REQUEST_COLUMNS, "steps": STEP_COLUMNS}
"""Columns of the tables that may be long, by name."""
SHORT_TABLES = {
    "moves": MOVE_COLUMNS,
    "ranks": RANK_COLUMNS,
    "experts": EXPERT_COLUMNS,
    "traffic": TRAFFIC_COLUMNS,
    "spans": SPAN_COLUMNS,
}
"""Columns of the other tables that a run records, by name."""


GAP_BINS_PER_DECADE = 500
"""Bins of the histogram of gaps between tokens for each factor of ten: 500 are 0.46 % wide."""
SHORTEST_GAP_S = 1e-6
"""Lower edge of the histogram, seconds."""
NUM_GAP_BINS = 10 * GAP_BINS_PER_DECADE
"""Number of bins: from a microsecond to ten thousand seconds."""


@dataclass(frozen=True)
class Gaps:
    """Histogram of the gaps between output tokens, in logarithmic bins."""

    counts: NDArray[np.int64]

    def quantile_s(self, level: float) -> float:
        """Gap below which the share ``level`` of all gaps lies, seconds, to the middle of its bin
        (0.23 %); NaN without any.
        """
        total = int(self.counts.sum())
        if total == 0:
            return float("nan")
        number = int(np.searchsorted(np.cumsum(self.counts), level * total))
        return float(SHORTEST_GAP_S * 10 ** ((number + 0.5) / GAP_BINS_PER_DECADE))


@dataclass(frozen=True)
class SampledStep:
    """Step of one phase shown in the tables of ranks, traffic and spans; under ``shown_steps`` of
    the deployment in ``run.json``.
    """

    source: str
    """Source of the step: ``run``: the run took it; ``representative``: as many tokens as a step of
    the run, spread evenly over the data-parallel ranks, all sequences with a typical context."""
    replica: int | None
    """Replica that took the step, as in ``STEP_COLUMNS``; ``None`` for a representative step, as
    are the next three fields."""
    number: int | None
    """Steps that the replica took before."""
    start_s: float | None
    duration_s: float | None
    """Start and duration of the step, seconds, as in ``STEP_COLUMNS``."""
    num_batches: int
    """Batches that the replica's pipeline keeps in flight, of which the fullest is shown."""
    prefill_tokens: list[int]
    """Prompt tokens by data-parallel rank."""
    decode_tokens: list[int]
    """Sequences that get one more token, by data-parallel rank."""
    uniform_imbalance: UniformImbalance | None
    """Imbalance that uniform routing gives at these tokens by chance
    (:mod:`simulator.deployment.uniform_routing`); ``None`` for a dense model."""


@dataclass(frozen=True)
class ReplicasChanged:
    """Replicas that lost GPUs or got them back at one instant; under ``changes`` of the deployment
    in ``run.json``.
    """

    at_s: float
    pool: str
    """Pool of the replicas, named as in ``STEP_COLUMNS``."""
    kind: str
    """``hangs``: a GPU has failed, which nobody has noticed yet; ``stops``: they are gone;
    ``starts``: they serve again; ``shrinks``: they go on with fewer GPUs; ``grows``: GPUs have
    joined them again; ``evacuates``: a failure is announced, until which they get no requests;
    ``launches``: their GPUs are taken, on which they start; ``drains``: they get no more requests;
    ``leaves``: their GPUs are given back."""
    starts: bool
    """Whether they have more GPUs than before."""
    replicas: list[int]
    """Replicas whose state changed, numbered as in ``STEP_COLUMNS``."""
    num_requests: int
    """Requests that they lost, which went elsewhere or were lost."""
    num_gpus: int
    """GPUs that each of them serves with then."""
    serves_s: float
    """Time from which it does so, once its ranks have formed a new group, seconds."""


@dataclass(frozen=True)
class ExpertsMoved:
    """Experts moved at one instant, in each replica of a pool; under ``rebalances`` of the
    deployment in ``run.json``.
    """

    at_s: float
    """Time of the decision, seconds; a replica's experts move when its step in flight ends."""
    pool: str
    """Pool of the replicas, named as in ``STEP_COLUMNS``."""
    num_experts: int
    """Copies of experts that travelled between the ranks of one replica, over all layers."""
    num_bytes: float
    """Bytes of weights of these copies."""
    seconds: float
    """Seconds of the host's work and of the weights' way over a replica's links."""
    imbalance_before: float
    """Imbalance of the load that the decision is made on, with experts where they were: the busiest
    rank's token-expert pairs over the mean rank's, as a mean over layers."""
    imbalance_after: float
    """Imbalance of the same load with experts where they are then."""
    stops: bool = True
    """Whether the replica forms no step meanwhile."""
    num_parts: int = 1
    """Parts of the layers that move one after the other, with a step between."""
    imbalance_next: float | None = None
    """Imbalance of the load from their arrival to the next look of the policy, with experts where
    they are then; ``None`` where the run ended before."""
    imbalance_unmoved: float | None = None
    """Imbalance of that load had experts stayed."""
    alone_s: float | None = None
    """Seconds that it would take were nothing else on the links; ``None`` where nothing is."""


class PriceAudit(NamedTuple):
    """Steps of a run that were priced as one and rank by rank as well."""

    num_steps: int
    mean: float
    """Mean of priced / rank by rank - 1."""
    p90: float
    """90th percentile of its absolute value."""


class WiresShared(NamedTuple):
    """Most that caches between pools and the exchanges of steps slow each other where they meet on
    links, which the ``step`` fidelity leaves out: shares of the time as priced.
    """

    caches: float
    """Share by which caches take longer on the links."""
    decode: float
    """Share by which steps of the decode pool do."""
    prefill: float
    """Share by which steps of the prefill pool do."""


class OverflowByLayer(NamedTuple):
    """Token-expert pairs that an overflow policy changed, by MoE layer."""

    num_batches: int
    """Batches that were counted: all where ranks were simulated, otherwise some of the run."""
    dropped: list[float]
    """Share of each layer's pairs that were dropped."""
    rerouted: list[float]
    """Share of each layer's pairs that another expert computed than the one that was chosen."""


class TierUse(NamedTuple):
    """Use of a tier of the KV cache (:data:`simulator.results.derived.kv_tiers.COLUMNS`)."""

    tier: str
    capacity_tokens: int
    hit_tokens: int
    hit_share: float


class ImbalanceCurve(NamedTuple):
    """Load imbalance over the time of a run, in bins of equal length."""

    at_s: list[float]
    """Middle of each bin, seconds."""
    imbalance: list[float | None]
    """Ratio of the busiest rank's token-expert pairs to the mean rank's, as a mean over layers and
    the time in steps; ``None`` in a bin without steps."""
    uniform: list[float | None]
    """Value of it by chance alone, were routing uniform at the same batches."""


@dataclass(frozen=True)
class DeploymentRecord:
    """Record of one deployment's run."""

    name: str
    requests: Columns
    """Requests with ``REQUEST_COLUMNS`` without the deployment, one row each; times that never came
    are NaN."""
    steps: Columns
    """Steps with ``STEP_COLUMNS`` without the deployment, one row for each step of an engine, or
    for a run of equal steps."""
    ranks: pd.DataFrame
    """Ranks of the sampled steps with ``RANK_COLUMNS``; empty for a dense model."""
    experts: pd.DataFrame
    """Loads of experts with ``EXPERT_COLUMNS``; empty for a dense model."""
    traffic: pd.DataFrame
    """Traffic of the sampled steps with ``TRAFFIC_COLUMNS``; empty where no tokens travel."""
    spans: pd.DataFrame
    """Timeline of the sampled steps with ``SPAN_COLUMNS``."""
    itl: Gaps
    """Gaps between output tokens, pooled over requests."""
    load_imbalance: float
    """Ratio of the busiest rank's tokens to the mean rank's, averaged over MoE layers and busy
    time; NaN for a dense model."""
    uniform_imbalance: float
    """Value of ``load_imbalance`` by chance alone, were routing uniform at the same batches; NaN
    for a dense model."""
    read_bytes: float
    """Bytes of weights and cache that all ranks of all replicas had to read."""
    dropped_share: float
    """Share of token-expert pairs that were dropped; NaN where no overflow policy drops any."""
    overflow_by_layer: OverflowByLayer | None
    """Shares that were dropped and rerouted in each layer; ``None`` where no overflow policy drops
    any."""
    moves: pd.DataFrame
    """Moves of requests with ``MOVE_COLUMNS``, one row for each time that a request's replica
    stopped."""
    changes: tuple[ReplicasChanged, ...]
    """Stops and starts of replicas, in order of time."""
    rebalances: tuple[ExpertsMoved, ...]
    """Moves of experts, in order of time."""
    imbalance_curve: ImbalanceCurve | None
    """Load imbalance over time; ``None`` for a dense model."""
    price_audit: PriceAudit | None
    """Error of prices by mixes of requests on some of the run's own steps, where steps were priced
    so."""
    sampled_steps: dict[str, SampledStep]
    """Steps shown in ``ranks``, ``traffic`` and ``spans``, by phase."""
    tiers: tuple[TierUse, ...] = ()
    """Tiers of the KV cache, the fastest first; none where there is the GPU only."""
    changed_audit: PriceAudit | None = None
    """Error of prices of steps with slower GPUs or links, with ranks lost, or beside experts that
    move, on some of the run's own; ``None`` without any."""
    num_lead_in: int = 0
    """Requests at the beginning that are not judged
    (:func:`simulator.results.metrics.select_judged`)."""
    wires_shared: WiresShared | None = None
    """Error of giving each kind of traffic the links to itself; ``None`` where pools share none, or
    links were simulated."""
