"""How long ranks wait for each other: as long as was asked for, and longer where steps are slow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.runtime.load import Patience
from tests.cases import cases

SECONDS = st.floats(1e-3, 1e4)


@cases(40)
@given(least_s=SECONDS, took_s=st.lists(SECONDS, min_size=1, max_size=5))
def test_no_step_that_is_as_fast_as_the_slowest_is_given_up_and_none_sooner_than_asked(
    least_s, took_s
):
    patience = Patience(least_s)
    assert patience.limit_s("decode") == patience.first_s > least_s
    for one_s in took_s:
        patience.learn("decode", one_s)
    assert patience.limit_s("decode") >= max(least_s, 2 * max(took_s))
    assert patience.limit_s("prompt") == patience.first_s
    patience.forget()
    assert patience.limit_s("decode") == patience.first_s


def test_a_step_that_was_slow_once_gives_the_next_ones_time():
    patience = Patience(30.0)
    patience.learn("decode", 0.1)
    assert patience.limit_s("decode") == 30.0
    patience.learn("decode", 40.0)
    assert patience.limit_s("decode") == pytest.approx(200.0)
