"""Pool of equal replicas behind one load balancer: its state, and its start."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.jit import jit, jit_inner
from simulator.deployment.memory import check_requests
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.cache import count_all_available, count_available, count_hits
from simulator.engine.events import Events, code_of, push_event
from simulator.engine.experts_table import OverflowCount
from simulator.engine.queue import find_another, join
from simulator.engine.rebalancing import place_again
from simulator.engine.state import (
    NEVER,
    Ints,
    Limits,
    Ranks,
    Records,
    Requests,
    start_ranks,
    start_requests,
)
from simulator.engine.table import StepTable, sums_contexts
from simulator.policies.balancing import Asked, LoadBalancer, Rule, Snapshot
from simulator.policies.contracts import (
    choose_replica,
    list_turns,
    prepare_balancer,
    rank_waiting,
)
from simulator.policies.order import RankedOrder, Waiting
from simulator.policies.placement import Placed
from simulator.policies.scheduling import RANK_CHOICES
from simulator.step.mixes import LoadProfiles, Mixes, find_profiles, list_mixes, single_mix
from simulator.step.prices import Prices
from simulator.step.request_choices import bind_requests
from simulator.workload.requests import longest_tokens
from simulator.workload.traces import RequestTrace, cut_trace

FEWEST, WAITING_MORE, WAITING_FULL, IN_TURN, PROMPT_TOKENS = range(len(RANK_CHOICES))
"""Places in :data:`~simulator.policies.scheduling.RANK_CHOICES`."""


# Limits of batching, for one plan and one trace.


def make_limits(plan: DeploymentPlan, trace: RequestTrace) -> Limits:
    """Collect the limits of batching: the scheduling policy's rules and the cache's blocks.

    Prefix blocks are whole KV blocks: where the trace's do not divide, KV blocks are cut to their
    common divisor. Models that carry a state, or whose every layer keeps a window only, have
    nothing that grows by prefix blocks, and share none.

    The batches that a pipeline keeps in flight have equal parts of a data-parallel rank's limit on
    sequences, as in SGLang; vLLM's limit applies to all of them together, too.
    """
    placement = plan.placement
    capacity = plan.serving.capacity
    grows = capacity.cache.bytes_per_token > 0
    prefix_tokens = trace.prefix_block_tokens if plan.keeps_prefixes else 0
    block_tokens = (
        math.gcd(capacity.block_tokens, prefix_tokens) if prefix_tokens else capacity.block_tokens
    )
    cut = capacity.block_tokens // block_tokens
    rules, has_groups = plan.serving.rules, placement.layout.attention_dp > 1
    return Limits(
        rules=rules._replace(
            max_sequences=max(1, rules.max_sequences // placement.layout.pp),
            finds_full=rules.finds_full and plan.keeps_prefixes,
            balance_steps=rules.balance_steps if has_groups else 0,
            wait_steps=0 if has_groups else rules.wait_steps,
            rank_choice=rules.rank_choice if has_groups else FEWEST,
            steps_ahead=plan.steps_ahead,
        ),
        block_tokens=block_tokens if grows else 1 << 40,
        sequence_blocks=capacity.sequence_blocks * cut,
        prefix_tokens=prefix_tokens,
        prefix_blocks=prefix_tokens // block_tokens,
        fills_apart=(
            grows and rules.output_share > 0 and not rules.mixes_phases and not plan.serving.tiers
        ),
        watermark_blocks=int(rules.watermark * capacity.num_blocks * cut),
        wait_tokens=math.ceil(rules.wait_share * rules.token_budget),
        longest_prompt=rules.longest_prompt,
        accepted=np.array(placement.drafts.accepted, dtype=np.float64),
        draft_seed=int(placement.rng("drafts").integers(1 << 62)),
    )


def scaled_blocks(plan: DeploymentPlan, limits: Limits) -> int:
    """Number of KV blocks of a rank, in blocks of ``limits``."""
    if not plan.serving.capacity.cache.bytes_per_token:
        return plan.serving.capacity.num_blocks
    return plan.serving.capacity.num_blocks * (
        plan.serving.capacity.block_tokens // limits.block_tokens
    )


def measure_tiers(plan: DeploymentPlan, limits: Limits) -> list[tuple[int, float, float, float]]:
    """Measure the tiers of a rank's cache below the GPU in prefix blocks: how many each holds,
    seconds to read and to write one, and seconds until the first arrives.
    """
    num_bytes = plan.serving.capacity.cache.bytes_per_token * limits.prefix_tokens
    return [
        (
            int(min(tier.memory_bytes / num_bytes, NEVER)),
            num_bytes / tier.read_bytes_per_s,
            num_bytes / tier.write_bytes_per_s,
            tier.latency_s,
        )
        for tier in plan.serving.tiers
        if limits.prefix_tokens > 0
    ]


# Sending of requests to replicas: pools, load balancers as numbers, and the arrival of requests.
# Compiled.


class Pool(NamedTuple):
    """Equal replicas behind one load balancer."""

    requests: Requests
    """Requests of the trace as far as this pool serves them: those of a prefill pool have one
    output token."""
    ranks: Ranks
    """Ranks of all replicas, ``[M, ...]``."""
    limits: Limits
    table: StepTable
    balance: Balance


class Weights(NamedTuple):
    """Weights of what makes a load (:class:`simulator.policies.balancing.Rule`)."""

    per_request: float = 0.0
    per_token: float = 0.0
    per_new_token: float = 0.0


class Balance(NamedTuple):
    """Load balancer of a pool, as numbers."""

    weights: Weights
    turns: Ints
    """``[N]`` replica of each of the trace's requests in order of arrival; empty where load
    decides."""
    is_asked: bool
    """Whether a balancer in Python chooses."""
    num_sent: Ints
    """``[1]`` requests sent so far."""


@jit_inner
def send_request(pool: Pool, request: int, feed: Records, now_s: float) -> int:
    """Send a request to the replica that the balancer chooses, which queues it when it forms a
    step. Returns the replica's number, -1 where none is left.
    """
    replica = _choose(pool, request, feed)
    feed.chosen = -1
    if replica < 0:
        return -1
    pool.balance.num_sent[0] += 1
    rows, counts = pool.requests.each, pool.ranks.counts[replica, 0]
    rows[request].replica = replica
    rows[request].key = key_of(rows[request], pool.limits, now_s)
    if counts.coming.is_ordered:
        rows[request].key = -rows[request].num_input
    join(counts.coming, rows, request)
    counts.coming_tokens += rows[request].num_input + rows[request].num_output
    return replica


@jit_inner
def key_of(request: Records, limits: Limits, now_s: float) -> float:
    """Key by which a request that joins a queue now is ordered."""
    return float(request.key_offset + limits.key_per_second * now_s)


@jit_inner
def _choose(pool: Pool, request: int, feed: Records) -> int:
    ranks, balance = pool.ranks, pool.balance
    num_replicas = len(ranks.counts)
    if num_replicas == 1:
        counts = ranks.counts[0, 0]
        return -1 if counts.is_gone or counts.is_draining else 0
    if feed.chosen >= 0:
        return int(feed.chosen)
    if len(balance.turns) > 0:
        # Whose prompt is lost elsewhere comes again, so that more may be sent than there are turns.
        return int(balance.turns[balance.num_sent[0] % len(balance.turns)])
    best, least = -1, 0.0
    for replica in range(num_replicas):
        counts = ranks.counts[replica, 0]
        if counts.is_gone or counts.is_draining:
            continue
        if balance.weights.per_new_token > 0:
            load = _measure_best_rank(pool, replica, request)
        else:
            outstanding = counts.num_pushed - counts.num_finished + counts.coming.count
            tokens = counts.outstanding_tokens + counts.coming_tokens
            load = balance.weights.per_request * outstanding + balance.weights.per_token * tokens
        if best < 0 or load < least:
            best, least = replica, load
    return best


@jit_inner
def _measure_best_rank(pool: Pool, replica: int, request: int) -> float:
    """Load of the rank of a replica where a request would be best off, with an equal part of the
    requests that are at no rank yet.
    """
    ranks, weights = pool.ranks, pool.balance.weights
    each, counts = ranks.each[replica], pool.ranks.counts[replica, 0]
    d, load = find_least_loaded(
        pool.requests, each, ranks.prefixes[replica], request, weights, pool.limits
    )
    coming = weights.per_request * counts.coming.count + weights.per_token * counts.coming_tokens
    return math.inf if d < 0 else float(load + coming / len(each))


@jit_inner
def find_least_loaded(
    requests: Requests, each: Records, prefixes: Records, r: int, weights: Weights, limits: Limits
) -> tuple[int, float]:
    """Find the data-parallel rank of a replica with the least load for request ``r``, whose cached
    prefix need not be computed there, as a balancer that sees prefixes has it; -1 without any rank.
    Returns its load, too.
    """
    best, least = -1, 0.0
    for d in range(len(each)):
        if each[d].is_lost:
            continue
        hits = count_hits(requests, prefixes, d % len(prefixes), r, limits, prefixes.shape[1])
        load = (
            weights.per_request * count_unfinished(each, d)
            + weights.per_token * each[d].tokens
            + weights.per_new_token * (requests.each[r].num_input - hits * limits.prefix_tokens)
        )
        if best < 0 or load < least:
            best, least = d, load
    return best, least


@jit_inner
def choose_rank(ranks: Ranks, limits: Limits, turn: int, most: int) -> int:
    """Choose the data-parallel rank of a replica that gets the next request, as its engine does.

    Args:
        turn: requests that the ranks got before.
        most: requests of a rank from which on it gets no more, where prompts' tokens decide.
    """
    each, choice = ranks.each, limits.rules.rank_choice
    d = turn % len(each) if choice in (WAITING_FULL, IN_TURN) else 0
    lane = d % len(ranks.caches)
    d, lane, best, least = d - 1, lane - 1, -1, 0.0
    for _ in range(len(each)):  # no division, which takes as long as all else here
        d = d + 1 if d + 1 < len(each) else 0
        lane = lane + 1 if lane + 1 < len(ranks.caches) else 0
        unfinished = count_unfinished(each, d)
        if each[d].is_lost or (choice == PROMPT_TOKENS and unfinished >= most):
            continue
        waiting, load = unfinished - each[d].num_running, float(unfinished)
        if choice == WAITING_MORE:
            load += 3.0 * waiting
        elif choice == WAITING_FULL and waiting > 0:
            free = count_available(ranks, lane, limits) / ranks.caches[lane].capacity_blocks
            used = 1.0 - free  # rounded as vLLM rounds it, since it breaks ties
            load += 6.0 * waiting * max(0.0, used - 0.5)
        elif choice == IN_TURN:
            load = 0.0
        elif choice == PROMPT_TOKENS:
            load = float(each[d].prompt_tokens)
        if best < 0 or load < least:
            best, least = d, load
    return best


@jit_inner
def count_unfinished(each: Records, d: int) -> int:
    """Count the unfinished requests of a rank."""
    rank = each[d]
    here = rank.waiting.count + rank.ready.count + rank.num_running
    return int(here + rank.line.count + rank.num_reserved)


@jit
def find_cached(
    requests: Requests, prefixes: Records, r: int, limits: Limits, replicas: Ints
) -> Ints:
    """Tokens of the longest prefix of request ``r`` that a rank of each of some replicas has in its
    cache, ``[M]``.

    Args:
        prefixes: of all replicas.
    """
    found = np.zeros(len(replicas), np.int64)
    for place, replica in enumerate(replicas):
        for d in range(prefixes.shape[1]):
            hits = count_hits(requests, prefixes[replica], d, r, limits, prefixes.shape[2])
            found[place] = max(found[place], hits * limits.prefix_tokens)
    return found


@jit
def _survey_waiting(requests: Requests, ranks: Ranks, d: int, limits: Limits) -> tuple[Ints, Ints]:
    """Find the rows of the requests that wait at a rank, and the tokens of the longest prefix of
    each that it has cached, ``[W]`` each.
    """
    queue, num_tiers = ranks.each[d].waiting, ranks.prefixes.shape[1]
    waiting, cached = np.zeros(queue.count, np.int64), np.zeros(queue.count, np.int64)
    r = queue.first
    for place in range(len(waiting)):
        hits = count_hits(requests, ranks.prefixes, d % len(ranks.caches), r, limits, num_tiers)
        waiting[place], cached[place] = r, hits * limits.prefix_tokens
        r = find_another(queue, requests.each, r)
    return waiting, cached


@jit
def _queue_again(rows: Records, ranks: Ranks, d: int, waiting: Ints) -> None:
    """Queue the requests that wait at a rank anew, by other keys than before."""
    queue = ranks.each[d].waiting
    queue.count = 0
    for r in waiting:
        join(queue, rows, r)


@jit_inner
def has_drained(counts: Records, replica: int) -> bool:
    """Whether a draining replica has no request left."""
    return bool(counts[replica, 0].is_draining and has_no_requests(counts, replica))


@jit_inner
def has_no_requests(counts: Records, replica: int) -> bool:
    """Whether a replica has neither requests nor caches that another pool needs."""
    own = counts[replica, 0]
    has_all = own.num_pushed == own.num_finished
    return bool(has_all and own.coming.count == 0 and own.num_kept == 0)


@jit_inner
def form_soon(
    events: Events, counts: Records, replica: int, number: int, now_s: float, kind: int
) -> None:
    """Let a replica form a step at this instant, unless one is in flight."""
    if not counts[replica, 0].is_busy:
        counts[replica, 0].is_busy = True
        push_event(events, now_s, code_of(kind, number))


@jit_inner
def ranks_of(ranks: Ranks, replica: int) -> Ranks:
    """Ranks of one replica."""
    return Ranks(
        ranks.each[replica],
        ranks.running[replica],
        ranks.chunk[replica],
        ranks.emitting[replica],
        ranks.caches[replica],
        ranks.prefixes[replica],
        ranks.tiers[replica],
        ranks.ring[replica],
        ranks.ends[replica],
        ranks.starts[replica],
        ranks.profiles[replica],
        ranks.counts[replica],
        ranks.gap_counts[replica],
    )


@jit_inner
def release_next(feed: Records, requests: Requests, count: int, now_s: float) -> None:
    """Count ``count`` requests as done, and let clients of a closed loop send others instead, one
    after another; before those that other clients will begin with later.
    """
    feed.num_done += count
    if feed.is_closed:
        rows = requests.each
        for _ in range(min(count, len(rows) - feed.num_released)):
            feed.sent_s = max(feed.sent_s, now_s) + feed.send_s
            comes_s = feed.sent_s + feed.ingress_delay_s
            row = feed.num_released
            while row > feed.num_come and rows[row - 1].arrival_s > comes_s:
                rows[row].arrival_s = rows[row - 1].arrival_s
                row -= 1
            rows[row].arrival_s = comes_s
            feed.num_released += 1


_LONGEST_RING = 4096
"""Most tokens of a KV block for which block allocation is counted ahead."""


class PoolState:
    """Replicas of one plan, and the requests as far as this pool serves them."""

    def __init__(
        self,
        plan: DeploymentPlan,
        trace: RequestTrace,
        limits: Limits | None = None,
        stream: str = "balancing",
        first_replica: int = 0,
    ) -> None:
        """Start a pool without requests; none of the trace has a row yet
        (:func:`simulator.engine.loop_state.move_window`).

        Args:
            limits: other than the plan's own for this trace.
            stream: names the balancer's random numbers.
            first_replica: number of its first replica among those of all pools, in results.

        Raises:
            UserError: if the trace's longest request does not fit in the KV cache, what is cached
                where cannot be kept, or the trace lacks what the order of waiting requests needs.
        """
        placement = plan.placement
        self.first_replica = first_replica
        self._longest = longest_tokens(trace) + placement.drafts.num_tokens
        where = f"deployment '{plan.name}'"
        check_requests(plan.serving.capacity, self._longest, where)
        plan.check_prefixes(trace, where)
        self.plan, self._trace = plan, bound_outputs(plan, trace, where)
        self._keys = plan.find_keys(trace)
        self.limits = limits or make_limits(plan, trace)
        if self._keys is not None:
            self.limits = self.limits._replace(
                key_per_second=float(self._keys.per_second),
                ranks_again=isinstance(plan.serving.order, RankedOrder),
            )
        self._choices = bind_requests(placement, trace)
        shares_prefixes = self.limits.prefix_tokens > 0
        ranks = start_ranks(
            placement.layout.attention_dp * placement.layout.pp,
            self.limits.rules.max_sequences,
            scaled_blocks(plan, self.limits),
            int(trace.prefix_ids.max()) + 1 if shares_prefixes and len(trace.prefix_ids) else 0,
            placement.layout.pp,
            self.limits.rules.output_share,
            self.limits.block_tokens if self._may_sum_decodes else 1,
            len(self.profiles.tokens_P) if self.profiles else 1,
            self._keys is not None,
            measure_tiers(plan, self.limits),
        )
        self.fresh_ranks = ranks
        self.overflow = OverflowCount(placement.model.num_moe_layers)
        """Pairs dropped and rerouted by layer: of all steps where ranks are simulated, otherwise of
        some."""
        self.num_replicas = plan.serving.replicas
        self.ranks = Ranks._make(_repeat(ranks, self.num_replicas))
        # Longest prompts first, where prompts' tokens decide.
        self.ranks.counts.coming.is_ordered[:] = self.limits.rules.rank_choice == PROMPT_TOKENS
        self.is_ready = np.arange(self.num_replicas) < plan.serving.first_replicas
        """Whether each replica serves while its GPUs work: it was launched, and has started."""
        self.ranks.counts.is_gone[~self.is_ready] = 1
        self._stream, self._num_changes = stream, 0
        self._living = self.list_living()
        self.requests = self.begin_requests(0, 0)
        self.table = StepTable()
        """Table that prices the steps that are formed from now on."""
        self._balancer, self.balance = self._start_balance()

    @property
    def max_tokens(self) -> int:
        """Tokens of a data-parallel rank in the largest step."""
        budget = self.limits.rules.token_budget
        return budget if self.limits.rules.splits_prompts else max(budget, self._longest)

    @cached_property
    def prices(self) -> Prices:
        """Prices of the pool's steps, up to the largest."""
        return self.price_placement(self.plan.placement)

    def price_placement(self, placement: Placement) -> Prices:
        """Price steps of the pool's requests on another placement of a replica's parts."""
        return Prices(placement, self.max_tokens, choices=self._choices)

    @cached_property
    def mixes(self) -> Mixes:
        """Mixes of requests that the routed experts are priced for."""
        return self.list_mixes(self.prices)

    def list_mixes(self, prices: Prices) -> Mixes:
        """List mixes of the pool's requests for the routed experts of some prices."""
        return single_mix(prices) if self.profiles is None else list_mixes(prices, self.profiles)

    @cached_property
    def profile_N(self) -> Ints:
        """Load profile of each request of the trace, ``[N]``; empty where requests have none."""
        if self._choices is None or self.profiles is None:
            return np.zeros(0, dtype=np.int64)
        return self.profiles.profile_Q[self._choices.sequence_N]

    def find_profiles(self, number_N: Ints) -> Ints:
        """Find the load profiles of requests by their numbers in the whole trace."""
        assert self._choices is not None
        return self.profile_N[self._choices.find_rows(number_N)]

    @cached_property
    def profiles(self) -> LoadProfiles | None:
        """Load profiles of recorded sequences; ``None`` where requests have none of their own."""
        moe = self.plan.placement.model.moe
        if self._choices is None or moe is None:
            return None
        return find_profiles(self._choices.recorded, moe.num_experts)

    def begin_requests(self, first: int, end: int) -> Requests:
        """Make rows for some requests of the trace, by their numbers in it."""
        keys = self._keys
        requests = start_requests(
            cut_trace(self._trace, first, end),
            knows_ends=self.limits.rules.knows_ends or self.limits.hands_over,
            with_prefixes=self.limits.prefix_tokens > 0,
            first=first,
            offset_N=None if keys is None else keys.offset_N[first:end],
        )
        if len(self.profile_N):
            requests.each.profile[:] = self.profile_N[first:end]
        return requests

    def price_by(self, table: StepTable) -> None:
        """Price steps by a table, which one with the same axes may replace."""
        sums = self._may_sum_decodes and sums_contexts(table)
        self.table, self.limits = table, self.limits._replace(sums_decodes=sums)

    @property
    def compiled(self) -> Pool:
        """The pool as compiled code sees it."""
        return Pool(self.requests, self.ranks, self.limits, self.table, self.balance)

    @property
    def _may_sum_decodes(self) -> bool:
        """Whether decodes may be summed: all decoding requests get a token in every step, and none
        shares its blocks.
        """
        limits = self.limits
        return (
            limits.rules.mixes_phases
            and limits.rules.output_share == 0
            and limits.prefix_tokens == 0
            and not len(limits.accepted)
            and (limits.rules.steps_ahead == 0 or "max_tokens" not in self._trace.attributes)
            and self.plan.placement.layout.pp == 1
            and limits.block_tokens <= _LONGEST_RING
        )

    def place_experts(self, placed: Placed) -> None:
        """Move the experts of all replicas; later prices are of the new placement."""
        placement = place_again(self.plan.placement, placed)
        self.plan = replace(self.plan, placement=placement)
        self.__dict__.pop("prices", None)  # where they were asked for
        mixes: Mixes | None = self.__dict__.pop("mixes", None)
        if mixes is not None and self.profiles is not None:
            self.mixes = mixes.place(self.profiles, placed)

    def choose(self, row: int) -> int:
        """Choose the replica of the request in a row with a balancer that is asked."""
        assert not isinstance(self._balancer, Rule)
        living, requests, ranks = self._living, self.requests, self.ranks
        request, starts = requests.each[row], requests.prefix_starts
        outstanding, tokens = self.count_outstanding(living)
        free_blocks = count_all_available(ranks, self.limits)
        prefix_ids = requests.prefix_ids[starts[row] : starts[row + 1]]
        prefix_ids.flags.writeable = False
        chosen = choose_replica(
            self._balancer,
            Asked(
                number=int(request.number),
                arrival_s=float(request.arrival_s),
                num_input=int(request.num_input),
                num_output=int(request.num_output),
                prefix_ids=prefix_ids,
                attributes=self._trace.find_attributes(requests.first + row),
            ),
            Snapshot(
                outstanding=outstanding,
                outstanding_tokens=tokens,
                free_blocks=free_blocks[living].sum(axis=1),
                cached_tokens=find_cached(requests, ranks.prefixes, row, self.limits, living),
            ),
        )
        return int(living[chosen])

    def count_outstanding(self, replicas: Ints) -> tuple[Ints, Ints]:
        """Count the requests that some replicas were sent and have not finished, and their prompt
        and output tokens, ``[M]`` each.
        """
        counts = self.ranks.counts[replicas, 0]
        requests: Ints = counts.num_pushed - counts.num_finished + counts.coming.count
        tokens: Ints = counts.outstanding_tokens + counts.coming_tokens
        return requests, tokens

    def rank_waiting(self, replica: int, now_s: float) -> None:
        """Give the requests that wait at a replica's ranks the keys that their order has now."""
        ranks, rows, limits = self.ranks_of(replica), self.requests.each, self.limits
        self.ranks.counts.is_ranked[replica] = True
        for d in range(len(ranks.each)):
            if ranks.each[d].waiting.count < 2:
                continue
            waiting, cached = _survey_waiting(self.requests, ranks, d, limits)
            own, numbers = rows[waiting], waiting + self.requests.first
            seen = own.key, numbers, own.num_input, own.generated, cached
            rows.key[waiting] = rank_waiting(self.plan.serving.order, Waiting(now_s, *seen))
            _queue_again(rows, ranks, d, waiting)

    @property
    def num_living_groups(self) -> int:
        """Number of data-parallel groups that get requests, in all replicas."""
        num_groups = self.plan.placement.layout.attention_dp
        return int((self.ranks.each.is_lost[self._living, :num_groups] == 0).sum())

    def count_gpus(self, replica: int) -> int:
        """Count the GPUs that a replica serves with, while it is not gone."""
        layout = self.plan.placement.layout
        is_lost_D = self.ranks.each.is_lost[replica, : layout.attention_dp]
        return layout.num_gpus // layout.attention_dp * int((is_lost_D == 0).sum())

    @property
    def is_balanced(self) -> bool:
        """Whether the balancer is over the replicas that get requests now."""
        return np.array_equal(self._living, self.list_living())

    def list_living(self) -> Ints:
        """List the replicas that get requests."""
        is_closed = self.ranks.counts.is_gone[:, 0] | self.ranks.counts.is_draining[:, 0]
        return np.flatnonzero(is_closed == 0)

    def balance_again(self) -> None:
        """Start a balancer over the replicas that get requests, after some stopped or started."""
        self._num_changes += 1
        self._living = self.list_living()
        self._balancer, self.balance = self._start_balance()

    def _start_balance(self) -> tuple[Rule | LoadBalancer, Balance]:
        plan, living = self.plan, self._living
        balancer: Rule | LoadBalancer = Rule()
        turns = np.zeros(0, dtype=np.int64)
        if len(living):
            changes = (self._num_changes,) if self._num_changes else ()
            rng = plan.placement.rng(self._stream, *changes)
            balancer = prepare_balancer(plan.serving.balancing, len(living), rng)
        if len(living) and self.num_replicas > 1 and isinstance(balancer, Rule):
            count = self._trace.num_requests
            turns = living[list_turns(plan.serving.balancing, balancer, count, len(living))]
        rule = balancer if isinstance(balancer, Rule) else Rule()
        return balancer, Balance(
            weights=Weights(*map(float, rule[:3])),
            turns=turns,
            is_asked=not isinstance(balancer, Rule) and self.num_replicas > 1,
            num_sent=np.zeros(1, dtype=np.int64),
        )

    def ranks_of(self, replica: int) -> Ranks:
        """Ranks of one replica."""
        return Ranks._make(array[replica] for array in self.ranks)


