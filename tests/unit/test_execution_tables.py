"""Which of the measured steps' timelines is kept."""

import statistics
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from simulator.base.recent import Thinned
from simulator.commands.execute import Timed, choose_median
from tests.cases import cases


@cases(60)
@given(st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=40))
def test_the_timeline_is_of_the_step_at_the_median(durations_s):
    steps = [Timed(number, duration_s, []) for number, duration_s in enumerate(durations_s)]
    chosen = choose_median(steps)
    assert chosen.duration_s == statistics.median_low(durations_s)
    assert steps[chosen.number] is chosen


@cases(60)
@given(st.integers(2, 20), st.integers(0, 500))
def test_a_bounded_sample_is_spread_evenly_over_all(most, count):
    kept = Thinned(most)
    for number in range(count):
        kept.add(number)
    assert len(kept.items) <= most
    assert len(kept.items) >= min(count, most // 2)
    ends = [*kept.items, count]
    gaps = [after - before for before, after in pairwise(ends)]
    assert len(set(gaps[:-1])) <= 1
    assert gaps[-1:] <= gaps[:1]
