"""Requests go where their prompts are cached, weighed against what is to be done there; and a
balancer that is asked sees what the compiled one goes by.
"""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.policies.balancing import Rule
from simulator.workload.requests import load_requests
from tests.cases import seeds
from tests.laws.test_windows import share_prefixes
from tests.parts import change_plan
from tests.shared import shared_file


class Asks(Frozen):
    """The same weights, by an object that is asked for each request."""

    needs_load: ClassVar[bool] = True
    weight: float = 1.0

    def prepare(self, num_replicas, rng):
        return self

    def choose(self, request, snapshot):
        new = request.num_input - snapshot.cached_tokens
        return int(np.argmin(snapshot.outstanding_tokens + self.weight * new))


class Weighs(Frozen):
    """Weights that the compiled loop follows."""

    needs_load: ClassVar[bool] = True
    weight: float = 1.0

    def prepare(self, num_replicas, rng):
        return Rule(per_token=1, per_new_token=self.weight)


class Sticky(Frozen):
    """A session stays where its first request went, which has the fewest requests then."""

    needs_load: ClassVar[bool] = True

    def prepare(self, num_replicas, rng):
        self.__dict__["replica_of"] = {}
        return self

    def choose(self, request, snapshot):
        least = int(np.argmin(snapshot.outstanding))
        return self.__dict__["replica_of"].setdefault(request.attributes["session"], least)


@seeds(6210, 4)
def test_a_balancer_of_ones_own_keeps_sessions_together(tiny, seed):
    rng = np.random.default_rng(seed)
    plan = tiny.plan("dense", num_layers=2, replicas=3)
    trace = share_prefixes(tiny.trace(80, 400.0, seed=seed), rng)
    session = rng.integers(9, size=trace.num_requests)
    trace = replace(trace, attributes={"session": np.array([f"s{one}" for one in session], object)})
    served = tiny.serve(change_plan(plan, balancing=Sticky()), trace).requests_table()
    assert (served.groupby(session)["replica"].nunique() == 1).all()
    assert served["replica"].nunique() > 1


def test_more_blocks_than_can_be_looked_up_are_refused_with_what_would_do(tiny):
    plan = tiny.plan("dense", num_layers=2, replicas=4)
    trace = tiny.trace(2, 40.0)
    ids = np.array([0, 10**9])
    trace = replace(trace, prefix_block_tokens=16, prefix_starts=np.arange(3), prefix_ids=ids)
    with pytest.raises(UserError, match=r"4 ranks .* 192 GB .* prefix_caching = false"):
        plan.check_prefixes(trace, "here")
    tiny.plan("dense", num_layers=2, prefix_caching=False).check_prefixes(trace, "here")


@seeds(6200, 4)
def test_weights_choose_as_an_object_that_is_asked_does(tiny, seed):
    rng = np.random.default_rng(seed)
    replicas, weight = int(rng.choice([2, 5])), float(rng.choice([0.3, 1.0, 8.0]))
    plan = tiny.plan("dense", num_layers=2, replicas=replicas)
    trace = share_prefixes(tiny.trace(60, float(rng.choice([40.0, 900.0])), seed=seed), rng)
    tables = [
        tiny.serve(change_plan(plan, balancing=kind(weight=weight)), trace).requests_table()
        for kind in (Asks, Weighs)
    ]
    assert tables[0].equals(tables[1])
    assert (tables[0]["num_cached"] > 0).any()


@pytest.mark.parametrize("keys", [{}, {"attention_dp": 4}, {"pp": 2}])
def test_no_tokens_are_left_at_a_rank_when_all_is_done(tiny, keys):
    plan = tiny.plan("dense", num_layers=2, replicas=2, balancing={"kind": "prefix_aware"}, **keys)
    served = tiny.serve(plan, share_prefixes(tiny.trace(60), np.random.default_rng(1)))
    assert served.requests_table()["finish_s"].notna().all()
    for pool in served.pools.values():
        assert not pool.ranks.each.tokens.any()


def replay(trace, count):
    """Share of the prompt tokens that one boundless cache would have found."""
    known, found = set(), 0
    for n in range(count):
        ids = trace.prefix_ids[trace.prefix_starts[n] : trace.prefix_starts[n + 1]].tolist()
        usable = ids[: (trace.num_input[n] - 1) // trace.prefix_block_tokens]
        hits = next((i for i, block in enumerate(usable) if block not in known), len(usable))
        found += hits * trace.prefix_block_tokens
        known |= set(ids[: trace.num_input[n] // trace.prefix_block_tokens])
    return found / trace.num_input[:count].sum()


@pytest.mark.slow
def test_conversations_find_most_of_what_one_boundless_cache_would(tiny):
    """Mooncake's first 1,500 requests on Qwen3-30B over 4 x DP 8 (requests: Apache-2.0,
    arXiv:2407.00079).
    """
    from simulator.config.workload import WorkloadSpec

    path = shared_file("traces/requests/mooncake/conversation_trace_first20min.jsonl")
    spec = WorkloadSpec(requests=str(path), num_requests=1500)
    trace = load_requests(spec, path.parent, 1)
    keys = {"replicas": 4, "attention_dp": 8, "ep": 8, "cluster": "h100-sxm-32"}
    found = {}
    for kind in ("least_outstanding", "prefix_aware"):
        plan = tiny.plan("qwen3-30b-a3b", balancing={"kind": kind}, **keys)
        table = tiny.serve(plan, trace).requests_table()
        found[kind] = table["num_cached"].sum() / table["num_input"].sum()
    bound = replay(trace, 1500)
    assert bound == pytest.approx(0.270, abs=0.001)
    assert found["least_outstanding"] < 0.06
    assert 0.8 * bound <= found["prefix_aware"] <= bound
