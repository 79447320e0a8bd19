"""A batch names the requests whose tokens it holds, and their kinds of text: added up over a run,
each request's tokens are those that were asked for.
"""

import dataclasses
from collections import Counter

import numpy as np

from simulator.engine import by_ranks, timeline
from simulator.engine.timeline import serve
from simulator.step.overlap import halves
from tests.cases import seeds
from tests.laws.deployments import draw_deployment


def with_domains(trace, seed):
    names = ("chat", "code", "prose")
    domain = np.random.default_rng(seed).integers(len(names), size=trace.num_requests)
    return dataclasses.replace(trace, domains=names, domain=domain)


def record_batches(monkeypatch, plan, trace):
    """Every batch of a run at the ``rank`` fidelity, by pool."""
    seen = []

    def read(requests, ranks):
        found = by_ranks.read_batches(requests, ranks)
        seen.extend(found)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(timeline, "read_batches", read)
        served = serve(plan, trace, "rank")
    return seen, served


@seeds(5200, 10)
def test_tokens_of_each_request_add_up(tiny, monkeypatch, seed):
    plan, trace = draw_deployment(tiny, seed)
    few = min(trace.num_requests, 10)
    trace = dataclasses.replace(
        trace,
        arrival_s=trace.arrival_s[:few],
        num_input=np.minimum(trace.num_input[:few], 300),
        num_output=np.minimum(trace.num_output[:few], 6),
        prefix_block_tokens=0,
    )
    trace = with_domains(trace, seed)
    batches, served = record_batches(monkeypatch, plan, trace)
    table, computed = served.requests_table(), Counter()
    for batch in batches:
        names = np.concatenate(batch.requests)
        assert len(set(names.tolist())) == len(names)
        assert (np.concatenate(batch.domains) == trace.domain[names]).all()
        for number, new in zip(names, np.concatenate(batch.new_tokens), strict=True):
            computed[int(number)] += int(new)
    assert table["domain"].tolist() == [trace.domains[place] for place in trace.domain]
    asked = trace.num_input + trace.num_output - 1
    again = (table["num_preemptions"] > 0).to_numpy()
    found = np.array([computed[number] for number in range(few)])
    one_more = plan.transfer is not None and plan.transfer.recomputes_last
    extra = one_more * (trace.num_output > 1)
    assert (found[~again] == (asked + extra)[~again]).all()
    assert (found[again] > asked[again]).all()


def test_halves_name_the_requests_that_are_in_them(tiny, monkeypatch):
    plan, trace = tiny.plan("moe", attention_dp=2, ep=2), with_domains(tiny.trace(8, 4000.0), 1)
    batches, _ = record_batches(monkeypatch, plan, trace)
    wide = [batch for batch in batches if halves(batch)]
    assert wide
    for batch in wide:
        for d in range(2):
            whole, parts = Counter(), Counter()
            for own, counts in ((batch, whole), *((half, parts) for half in halves(batch))):
                for number, new in zip(own.requests[d], own.new_tokens[d], strict=True):
                    counts[int(number)] += int(new)
                assert (own.domains[d] == trace.domain[own.requests[d]]).all()
            assert whole == parts
