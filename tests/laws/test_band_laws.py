"""Laws of one deployment's band of GPUs: its draws hold what the calibration says, whatever the
sizes and samples.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.samples import (
    RESAMPLES,
    ErrorSamples,
    GpuDemand,
    find_band,
    interpolate_gpus,
)
from simulator.planner.uncertainty.confidence import _compare_samples, _list_other_calibrations
from simulator.results.answer.certainty import Source
from tests.laws.tiny_question import MANY, candidate, demand, error, trials


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
    assert find_band(samples.draw_gpus(one, MANY)) == pytest.approx((320, 600), rel=0.03)


def test_gpus_between_what_was_tried():
    tried = GpuDemand(error((0.8, 1.25)), [0.8, 1.0, 1.25], [4, 8, 0])
    slower = np.array([0.1, 0.8, 0.81, 1.0, 1.05, 1.2, 9.0])
    needed = interpolate_gpus(tried, (1, 2, 4, 8, 16), slower)
    assert needed.tolist() == [4, 4, 8, 8, 8, np.inf, np.inf]


def test_other_samples_count_as_often_as_each_other():
    samples, one = ErrorSamples(3), demand(token=(0.999, 1.001))
    noisy = samples.draw_gpus(one._replace(noise=(1.0, 1.0, 2.0)), MANY)
    doubled = [2 * gpus for gpus in one.gpus]
    tabulated = samples.draw_gpus(one._replace(by_resample=(one.gpus, one.gpus, doubled)), MANY)
    for gpus in (noisy, tabulated):
        assert (gpus > 600).mean() == pytest.approx(0.25, abs=0.03)


def test_a_harder_sample_and_slower_steps_are_not_rounded_up_twice():
    """Sizes double: either alone takes the next size, and both together hardly ever two sizes
    more.
    """
    one = GpuDemand(error((0.98, 1.1)), [0.9, 1.0, 1.08, 1.2, 1.6], [8, 8, 16, 16, 16])

    def draw(*noise):
        return ErrorSamples(3).draw_gpus(one._replace(noise=noise), (8, 16, 32))

    alone, harder = draw(), draw(2.0, 2.0, 2.0)
    assert set(alone) == {8.0, 16.0}
    assert set(harder) == {8.0, 16.0}
    assert (harder == 16).mean() > (alone == 16).mean() + 0.1
    assert (draw(4.0, 4.0, 4.0) >= 32).mean() == pytest.approx(0.75, abs=0.03)


def test_a_sample_that_no_size_is_enough_for_fails():
    own, samples = demand(), ErrorSamples(5)
    noise = _compare_samples(own.base, [own.base, 0, 0])
    assert noise == (1.0, math.inf, math.inf)
    assert _compare_samples(0, [8, 0, 8]) == (1.0, 1.0, 1.0)
    failing = np.isin(
        samples.resample,
        [number for number, ratio in zip(RESAMPLES, noise, strict=True) if math.isinf(ratio)],
    )
    needed = samples.draw_gpus(own._replace(noise=noise), MANY)
    assert np.isinf(needed[failing]).all()
    assert (needed[~failing] == samples.draw_gpus(own, MANY)[~failing]).all()


def test_calibrations_are_told_of_all_that_meets_the_targets_with_another_than_the_first():
    first, same, other, untabulated, missed = (
        candidate(model, tp) for model, tp in ((0, 1), (0, 2), (1, 1), (1, 2), (1, 4))
    )
    own, theirs = demand(source="of one engine"), demand(token=(0.9, 1.2), source="of another")
    nobodys = demand(token=(0.9, 1.2), source="of nobody")
    evaluations = [
        Evaluation(one, None if one == missed else ClusterSize(8, 8), None, 8.0)
        for one in (first, same, other, untabulated, missed)
    ]
    demands = {first: own, same: own, other: theirs, missed: nobodys}
    met = [one for one in evaluations if one.cluster_size is not None]
    asked = SimpleNamespace(met=met, space=trials().space)
    assert _list_other_calibrations(asked, own, SimpleNamespace(demands=demands)) == [
        Source(
            name="time per token of llama-3.1-8b on h100-sxm",
            low=0.9,
            high=1.2,
            text="Measured over predicted, 80 % of cases: of another",
        )
    ]
