"""Pool of equal replicas behind one load balancer: its state, and its start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.deployment.memory import check_requests
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.limits import make_limits, scaled_blocks
from simulator.engine.overflow_count import OverflowCount
from simulator.engine.rebalancing import place_again
from simulator.engine.sending import Balance, Pool, Weights, find_cached
from simulator.engine.start import start_clock, start_ranks, start_requests
from simulator.engine.state import Clock, Ints, Limits, Ranks, Requests
from simulator.engine.table import StepTable, sums_contexts
from simulator.policies.balancing import Asked, LoadBalancer, Rule, Snapshot
from simulator.policies.contracts import choose_replica, list_turns, prepare_balancer
from simulator.policies.placement import Placed
from simulator.step.load_profiles import LoadProfiles, find_profiles
from simulator.step.mixes import Mixes, list_mixes, single_mix
from simulator.step.prices import Prices
from simulator.step.request_choices import bind_requests
from simulator.workload.requests import longest_tokens
from simulator.workload.traces import RequestTrace, cut_trace

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
    ) -> None:
        """Start a pool without requests; none of the trace has a row yet
        (:func:`simulator.engine.windows.move_window`).

        Args:
            limits: other than the plan's own for this trace.
            stream: names the balancer's random numbers.

        Raises:
            UserError: if the trace's longest request does not fit in the KV cache, or the trace
                lacks what the order of waiting requests needs.
        """
        placement = plan.placement
        self._longest = longest_tokens(trace) + placement.drafts.num_tokens
        check_requests(plan.serving.capacity, self._longest, f"deployment '{plan.name}'")
        self.plan = plan
        self._keys = plan.find_keys(trace)
        self.limits = limits or make_limits(plan, trace)
        if self._keys is not None:
            self.limits = self.limits._replace(key_per_second=float(self._keys.per_second))
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
        )
        self.fresh_ranks = ranks
        self.overflow = OverflowCount(placement.model.num_moe_layers)
        """Pairs dropped and rerouted by layer: of all steps where ranks are simulated, otherwise of
        some."""
        self.num_replicas = plan.serving.replicas
        self.ranks = Ranks._make(_repeat(ranks, self.num_replicas))
        self.clock = Clock._make(_repeat(start_clock(), self.num_replicas))
        self.is_ready = np.arange(self.num_replicas) < plan.serving.first_replicas
        """Whether each replica serves while its GPUs work: it was launched, and has started."""
        self.clock.counts.is_gone[~self.is_ready] = 1
        self._stream, self._num_changes = stream, 0
        self._living = self._list_living()
        self._trace = trace
        self.requests = self.begin_requests(0, 0)
        self._replica_of: Ints = np.zeros(0, dtype=np.int64)
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
        profile_N: Ints = self.profiles.profile_Q[self._choices.sequence_N]
        return profile_N

    def find_profiles(self, number_N: Ints) -> Ints:
        """Find the load profiles of requests by their numbers in the whole trace."""
        assert self._choices is not None
        profile_N: Ints = self.profile_N[self._choices.find_rows(number_N)]
        return profile_N

    @cached_property
    def profiles(self) -> LoadProfiles | None:
        """Load profiles of recorded sequences; ``None`` where requests have none of their own."""
        moe = self.plan.placement.model.moe
        if self._choices is None or moe is None:
            return None
        return find_profiles(self._choices.recorded, moe.num_experts)

    @property
    def replica_of(self) -> Ints:
        """Replica that each request was sent to last, ``[N]``; -1 for none."""
        return self.balance.replica_of

    def begin_requests(self, first: int, end: int) -> Requests:
        """Make rows for some requests of the trace, by their numbers in it."""
        keys = self._keys
        requests = start_requests(
            cut_trace(self._trace, first, end),
            with_prefixes=self.limits.prefix_tokens > 0,
            first=first,
            offset_N=None if keys is None else keys.offset_N[first:end],
        )
        if len(self.profile_N):
            requests.each.profile[:] = self.profile_N[first:end]
        return requests

    def hold_rows(self, requests: Requests, replica_of: Ints) -> None:
        """Replace the rows, and the replicas that their requests were sent to."""
        self.requests, self._replica_of = requests, replica_of
        self.balance = self.balance._replace(replica_of=replica_of)

    def with_table(self, table: StepTable) -> Pool:
        """Make the pool as compiled code sees it."""
        limits = self.limits._replace(sums_decodes=self._may_sum_decodes and sums_contexts(table))
        return Pool(self.requests, self.ranks, self.clock, limits, table, self.balance)

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
        counts, caches = self.clock.counts, ranks.caches
        request, starts = requests.each[row], requests.prefix_starts
        outstanding = counts.num_pushed - counts.num_finished + counts.coming.count
        tokens = counts.outstanding_tokens + counts.coming_tokens
        free_blocks = caches.free_blocks + caches.num_evictable * self.limits.prefix_blocks
        chosen = choose_replica(
            self._balancer,
            Asked(
                number=int(request.number),
                arrival_s=float(request.arrival_s),
                num_input=int(request.num_input),
                num_output=int(request.num_output),
                prefix_ids=requests.prefix_ids[starts[row] : starts[row + 1]],
            ),
            Snapshot(
                outstanding=outstanding[living, 0],
                outstanding_tokens=tokens[living, 0],
                free_blocks=free_blocks[living].sum(axis=1),
                cached_tokens=find_cached(requests, ranks.prefixes, row, self.limits, living),
            ),
        )
        return int(living[chosen])

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
        return np.array_equal(self._living, self._list_living())

    def _list_living(self) -> Ints:
        """List the replicas that get requests."""
        is_closed = self.clock.counts.is_gone[:, 0] | self.clock.counts.is_draining[:, 0]
        living: Ints = np.flatnonzero(is_closed == 0)
        return living

    def balance_again(self) -> Balance:
        """Start a balancer over the replicas that get requests, after some stopped or started."""
        self._num_changes += 1
        self._living = self._list_living()
        self._balancer, self.balance = self._start_balance()
        return self.balance

    def _start_balance(self) -> tuple[Rule | LoadBalancer, Balance]:
        plan, living = self.plan, self._living
        balancer: Rule | LoadBalancer = Rule()
        turns = np.zeros(0, dtype=np.int64)
        if len(living):
            changes = (self._num_changes,) if self._num_changes else ()
            rng = plan.placement.rng(self._stream, *changes)
            balancer = prepare_balancer(plan.serving.balancing, len(living), rng)
        if len(living) and self.num_replicas > 1 and isinstance(balancer, Rule):
            # Between two changes every request is sent once at most.
            count = self._trace.num_requests
            turns = living[list_turns(plan.serving.balancing, balancer, count, len(living))]
        rule = balancer if isinstance(balancer, Rule) else Rule()
        return balancer, Balance(
            weights=Weights(*map(float, rule[:3])),
            turns=turns,
            is_asked=not isinstance(balancer, Rule) and self.num_replicas > 1,
            num_sent=np.zeros(1, dtype=np.int64),
            replica_of=self._replica_of,
        )

    def ranks_of(self, replica: int) -> Ranks:
        """Ranks of one replica."""
        return Ranks._make(array[replica] for array in self.ranks)

    def clock_of(self, replica: int) -> Clock:
        """Clock of one replica."""
        return Clock._make(array[replica] for array in self.clock)


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
    limits = limits._replace(rules=rules, prefix_tokens=0, prefix_blocks=0)
    prompts = replace(trace, num_output=np.broadcast_to(np.int64(1), trace.num_output.shape))
    hands_over = make_limits(plan.prefill, prompts)._replace(hands_over=True)
    decode = PoolState(plan, trace, limits, "balancing decodes")
    return {"decode": decode, "prefill": PoolState(plan.prefill, prompts, hands_over)}


def _repeat(arrays: Iterable[NDArray[Any]], count: int) -> Iterator[NDArray[Any]]:
    """Repeat arrays for ``count`` replicas, along a new first axis."""
    return (np.repeat(array[None], count, axis=0) for array in arrays)
