"""Replicas that fail together, with their node or switch: how many are out for what share of the
time, beside every combination counted one by one, and beside an engine whose GPUs fail so.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.errors import UserError
from simulator.base.plugins import build
from simulator.config.failures import FailureRates
from simulator.engine.timeline import serve
from simulator.planner.loss_probability import (
    MOST_SPARES,
    Failing,
    count_spare_replicas,
    probability_at_most,
    share_of_time_serving,
)
from simulator.results.run_sentences import list_held
from tests.cases import cases
from tests.parts import change_plan

HOUR_S = 3600.0


def count_combinations(most, count, num_gpus, node_gpus, failing):
    """Probability of at most so many out, over all states of all parts of a small cluster."""
    gpus = count * num_gpus
    nodes, per_switch = -(-gpus // node_gpus), failing.nodes_per_switch
    switches = -(-nodes // per_switch)
    alone = 1.0 - failing.node_share - failing.switch_share
    out = [failing.find_share_out(alone, 1)] * gpus
    out += [failing.find_share_out(failing.node_share, node_gpus)] * nodes
    out += [failing.find_share_out(failing.switch_share, node_gpus * per_switch)] * switches
    parts = []
    for replica in range(count):
        own = range(replica * num_gpus, (replica + 1) * num_gpus)
        on = {gpu // node_gpus for gpu in own}
        under = {node // per_switch for node in on}
        parts.append({*own, *(gpus + n for n in on), *(gpus + nodes + n for n in under)})
    total = 0.0
    for state in itertools.product((False, True), repeat=len(out)):
        lost = sum(any(state[part] for part in own) for own in parts)
        if lost <= most:
            total += np.prod(
                [one if is_out else 1 - one for one, is_out in zip(out, state, strict=True)]
            )
    return total


@pytest.mark.parametrize(
    ("count", "num_gpus", "node_gpus"), [(5, 1, 2), (4, 2, 4), (3, 2, 2), (2, 4, 2), (6, 1, 4)]
)
@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.5, 0.0), (0.0, 0.4), (0.3, 0.3), (0.4, 0.6)])
@pytest.mark.parametrize("nodes_per_switch", [1, 2])
def test_as_many_are_out_as_every_combination_says(
    count, num_gpus, node_gpus, shares, nodes_per_switch
):
    failing = Failing(50.0, 5.0, *shares, nodes_per_switch)
    for most in range(count + 1):
        found = probability_at_most(most, count, num_gpus, node_gpus, failing)
        counted = count_combinations(most, count, num_gpus, node_gpus, failing)
        assert found == pytest.approx(counted)


def rates_of(**keys):
    hours = {"mtbf_gpu_hours_low": 500.0, "mtbf_gpu_hours_high": 5000.0, "repair_hours": 5.0}
    return FailureRates(**hours, **keys)


@cases(60)
@given(
    st.integers(1, 30),
    st.sampled_from([1, 2, 8, 32]),
    st.floats(0.0, 0.5),
    st.floats(0.0, 0.5),
    st.integers(0, 6),
)
def test_independent_failures_are_the_limit_and_more_spares_are_never_worse(
    replicas, num_gpus, node_share, switch_share, spares
):
    alike = share_of_time_serving(replicas, spares, num_gpus, 8, rates_of())
    limit = share_of_time_serving(replicas, spares, num_gpus, 8, rates_of(node_share=1e-12))
    assert limit == pytest.approx(alike, abs=1e-6)
    rates = rates_of(node_share=node_share, switch_share=switch_share)
    low, high = share_of_time_serving(replicas, spares, num_gpus, 8, rates)
    more = share_of_time_serving(replicas, spares + 1, num_gpus, 8, rates)
    assert low <= high + 1e-12
    assert more[0] >= low - 1e-12


@pytest.mark.parametrize("num_gpus", [1, 2, 4])
def test_what_fails_together_takes_more_spares(num_gpus):
    """Replicas of parts of a node, at the same number of failures."""
    counts = [
        count_spare_replicas(16, num_gpus, 8, 0.9999, rates_of(node_share=share))
        for share in (0.0, 0.2, 0.6)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] < MOST_SPARES


@pytest.mark.parametrize(
    ("needed", "spares", "keys"),
    [(3, 1, {}), (6, 2, {"node_share": 0.5}), (6, 4, {"switch_share": 0.3, "node_share": 0.2})],
    ids=["GPUs", "nodes", "switches"],
)
def test_as_many_replicas_serve_as_long_when_gpus_nodes_and_switches_fail_at_random(
    tiny, needed, spares, keys
):
    """Seven years of replicas of two GPUs on nodes of eight, whose GPUs fail every 400 h."""
    total, num_gpus = needed + spares, 2
    plan = tiny.plan("dense", tp=num_gpus, num_layers=2, replicas=total, cluster="h100-sxm-32")
    table = {"kind": "random", "mtbf_gpu_hours": 400.0, "repair_s": 5 * HOUR_S, **keys}
    plan = change_plan(
        plan, failures=(build("failures", {"nodes_per_switch": 2, **table}, "test"),)
    )
    end_s = 60_000 * HOUR_S
    trace = tiny.trace(2, 1.0)
    trace.arrival_s[1] = end_s
    served = serve(plan, trace, until=end_s)
    changes = [vars(one) for one in served.changed]
    facts = {"changes": changes, "num_gpus": total * num_gpus, "replicas": total}
    levels = np.array([(at_s, serving) for at_s, _, serving in list_held(facts)])
    spans_s = np.diff(np.append(levels[:, 0], end_s))
    share = spans_s[levels[:, 1] >= needed].sum() / end_s
    said = probability_at_most(
        spares,
        total,
        num_gpus,
        8,
        Failing(400.0, 5.0, keys.get("node_share", 0.0), keys.get("switch_share", 0.0), 2),
    )
    alone = probability_at_most(spares, total, num_gpus, 8, Failing(400.0, 5.0, 0.0, 0.0, 2))
    assert share == pytest.approx(said, abs=0.015)
    assert abs(share - said) < 0.3 * (1 - said)
    assert 1 - said >= (1.5 if keys else 1.0) * (1 - alone)


def test_shares_of_the_same_failures_add_up_to_one_at_most():
    with pytest.raises(ValueError, match="must add up to at most 1"):
        rates_of(node_share=0.6, switch_share=0.6)
    with pytest.raises(UserError, match="must add up to at most 1"):
        build("failures", {"kind": "random", "node_share": 0.6, "switch_share": 0.6}, "test")
