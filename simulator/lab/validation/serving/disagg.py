"""Disaggregated points: one pool computes prompts, the other decodes, and so many requests go round
in both.

Steps are those of the pools' own plans. The prefill pool is served step by step; a request then
decodes for as long as the decode pool's steps take with as many requests as are not in the prefill
pool (Little's law).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.config.calibration.engine import DisaggregationFit
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.pool import make_limits, scaled_blocks
from simulator.engine.state import start_ranks, start_requests
from simulator.engine.step_log import LOG_COLUMNS
from simulator.engine.table import StepTable, price_step
from simulator.lab.validation.serving.campaigns import load_campaigns
from simulator.lab.validation.serving.load import Latencies, weights_of
from simulator.lab.validation.serving.points import Point, Pool
from simulator.lab.validation.serving.prefill_loop import Prompts, first_tokens
from simulator.workload.traces import RequestTrace

_FEW_ROUNDS, _MANY_IN_FLIGHT = 4, 512
"""Rounds that are served with that many requests in flight and more, and stand for all; all are
served with fewer."""
_MOST_SEQUENCES = 2048
"""Most sequences of a data-parallel rank; beyond that a step is taken to be as long."""
_SETTLES = 3
"""Times that the share of requests which decode is found again."""


def assumed_pool(point: Point, unsaid_workers: int) -> Pool:
    """The decode pool where the table does not say how many workers it has, nor whether attention
    is data-parallel.
    """
    pool, assumed = point.decode, load_campaigns()[point.campaign].pools
    workers = min(unsaid_workers, point.concurrency)
    ranks = pool.num_ranks
    if pool.attention_dp > 1 or point.concurrency < assumed.data_parallel_from * workers:
        return pool._replace(workers=workers)
    return Pool(1, ranks, ranks, workers, pool.batch)


class Half(NamedTuple):
    """One pool, ready to be priced."""

    plan: DeploymentPlan
    table: StepTable
    pool: Pool

    def step_s(self, per_rank: int, new: int, context: int, busy: int | None = None) -> float:
        """Seconds of a step in which ``busy`` data-parallel ranks, by default all, compute ``new``
        tokens of ``per_rank`` sequences.
        """
        dp = self.plan.placement.layout.attention_dp
        count = per_rank * dp
        trace = RequestTrace(
            np.zeros(count),
            np.full(count, context or new),
            np.full(count, 2),
            "",
            False,
        )
        requests = start_requests(trace, with_prefixes=False)
        limits = make_limits(self.plan, trace)
        ranks = start_ranks(dp, per_rank, scaled_blocks(self.plan, limits), 0)
        ranks.running[:] = np.arange(count).reshape(per_rank, dp).T
        ranks.each.num_running[: dp if busy is None else busy] = per_rank
        ranks.chunk[:] = new
        requests.each.computed[:] = context
        requests.each.generated[:] = int(context > 0)
        return float(price_step(requests, ranks, self.table, 0, np.zeros(len(LOG_COLUMNS))))


def is_behind_exchange(alone: Point) -> bool:
    """Whether a pool's experts are reached by DeepEP's kernels: SGLang's way with data-parallel
    attention and experts spread whole.
    """
    return alone.engine == "sglang" and alone.decode.attention_dp > 1 and alone.decode.ep > 1


class Decodes(NamedTuple):
    """The decode pool: seconds of a step by sequences of a data-parallel rank."""

    ranks: int
    """Data-parallel ranks of all workers."""
    room: int
    """Sequences that the cache of a rank holds."""
    counts_C: Ints
    seconds_C: Floats

    def token_s(self, decoding: float) -> float:
        """Seconds of a token with ``decoding`` sequences in the pool."""
        return float(np.interp(decoding / self.ranks, self.counts_C, self.seconds_C))


class Load(NamedTuple):
    """Load of both pools, in means."""

    concurrency: int
    num_input: int
    num_output: int
    campaign: str
    """File of ``workloads/campaigns`` that says how requests were sent."""

    @classmethod
    def from_point(cls, point: Point) -> Load:
        """Load of a point, whose lengths lie between the shortest and what is asked for."""
        share = (1 + point.shortest) / 2
        return cls(
            point.concurrency,
            max(1, round(point.num_input * share)),
            max(2, round(point.num_output * share)),
            point.campaign,
        )


class Pools(NamedTuple):
    """All that is needed of two pools to answer a point with any coefficients."""

    prompts: Prompts
    decodes: Decodes
    workers: int | None
    """Workers that compute prompts; ``None`` where the table does not say."""
    transfer_s: float
    own_s: float
    """Seconds before a first token beside queues, steps and links."""
    hand_over_steps: float
    """Steps of the decode pool before it shows a first token, on the mean: half of one until it
    looks for room, half until the cache is noticed, and one more where the last token of the prompt
    is computed again."""
    may_draft: bool
    """Whether decodes may come in drafts without the table saying so."""


def prompts_of(half: Half, num_input: int) -> Prompts:
    """The steps of a prefill worker."""
    dp, budget = half.pool.attention_dp, half.plan.serving.rules.token_budget
    most, steps, new = (
        max(1, budget // num_input),
        math.ceil(num_input / budget),
        min(num_input, budget),
    )
    busy = sorted({1, max(1, dp // 2), dp})
    each = sorted({1, min(2, most), most})
    seconds = [[half.step_s(n, new, 0, ranks) * steps for n in each] for ranks in busy]
    return Prompts(
        dp, most, np.array(busy, dtype=float), np.array(each, dtype=float), np.array(seconds)
    )


def most_decode_tokens(plan: DeploymentPlan) -> int:
    """Most tokens of a data-parallel rank in the steps of :func:`decodes_of`."""
    return _MOST_SEQUENCES * (1 + plan.placement.drafts.num_tokens)


def decodes_of(half: Half, num_input: int, num_output: int) -> Decodes:
    """The steps of a decode worker, up to as many sequences as its cache holds; over the tokens
    that a sequence gets of one.
    """
    capacity = half.plan.serving.capacity
    room = max(1, capacity.num_blocks // capacity.blocks_for(num_input + num_output))
    counts = np.unique(np.rint(np.geomspace(1, min(room, _MOST_SEQUENCES), 16)).astype(np.int64))
    context, dp = num_input + num_output // 2, half.pool.attention_dp
    drafts = half.plan.placement.drafts
    seconds = [half.step_s(int(n), 1 + drafts.num_tokens, context) for n in counts]
    return Decodes(dp, room, counts, np.array(seconds) / drafts.mean_kept)


def doubts_of_pools(
    point: Point, plan: DeploymentPlan, fit: DisaggregationFit
) -> tuple[tuple[str, ...], bool]:
    """Why an answer is an extrapolation, and whether bands are wider for it: they are of GPUs left
    out, and of points that do not say their workers, but of one model.
    """
    placement = plan.placement
    reasons = [] if point.says_workers else ["the table does not say how many workers there are"]
    if fit.kind == "assumed" or (fit.gpus and placement.accelerator.name not in fit.gpus):
        reasons.append(f"no pools on {placement.accelerator.title} were fitted")
    is_new = bool(fit.models) and plan.spec.model not in fit.models
    if is_new:
        reasons.append(f"few or no pools of {placement.model.title or plan.spec.model} were fitted")
    return tuple(reasons), is_new or fit.kind == "assumed"


class Served(NamedTuple):
    """Means over all requests, seconds."""

    waits_s: float
    """Wait for room in the decode pool, before a prompt is computed."""
    in_pool_s: float
    """Time from arrival in the prefill pool to the end of the prompt."""
    token_s: float


def serve(pools: Pools, load: Load, per_step: float) -> Served:
    """Serve a load by both pools. Where the table does not say otherwise, as many workers compute
    prompts as keep up.

    A request is taken in when the decode pool has room for its cache, as SGLang does it:
    DeepSeek-R1 on 16 H100 with 8,192 tokens in and 128 in flight, of which 51 have room, had its
    first tokens after 71 s, and the last ones 41 s later.

    Args:
        per_step: tokens that a sequence gets of a decode step.
    """
    campaign = load_campaigns()[load.campaign]
    assumed, rounds = campaign.pools, campaign.client.rounds
    room, more = pools.decodes.ranks * pools.decodes.room, load.num_output - 1
    concurrency = min(load.concurrency, room)
    token_s = pools.decodes.token_s(concurrency) / per_step
    workers = (
        min(assumed.most_workers, _wanted_workers(pools, load, per_step))
        if pools.workers is None
        else pools.workers
    )
    workers = min(workers, concurrency)  # others would never have a prompt
    count = concurrency * (min(_FEW_ROUNDS, rounds) if concurrency >= _MANY_IN_FLIGHT else rounds)
    shortest = assumed.shortest
    spread = np.random.default_rng(0).uniform(shortest, 1.0, size=count) / ((1 + shortest) / 2)
    for _ in range(_SETTLES):
        took_s = first_tokens(pools.prompts, workers, concurrency, count, spread * token_s * more)
        decoding_s, steady_s = token_s * more, float(took_s[concurrency:].mean())
        token_s = (
            pools.decodes.token_s(concurrency * decoding_s / (decoding_s + steady_s)) / per_step
        )
    waits_s = (load.concurrency - concurrency) * (steady_s + token_s * more) / concurrency
    return Served(waits_s, float(took_s @ weights_of(count, concurrency, rounds)), token_s)


def _wanted_workers(pools: Pools, load: Load, per_step: float) -> int:
    """Prefill workers that keep up with the decode pool, each busy as much as it may be."""
    busiest = load_campaigns()[load.campaign].pools.busiest
    concurrency = min(load.concurrency, pools.decodes.ranks * pools.decodes.room)
    token_s = pools.decodes.token_s(concurrency) / per_step
    wanted_per_s = concurrency / (token_s * (load.num_output - 1))
    return max(1, math.ceil(wanted_per_s / (busiest * pools.prompts.most_per_s())))


def latencies(pools: Pools, load: Load, unsaid_drafts: float) -> Latencies:
    """TTFT and TPOT.

    Args:
        unsaid_drafts: tokens that a sequence gets of a decode step, where drafts may go unsaid.
    """
    per_step = unsaid_drafts if pools.may_draft else 1.0
    served = serve(pools, load, per_step)
    hand_over_s = pools.hand_over_steps * served.token_s * per_step
    before_s = pools.own_s + pools.transfer_s + served.waits_s
    return Latencies(before_s + served.in_pool_s + hand_over_s, served.token_s)


def with_enough_workers(pools: Pools, load: Load, unsaid_drafts: float) -> float | None:
    """The time to the first token, had both pools workers enough for the load; ``None`` where those
    that are taken are enough.
    """
    decodes, per_step = pools.decodes, unsaid_drafts if pools.may_draft else 1.0
    more = decodes._replace(ranks=max(decodes.ranks, math.ceil(load.concurrency / decodes.room)))
    wanted = _wanted_workers(pools._replace(decodes=more), load, per_step)
    most_workers = load_campaigns()[load.campaign].pools.most_workers
    if more.ranks == decodes.ranks and wanted <= most_workers:
        return None
    return latencies(pools._replace(decodes=more, workers=wanted), load, unsaid_drafts).ttft_s


def transfer_s(prefill: Half, num_input: int) -> float:
    """Keys and values of a prompt over each GPU's own network port."""
    cluster = prefill.plan.placement.cluster
    wire = cluster.scale_out or cluster.scale_up
    return prefill.plan.serving.capacity.cache.bytes_for(num_input) / wire.bytes_per_s
