"""Laws of one deployment's band of GPUs: its draws hold what the calibration says, whatever the
sizes and samples.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from simulator.planner.confidence import ComparedChoices, _others, noise_of
from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.samples import DRAWS, Draws, Table, band_of, gpus_at, loading
from tests.laws.tiny_question import MANY, candidate, found, table, trials


@pytest.mark.parametrize("own", ["", "mine"])
@pytest.mark.parametrize("parts", [{"a": 1.0}, {"a": 0.7, "b": 0.2, "c": 0.1}])
def test_the_band_of_a_known_log_normal_comes_out(parts, own):
    """Whatever a step is made of, four of five draws lie in the calibration's band, and so do GPUs
    in proportion to them.
    """
    one, draws = table(own=own, parts=parts), Draws(7, 40_000)
    assert math.fsum(weight**2 for weight in loading(parts, own).values()) == pytest.approx(1.0)
    slowness = draws.slowness(one)
    assert np.quantile(slowness, [0.1, 0.5, 0.9]) == pytest.approx(
        [0.8, math.sqrt(1.2), 1.5], rel=0.02
    )
    assert band_of(draws.gpus(one, MANY)) == pytest.approx((320, 600), rel=0.03)


def test_gpus_between_what_was_tried():
    tried = Table((0.8, 1.25), (0.8, 1.25), "", {}, [0.8, 1.0, 1.25], [4, 8, 0])
    slower = np.array([0.1, 0.8, 0.81, 1.0, 1.05, 1.2, 9.0])
    assert gpus_at(tried, (1, 2, 4, 8, 16), slower).tolist() == [4, 4, 8, 8, 8, np.inf, np.inf]


def test_other_samples_count_as_often_as_each_other():
    draws = Draws(3)
    one = table(band=(0.999, 1.001))
    noisy = draws.gpus(one._replace(noise=(1.0, 1.0, 2.0)), MANY)
    tabulated = draws.gpus(
        one._replace(by_sample=(one.gpus, one.gpus, [2 * gpus for gpus in one.gpus])), MANY
    )
    for gpus in (noisy, tabulated):
        assert (gpus > 600).mean() == pytest.approx(0.25, abs=0.03)


def test_a_harder_sample_and_slower_steps_are_not_rounded_up_twice():
    """Sizes double: either alone takes the next size, and both together hardly ever two sizes
    more.
    """
    one = Table(
        (0.98, 1.1), (0.98, 1.1), "", {"a": 1.0}, [0.9, 1.0, 1.08, 1.2, 1.6], [8, 8, 16, 16, 16]
    )
    alone, harder = (
        Draws(3).gpus(one._replace(noise=noise), (8, 16, 32)) for noise in ((), (2.0, 2.0, 2.0))
    )
    assert set(alone) == {8.0, 16.0}
    assert set(harder) == {8.0, 16.0}
    assert (harder == 16).mean() > (alone == 16).mean() + 0.1
    beyond = Draws(3).gpus(one._replace(noise=(4.0, 4.0, 4.0)), (8, 16, 32))
    assert (beyond >= 32).mean() == pytest.approx(0.75, abs=0.03)


def test_a_sample_that_no_size_is_enough_for_fails():
    first = found().evaluations[0]
    own = table()
    rows = [{"gpus": [gpus]} for gpus in (own.gpus[own.slower.index(1.0)], 0, 0)]
    compared = ComparedChoices(
        first, None, None, None, {first.candidate: own}, rows, [], (1.0, 1.0)
    )
    noise = noise_of(compared, 0)
    assert noise == (1.0, math.inf, math.inf)
    draws = Draws(5)
    failing = np.isin(
        draws.sample,
        [number for number, ratio in zip(DRAWS, noise, strict=True) if math.isinf(ratio)],
    )
    needed = draws.gpus(own._replace(noise=noise), MANY)
    assert np.isinf(needed[failing]).all()
    assert (needed[~failing] == draws.gpus(own, MANY)[~failing]).all()


def test_calibrations_are_told_of_all_that_meets_the_targets_with_another_than_the_first():
    first, same, other, untabulated, missed = (
        candidate(model, tp) for model, tp in ((0, 1), (0, 2), (1, 1), (1, 2), (1, 4))
    )
    own = table()._replace(source="of one engine")
    theirs = table((0.9, 1.2))._replace(source="of another")
    evaluations = [
        Evaluation(one, None if one == missed else ClusterSize(8, 8), None, 8.0, 8)
        for one in (first, same, other, untabulated, missed)
    ]
    tables = {first: own, same: own, other: theirs, missed: theirs._replace(source="of nobody")}
    asked = SimpleNamespace(evaluations=evaluations, space=trials().space)
    assert _others(asked, own, SimpleNamespace(tables=tables)) == [
        {
            "name": "time per token of llama-3.1-8b on h100-sxm",
            "low": 0.9,
            "high": 1.2,
            "text": "Measured over predicted, 80 % of cases: of another",
        }
    ]
