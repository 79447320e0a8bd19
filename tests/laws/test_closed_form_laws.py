"""Laws of the closed form that stands for simulation: it starts where simulation is, and stays near
it.
"""

import math

import numpy as np
import pytest

from simulator.planner.confidence import table_of
from simulator.planner.draws import gpus_at
from simulator.planner.estimate import Estimator, Pool, Reach
from simulator.planner.whatif import AS_ASKED
from tests.laws.tiny_question import found, option, trials


@pytest.mark.parametrize(
    ("least", "most"), [(3.0, 4.0), (0.5, 0.7), (30.0, math.inf), (0.01, 0.02)]
)
def test_a_closed_form_is_fitted_to_what_was_found(least, most):
    reach = Reach(
        1, np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.5, 0.7, 1.1, 1.9]), np.ones(4), np.ones(4)
    )
    slack, scale = reach.fitted(least, most)
    assert least * (1 - 1e-9) <= scale * reach.carries(1.0, slack) < most
    carried = [reach.carries(slower, slack) for slower in (0.5, 0.8, 1.0, 1.2, 2.0, 9.0)]
    assert carried == sorted(carried, reverse=True)
    assert carried[-1] == 0.0
    assert reach.fitted(2.5, 4.0) == (1.0, 1.0)


@pytest.mark.parametrize(("least", "most"), [(1.2, 1.5), (4.5, 6.0), (8.0, 8.5)])
def test_looser_limits_are_all_it_takes_between_the_loads_that_were_tried(least, most):
    rates = np.array([1.0, 2.5, 4.0, 9.0])
    reach = Reach(1, rates, np.array([0.5, 0.7, 1.1, 1.9]), np.ones(4), np.ones(4))
    slack, scale = reach.fitted(least, most)
    assert scale == pytest.approx(1)
    assert min(abs(reach.carries(1.0, slack) - edge) for edge in (least, most)) < 1e-5


@pytest.mark.parametrize("rate", [0.3, 10.0, 100.0, 900.0])
@pytest.mark.parametrize(("replicas", "fewer"), [(1, 0), (2, 1), (16, 12), (7, 6)])
def test_a_closed_form_needs_what_was_found(rate, replicas, fewer):
    reach = Reach(
        1, np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.5, 0.7, 1.1, 1.9]), np.ones(4), np.ones(4)
    )
    slack, scale = reach.fitted(rate / replicas, rate / fewer if fewer else math.inf)
    assert fewer < Pool(reach, replicas, slack, scale, ()).needed(rate, 1.0) <= replicas


def test_a_closed_form_starts_where_simulation_is_and_never_falls():
    for estimate, finding in [
        (Estimator(trials(), samples=True).estimate(one), one) for one in found().findings
    ]:
        if finding.sized is None:
            continue
        own = estimate.table
        assert own.gpus[own.slower.index(1.0)] == finding.sized.size
        for gpus in (own.gpus, *own.by_sample):
            needed = [number or math.inf for number in gpus]
            assert needed == sorted(needed)
        for low, high in estimate.factors.values():
            assert low <= 1.0 <= high


def test_a_closed_form_is_near_what_simulation_finds():
    """Over the calibration's whole band, of both models: within the step of sizes that a tenth more
    load takes.
    """
    for model in range(2):
        finding = trials().find(option(model), AS_ASKED)
        simulated = table_of(trials(), finding.option)
        closed = Estimator(trials()).estimate(finding).table
        sizes = found().space.machines[0].sizes
        for factor in simulated.slower:
            if not simulated.edges[0] <= factor <= simulated.edges[1]:
                continue
            true = simulated.gpus[simulated.slower.index(factor)]
            low, high = (
                gpus_at(closed, sizes, np.array([factor * off]))[0] for off in (0.85, 1.15)
            )
            assert low <= true <= high
