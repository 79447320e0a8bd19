"""Laws of two deployments beside each other: what they share cancels, and what is there twice beats
itself.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from simulator.planner.confidence import ComparedChoices, Costs, over
from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.moe_vs_dense import _expected, _name, _tried
from simulator.planner.ratio_band import Error, error_of, margin
from simulator.planner.row_bands import rows
from simulator.planner.samples import Table, band_of, firsts, none_cheaper, share
from simulator.planner.sensitivity import _ratio
from tests.laws.tiny_question import candidate, costs, found, table, trials


def test_what_is_shared_cancels_and_the_rest_does_not():
    """The same deployment twice: a ratio of 1 in every draw; with errors of its own or other
    kernels the ratio has a band.
    """
    mine, same = costs(table(own="mine"), table(own="mine"))
    assert band_of(over(mine, same)) == (1.0, 1.0)
    assert (share(mine <= same, mine, same), share(mine < same, mine, same)) == (1.0, 0.0)
    widths = []
    for other in (table(own="theirs"), table(own="theirs", parts={"b": 1.0})):
        mine, theirs = costs(table(own="mine"), other)
        low, high = band_of(over(mine, theirs))
        widths.append(high / low)
        assert share(mine < theirs, mine, theirs) == pytest.approx(0.5, abs=0.05)
    assert 1.1 < widths[0] < widths[1]


def test_what_errs_together_does_not_change_the_order():
    """Two deployments whose steps consist of the same terms: the dearer one never wins; with
    different terms it may.
    """

    def probability(parts):
        near = Table((0.5, 2.0), (0.5, 2.0), "", {"a": 1.0}, [0.1, 1.0, 10.0], [1, 16, 64])
        candidates = candidate(0), candidate(1)
        evaluations = [
            Evaluation(one, ClusterSize(size, size), None, float(size), size)
            for one, size in zip(candidates, (16, 24), strict=True)
        ]
        tables = near, near._replace(parts=parts, gpus=[2, 24, 64])
        drawn = Costs(found(), dict(zip(candidates, tables, strict=True)))
        mine, theirs = (drawn.of(evaluation) for evaluation in evaluations)
        return float((mine <= theirs).mean())

    assert probability({"a": 1.0}) == 1.0
    assert 0.5 < probability({"b": 1.0}) < 1.0


def test_a_model_and_itself_are_alike_for_sure():
    one = Error({"a": 0.6, "mine": 0.8}, 0.1, 0.2)
    assert margin(1.0, one, one) == (1.0, 1.0, 0.5)
    apart = margin(1.0, one, one._replace(weights={"a": 0.6, "theirs": 0.8}))
    assert apart.low < 1.0 < apart.high
    assert apart.above == pytest.approx(0.5)
    assert margin(1.2, one, one._replace(gives=math.inf)) == (None, None, None)
    nearer, further = (
        margin(1.1, one, one._replace(weights={"b": 1.0})),
        margin(1.4, one, one._replace(weights={"b": 1.0})),
    )
    assert 0.5 < nearer.above < further.above < 1.0


def test_somebody_is_first_wherever_anybody_is():
    drawn = np.exp(np.random.default_rng(1).standard_normal((5, 2000)))
    drawn[:, :100] = np.inf
    assert firsts(drawn).sum() == pytest.approx(0.95)
    assert none_cheaper(drawn) == pytest.approx(firsts(drawn))
    twice = np.concatenate([drawn, drawn])
    assert firsts(twice) == pytest.approx([*firsts(drawn), *np.zeros(5)])
    assert none_cheaper(twice) == pytest.approx(np.tile(none_cheaper(drawn), 2))


def test_a_deployment_that_is_there_twice_is_as_likely_the_best():
    """The one listed first is taken of rows that cost the same in every draw."""
    first = found().evaluations[0]
    doubled = found()._replace(
        evaluations=[
            first,
            Evaluation(first.candidate._replace(budget=1024), *list(vars(first).values())[1:]),
        ]
    )
    own = table(own="mine")
    drawn = Costs(doubled, {evaluation.candidate: own for evaluation in doubled.evaluations})
    compared = ComparedChoices(first, None, None, None, {first.candidate: own}, [], [], (1.0, 1.0))
    bands = rows(
        doubled,
        compared._replace(slowed=[{"slower": 1.0, "measured": {}, "ratios": {}}]),
        drawn,
        {},
    )
    assert [one["is_best_probability"] for one in bands.values()] == [1.0, 0.0]
    assert [one["none_cheaper_probability"] for one in bands.values()] == [1.0, 1.0]


def test_pools_and_plain_replicas_of_as_many_gpus_can_be_ordered():
    plain, pooled = candidate(0)._replace(replicas=2), candidate(0, prefill=candidate(0).shape)
    for rate in (0.125, 1.0, 8.0):
        assert sorted([pooled, plain], key=lambda one: _expected(found(), one, rate))[0] == plain


def test_an_error_is_that_of_the_shares_of_a_step_however_long_it_takes(tiny):
    plan, terms = tiny.plan("moe", attention_dp=4, ep=4), np.arange(1.0, 9.0)
    short, long = (error_of(plan, terms * seconds) for seconds in (1e-4, 3.0))
    assert short.weights == pytest.approx(long.weights)
    assert short[1:] == pytest.approx(long[1:])


@pytest.mark.parametrize(
    ("ratio", "cheaper"), [(0.9, "moe"), (1.0, "dense"), (1.1, "dense"), (None, "dense")]
)
def test_a_ratio_below_one_is_a_cheaper_mixture_of_experts(ratio, cheaper):
    assert _name(ratio) == cheaper


def test_machines_that_cost_nothing_are_compared_by_their_number():
    def priced(cost, size):
        evaluation = SimpleNamespace(cluster_size=None if size is None else ClusterSize(size, 1))
        return SimpleNamespace(cost=cost, evaluation=evaluation)

    assert _ratio(priced(3.0, 8), priced(2.0, 1)) == 1.5
    assert _ratio(priced(0.0, 8), priced(0.0, 2)) == 4.0
    assert _ratio(priced(3.0, 8), priced(0.0, 2)) is None
    assert _ratio(priced(0.0, None), priced(0.0, 2)) is None
    assert _ratio(priced(0.0, 8), priced(0.0, None)) is None


@pytest.mark.parametrize(
    ("has_pool", "rate", "cluster_size", "gpus"),
    [
        # A size of its own, of which not every GPU is taken.
        (False, 4.0, ClusterSize(24, 3), 24),
        (True, 1.0, ClusterSize(24, 3, 2), 24),
        # Four times the nine GPUs of a quarter of the traffic, on the next size that is there.
        (True, 4.0, ClusterSize(16, 5, 4), 40),
        (True, 8.0, ClusterSize(16, 5, 4), math.inf),
        (False, 4.0, None, math.inf),
        (True, 1.0, None, math.inf),
        (True, 4.0, None, math.inf),
    ],
)
def test_pools_cost_as_many_times_their_part_and_nothing_found_is_never_affordable(
    has_pool, rate, cluster_size, gpus
):
    one, asked = candidate(0, prefill=candidate(0).shape if has_pool else None), trials()
    evaluation = Evaluation(one, cluster_size, None, math.inf, 0 if cluster_size is None else 9)
    stand_in = SimpleNamespace(space=asked.space, find=lambda *_: evaluation)
    assert _tried(stand_in, one, rate).cost == gpus * asked.space.machines[0].gpu_hour