def bound_outputs(plan: DeploymentPlan, trace: RequestTrace, where: str) -> RequestTrace:
    """Bound each request's ``max_tokens`` by what its prompt leaves of the model's longest sequence
    and of an empty KV cache, but not below its output.

    Raises:
        UserError: if a request's ``max_tokens`` is no number, infinite, or less than 1.
    """
    if "max_tokens" not in trace.attributes:
        return trace
    limits = trace.attributes["max_tokens"]
    is_number = np.issubdtype(limits.dtype, np.number)
    if not is_number or not ((limits >= 1) & (limits < NEVER)).all():
        raise UserError(
            f"{where}: the column max_tokens of its requests must be a number of at least 1 in "
            "every row; fill it, or leave it out"
        )
    placement = plan.placement
    longest = min(placement.model.max_context_tokens or NEVER, plan.serving.capacity.tokens)
    left = longest - placement.drafts.num_tokens - trace.num_input
    bound = np.maximum(np.minimum(limits, left), trace.num_output).astype(np.int64)
    return replace(trace, attributes={**trace.attributes, "max_tokens": bound})


def start_pools(plan: DeploymentPlan, trace: RequestTrace) -> dict[str, PoolState]:
    """Make the pools of a plan by name: ``both`` for one that computes prompts and decodes, else
    ``decode`` and ``prefill``.

    Raises:
        UserError: if the trace's longest request does not fit in the KV cache.
    """
    if plan.prefill is None:
        return {"both": PoolState(plan, trace)}
    # Nothing but decodes comes to the decode pool; what is preempted is computed again there.
    limits = make_limits(plan, trace)
    rules = limits.rules._replace(mixes_phases=True, balance_steps=0, wait_steps=0)
    limits = limits._replace(rules=rules, prefix_tokens=0, prefix_blocks=0, fills_apart=False)
    prompts = replace(
        trace,
        num_output=np.broadcast_to(np.int64(1), trace.num_output.shape),
        attributes={name: of for name, of in trace.attributes.items() if name != "max_tokens"},
    )
    hands_over = make_limits(plan.prefill, prompts)._replace(hands_over=True)
    decode = PoolState(plan, trace, limits, "balancing decodes")
    first = plan.serving.replicas
    prefill = PoolState(plan.prefill, prompts, hands_over, first_replica=first)
    return {"decode": decode, "prefill": prefill}


def _repeat(arrays: Iterable[NDArray[Any]], count: int) -> Iterator[NDArray[Any]]:
    """Repeat arrays for ``count`` replicas, along a new first axis."""
    return (np.repeat(array[None], count, axis=0) for array in arrays)
