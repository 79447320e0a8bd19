"""Laws of the analytical estimate that stands for simulation: it starts where simulation is, and
stays near it.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from simulator.planner.estimate import (
    Estimator,
    FittedPool,
    ReplicaCapacity,
    _estimate_factors,
    measure_capacity,
)
from simulator.planner.evaluations import best_of_each
from simulator.planner.headroom import find_sizes
from simulator.planner.samples import interpolate_gpus
from simulator.planner.screen import Served
from simulator.planner.uncertainty.bands import simulate_demand
from tests.laws.tiny_question import answer, candidate, error, found, trials


@pytest.mark.parametrize(
    ("least", "most"), [(3.0, 4.0), (0.5, 0.7), (30.0, math.inf), (0.01, 0.02)]
)
def test_an_analytical_estimate_is_fitted_to_what_was_found(least, most):
    reach = ReplicaCapacity(
        1, np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.5, 0.7, 1.1, 1.9]), np.ones(4), np.ones(4)
    )
    slack, scale = reach.fit(least, most)
    assert least * (1 - 1e-9) <= scale * reach.find_rate(1.0, slack) < most
    carried = [reach.find_rate(slower, slack) for slower in (0.5, 0.8, 1.0, 1.2, 2.0, 9.0)]
    assert carried == sorted(carried, reverse=True)
    assert carried[-1] == 0.0
    assert reach.fit(2.5, 4.0) == (1.0, 1.0)


@pytest.mark.parametrize(("least", "most"), [(1.2, 1.5), (4.5, 6.0), (8.0, 8.5)])
def test_looser_limits_are_all_it_takes_between_the_loads_that_were_tried(least, most):
    rates = np.array([1.0, 2.5, 4.0, 9.0])
    reach = ReplicaCapacity(1, rates, np.array([0.5, 0.7, 1.1, 1.9]), np.ones(4), np.ones(4))
    slack, scale = reach.fit(least, most)
    assert scale == pytest.approx(1)
    assert min(abs(reach.find_rate(1.0, slack) - edge) for edge in (least, most)) < 1e-5


@pytest.mark.parametrize("rate", [0.3, 10.0, 100.0, 900.0])
@pytest.mark.parametrize(("replicas", "fewer"), [(1, 0), (2, 1), (16, 12), (7, 6)])
def test_an_analytical_estimate_needs_what_was_found(rate, replicas, fewer):
    reach = ReplicaCapacity(
        1, np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.5, 0.7, 1.1, 1.9]), np.ones(4), np.ones(4)
    )
    slack, scale = reach.fit(rate / replicas, rate / fewer if fewer else math.inf)
    needed = FittedPool(reach, replicas, slack, scale, ()).count_gpus(rate, 1.0)
    assert fewer < needed <= replicas * (1 + 1e-9)


@pytest.mark.parametrize("band", [(1.0, 1.0), (0.2, 5.0)])
def test_first_tokens_come_as_steps_do_or_as_their_own_band_says(band):
    """Whichever is the wider."""
    rates, ttft_s = np.array([1.0, 2.5, 4.0, 9.0]), np.array([0.1, 0.15, 0.3, 2.0])
    reach = ReplicaCapacity(1, rates, np.array([0.5, 0.7, 1.1, 1.9]), np.full(4, 0.01), ttft_s)
    pool = FittedPool(reach, 2, 1.0, 1.0, ())
    own = error((0.8, 1.25), band)
    steps = [
        reach.estimate_latencies(3.0, edge)[1] / reach.estimate_latencies(3.0, 1.0)[1]
        for edge in own.edges
    ]
    low, high = _estimate_factors([pool], 6.0, own, 100.0)["ttft_s"]
    assert (low, high) == pytest.approx((min(steps[0], band[0]), max(steps[1], band[1])))


def test_latencies_at_a_load_that_was_tried_are_those_found_there():
    rates, times = np.array([1.0, 2.5, 4.0]), np.array([[0.01, 0.02, 0.03], [0.1, 0.15, 0.3]])
    reach = ReplicaCapacity(1, rates, np.array([0.5, 0.7, 1.1]), *times)
    for rate, expected in zip((0.5, *rates[:2]), (times[:, 0], *times.T[:2]), strict=True):
        assert reach.estimate_latencies(rate, 1.0) == pytest.approx(tuple(expected))
        steps_twice_as_long = reach.estimate_latencies(rate / 2, 2.0)
        assert steps_twice_as_long == pytest.approx(tuple(2 * expected))


def test_a_replica_reaches_from_the_first_load_that_it_serves():
    judge = SimpleNamespace(
        limits=SimpleNamespace(tpot_s=0.1, ttft_s=1.0),
        space=trials().space,
        traffic=SimpleNamespace(num_output=40.0),
    )
    rates, possible = np.array([0.0, 2.0, 3.0, 5.0]), np.array([True, True, True, False])
    served = Served(rates, 0.01 * np.arange(4), 0.4 * np.arange(4), possible, rates)
    reach = measure_capacity(judge, candidate(1).shape, served)
    np.testing.assert_array_equal(reach.rates, [2.0, 3.0])
    np.testing.assert_allclose(reach.needs, [0.4, 0.8])
    assert measure_capacity(judge, candidate(1).shape, served._replace(possible=rates < 1)) is None


def test_the_figure_of_speeds_has_the_fastest_and_the_most_productive():
    points = [point for point in answer().pareto if not point.is_simulated]
    for screened in found().screened.values():
        speeds = [*screened.front, *screened.pooled]
        for name in ("user", "gpu"):
            shown = [getattr(point, f"tokens_per_s_{name}") for point in points]
            most = max(getattr(speed, f"per_{name}") for speed in speeds)
            assert min(abs(one / most - 1) for one in shown) < 1e-9


def test_the_next_larger_cluster_has_as_many_replicas_as_it_holds():
    for first in best_of_each(found()).values():
        larger = find_sizes(found(), first).larger
        assert f"{larger.gpus} replicas" in larger.deployment


def test_an_analytical_estimate_starts_where_simulation_is_and_never_falls():
    for estimate, evaluation in [
        (Estimator(trials(), resamples=True).estimate(one), one) for one in found().evaluations
    ]:
        if evaluation.cluster_size is None:
            continue
        own, size = estimate.demand, evaluation.cluster_size.size
        assert 0 < own.base <= size * (1 + 1e-6)
        for gpus in (own.gpus, *own.by_resample):
            needed = [number or math.inf for number in gpus]
            assert needed == sorted(needed)
        for low, high in estimate.factors.values():
            assert low <= 1.0 <= high


def test_an_analytical_estimate_is_near_what_simulation_finds():
    """Over the calibration's whole band, of both models: within the step of sizes that a tenth more
    load takes.
    """
    for model in range(2):
        evaluation = trials().find(candidate(model))
        simulated = simulate_demand(trials(), evaluation.candidate)
        closed = Estimator(trials()).estimate(evaluation).demand
        for factor in simulated.slower:
            if not simulated.error.edges[0] <= factor <= simulated.error.edges[1]:
                continue
            true = simulated.gpus[simulated.slower.index(factor)] / simulated.base
            low, high = interpolate_gpus(closed, factor * np.array([0.85, 1.15])) / closed.base
            assert low <= true * 1.1
            assert true <= high * 1.1
