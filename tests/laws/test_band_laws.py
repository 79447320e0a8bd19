"""Laws of one deployment's band of GPUs: its draws hold what the calibration says, whatever the
sizes and samples.
"""

import copy
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.samples import (
    RESAMPLES,
    CostSamples,
    ErrorSamples,
    GpuDemand,
    find_band,
    interpolate_gpus,
)
from simulator.planner.uncertainty.bands import _compare_samples
from tests.laws.tiny_question import candidate, demand, error, found


@pytest.mark.parametrize("own", ["", "mine"])
@pytest.mark.parametrize("parts", [{"a": 1.0}, {"a": 0.7, "b": 0.2, "c": 0.1}])
def test_the_band_of_a_known_log_normal_comes_out(parts, own):
    """Whatever a step is made of, four of five draws lie in the calibration's band, and so do GPUs
    in proportion to them.
    """
    one, samples = demand(own=own, parts=parts), ErrorSamples(7, 40_000)
    weights = one.error.weights.values()
    assert math.fsum(weight**2 for weight in weights) == pytest.approx(1.0)
    slowness = samples.draw_slowness(one.error)
    assert np.quantile(slowness, [0.1, 0.5, 0.9]) == pytest.approx(
        [0.8, math.sqrt(1.2), 1.5], rel=0.02
    )
    assert find_band(samples.draw_gpus(one)) == pytest.approx((320, 600), rel=0.03)


def test_gpus_between_what_was_tried():
    tried = GpuDemand(error((0.8, 1.25)), [0.8, 1.0, 1.25], [4.0, 8.0, 0.0])
    slower = np.array([0.1, 0.8, math.sqrt(0.8), 1.0, 1.05, 1.2, 9.0])
    needed = interpolate_gpus(tried, slower)
    power = math.log(2) / math.log(1.25)
    beyond = [4 * 0.125**power, 4, math.sqrt(32), 8, 8 * 1.05**power, np.inf, np.inf]
    assert needed == pytest.approx(beyond)


def test_other_samples_count_as_often_as_each_other():
    samples, one = ErrorSamples(3), demand(token=(0.999, 1.001))
    noisy = samples.draw_gpus(one._replace(noise=(1.0, 1.0, 2.0)))
    doubled = [2 * gpus for gpus in one.gpus]
    tabulated = samples.draw_gpus(one._replace(by_resample=(one.gpus, one.gpus, doubled)))
    for gpus in (noisy, tabulated):
        assert (gpus > 600).mean() == pytest.approx(0.25, abs=0.03)


@given(
    worst=st.lists(st.floats(0.3, 3.0), min_size=1, max_size=6),
    size=st.integers(0, 5),
    other=st.floats(0.3, 3.0),
)
def test_what_is_needed_lies_between_the_sizes_that_miss_and_meet(worst, size, other):
    """Clusters of 1, 2, 4, ... GPUs: rounded up it is the size that was found; and the worse the
    ratio is there, the more is needed.
    """
    tried = tuple((ClusterSize(2**n, 2**n), ratio) for n, ratio in enumerate(worst))
    size %= len(tried)
    assume(worst[size] <= 1)
    found = Evaluation(candidate(0), tried[size][0], None, 1.0, tried)
    below = max((one.size for one, ratio in tried[:size] if ratio > 1), default=0)
    assert below < found.needed <= found.size
    assert found.estimate_needed(1.0) == found.size
    assert (found.estimate_needed(other) <= found.needed) or other > worst[size]
    assert (found.estimate_needed(other) >= found.needed) or other < worst[size]


def test_a_harder_sample_and_slower_steps_are_not_rounded_up_twice():
    """Sizes double: 5 of 8 GPUs are needed, so that neither a fifth more nor steps that take as
    much longer need another size, and both together seldom do.
    """
    one = GpuDemand(error((0.84, 1.19)), [0.5, 1.0, 2.0], [2.5, 5.0, 10.0], (1.2, 1.2, 1.2))
    tried = ((ClusterSize(4, 4), 1.3), (ClusterSize(8, 8), 0.6))
    asked = Evaluation(candidate(0), ClusterSize(8, 8), None, 8.0, tried)
    assert 5 < asked.needed < 6
    space = copy.copy(found().space)
    space.machines = [machines._replace(sizes=(4, 8, 16, 32)) for machines in space.machines]
    costs = CostSamples(found()._replace(space=space, evaluations=[asked]), {candidate(0): one})
    gpus = costs.draw_gpus(asked)
    assert (gpus <= 8).mean() > 0.8
    assert set(gpus) <= {4.0, 8.0, 16.0}
    costs.settle(candidate(0), np.where(np.arange(4000) % 2, 2.0, 0.9))
    assert (costs.draw_gpus(asked)[::2] >= 16).all()
    assert (costs.draw_gpus(asked)[1::2] <= 8).all()
    twice = asked._replace(tried=((ClusterSize(8, 8), 1.01), (ClusterSize(16, 16), 0.6)),
                    cluster_size=ClusterSize(16, 16))  # fmt: skip
    assert (costs.draw_gpus(twice, rate=2.0)[1::2] <= 8).all()


def test_no_sample_needs_less_than_a_replica():
    """However fast steps are, half a replica serves nobody."""
    wide = candidate(0, tp=2)
    asked = Evaluation(wide, ClusterSize(2, 1), None, 2.0)
    one = GpuDemand(error((0.2, 0.5)), [0.5, 1.0, 2.0], [1.0, 2.0, 4.0])
    costs = CostSamples(found()._replace(evaluations=[asked]), {wide: one})
    assert costs.draw_gpus(asked).min() == 2
    assert costs.draw_gpus(asked, sizes=(4, 8)).min() == 4


def test_a_sample_that_no_size_is_enough_for_fails():
    own, samples = demand(), ErrorSamples(5)
    noise = _compare_samples(own.base, [own.base, 0, 0])
    assert noise == (1.0, math.inf, math.inf)
    assert _compare_samples(0, [8, 0, 8]) == (1.0, 1.0, 1.0)
    failing = np.isin(
        samples.resample,
        [number for number, ratio in zip(RESAMPLES, noise, strict=True) if math.isinf(ratio)],
    )
    needed = samples.draw_gpus(own._replace(noise=noise))
    assert np.isinf(needed[failing]).all()
    assert (needed[~failing] == samples.draw_gpus(own)[~failing]).all()
