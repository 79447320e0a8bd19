"""Laws of two deployments beside each other: what they share cancels, and what is there twice beats
itself.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from simulator.planner.calibration_error import compare_speeds, read_error
from simulator.planner.evaluations import FigureBands
from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.samples import (
    CostSamples,
    GpuDemand,
    Priced,
    count_cheapest,
    count_none_cheaper,
    count_share,
    divide_costs,
    find_band,
)
from simulator.planner.uncertainty.bands import add_probabilities
from tests.laws.tiny_question import candidate, costs, demand, error, found


def test_what_is_shared_cancels_and_the_rest_does_not():
    """The same deployment twice: a ratio of 1 in every draw; with errors of its own or other
    kernels the ratio has a band.
    """
    mine, same = costs(demand(own="mine"), demand(own="mine"))
    assert find_band(divide_costs(mine, same)) == (1.0, 1.0)
    assert (count_share(mine <= same, mine, same), count_share(mine < same, mine, same)) == (
        1.0,
        0.0,
    )
    widths = []
    for other in (demand(own="theirs"), demand(own="theirs", parts={"b": 1.0})):
        mine, theirs = costs(demand(own="mine"), other)
        low, high = find_band(divide_costs(mine, theirs))
        widths.append(high / low)
        assert count_share(mine < theirs, mine, theirs) == pytest.approx(0.5, abs=0.05)
    assert 1.1 < widths[0] < widths[1]


def test_what_errs_together_does_not_change_the_order():
    """Two deployments whose steps consist of the same terms: the dearer one never wins; with
    different terms it may.
    """

    def probability(parts):
        slower = [0.1, 1.0, 10.0]
        near = GpuDemand(error((0.5, 2.0)), slower, [1, 16, 64])
        far = GpuDemand(error((0.5, 2.0), parts=parts), slower, [2, 24, 64])
        candidates = candidate(0), candidate(1)
        evaluations = [
            Evaluation(one, ClusterSize(size, size), None, float(size))
            for one, size in zip(candidates, (16, 24), strict=True)
        ]
        drawn = CostSamples(found(), dict(zip(candidates, (near, far), strict=True)))
        mine, theirs = (drawn.draw_costs(evaluation) for evaluation in evaluations)
        return float((mine <= theirs).mean())

    assert probability({"a": 1.0}) == 1.0
    assert 0.5 < probability({"b": 1.0}) < 1.0


def test_a_model_and_itself_are_alike_for_sure():
    one = error((0.7, 1.6), parts={"a": 0.6}, own="mine")
    assert compare_speeds(1.0, one, one) == (1.0, 1.0, 0.5)
    apart = compare_speeds(1.0, one, one._replace(own="theirs"))
    assert apart.low < 1.0 < apart.high
    assert apart.above == pytest.approx(0.5)
    assert compare_speeds(1.2, one, one, (1.0, math.inf)) == (None, None, None)
    other = error((0.7, 1.6), parts={"b": 1.0})
    nearer, further = (compare_speeds(ratio, one, other) for ratio in (1.1, 1.4))
    assert 0.5 < nearer.above < further.above < 1.0


def test_somebody_is_first_wherever_anybody_is():
    drawn = np.exp(np.random.default_rng(1).standard_normal((5, 2000)))
    drawn[:, :100] = np.inf
    assert count_cheapest(drawn).sum() == pytest.approx(0.95)
    assert count_none_cheaper(drawn) == pytest.approx(count_cheapest(drawn))
    twice = np.concatenate([drawn, drawn])
    assert count_cheapest(twice) == pytest.approx([*count_cheapest(drawn), *np.zeros(5)])
    assert count_none_cheaper(twice) == pytest.approx(np.tile(count_none_cheaper(drawn), 2))


def test_a_deployment_that_is_there_twice_is_as_likely_the_best():
    """The one listed first is taken of rows that cost the same in every draw."""
    first = found().evaluations[0]
    doubled = found()._replace(
        evaluations=[
            first,
            first._replace(candidate=first.candidate._replace(budget=1024)),
        ]
    )
    evaluations, own = doubled.evaluations, demand(own="mine")
    drawn = CostSamples(doubled, {evaluation.candidate: own for evaluation in evaluations})
    bands = {evaluation.candidate: FigureBands() for evaluation in evaluations}
    bands = add_probabilities(bands, evaluations, drawn)
    assert [one.is_best_probability for one in bands.values()] == [1.0, 0.0]
    assert [one.none_cheaper_probability for one in bands.values()] == [1.0, 1.0]


def test_an_error_is_that_of_the_shares_of_a_step_however_long_it_takes(tiny):
    plan, terms = tiny.plan("moe", attention_dp=4, ep=4), np.arange(1.0, 9.0)
    short, long = (read_error(plan, terms * seconds, False) for seconds in (1e-4, 3.0))
    assert short.weights == pytest.approx(long.weights)
    assert (short.bands, short.own) == (long.bands, long.own)


def test_machines_that_cost_nothing_are_compared_by_their_number():
    def priced(cost, size):
        return Priced(SimpleNamespace(size=size), cost)

    assert priced(3.0, 8).divide(priced(2.0, 1)) == 1.5
    assert priced(0.0, 8).divide(priced(0.0, 2)) == 4.0
    assert priced(3.0, 8).divide(priced(0.0, 2)) is None
    assert priced(0.0, None).divide(priced(0.0, 2)) is None
    assert priced(0.0, 8).divide(priced(0.0, None)) is None
