"""Thickening draws more of the same: as many as asked for, at the same times of day, as long as
those recorded there, and the recorded ones among them.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.config.workload import WorkloadSpec
from simulator.workload.requests import load_requests, source_arrivals_s, thicken
from simulator.workload.traces import RequestTrace
from simulator.workload.traces.table import write_table
from tests.cases import cases


def day(count, seed, blocks=False):
    """Requests whose lengths say when they came: twice as many in the second half."""
    rng = np.random.default_rng(seed)
    arrival_s = np.sort(np.concatenate([rng.uniform(0, 2, count), rng.uniform(1, 2, count)]))
    lengths = np.arange(1, 2 * count + 1)
    ids = np.stack([np.zeros(2 * count, np.int64), lengths], axis=1).ravel()
    return RequestTrace(
        arrival_s=arrival_s - arrival_s[0],
        num_input=lengths,
        num_output=3 * lengths,
        provenance="made up",
        prefix_block_tokens=16 if blocks else 0,
        prefix_starts=np.arange(0, 4 * count + 1, 2) if blocks else np.zeros(0, np.int64),
        prefix_ids=ids if blocks else np.zeros(0, np.int64),
    )


@cases(40)
@given(
    count=st.integers(1, 300),
    factor=st.floats(1, 20),
    seed=st.integers(0, 99),
    blocks=st.booleans(),
)
def test_thickening_keeps_what_was_recorded_and_draws_what_was_near(count, factor, seed, blocks):
    trace = day(count, seed, blocks)
    found = thicken(trace, factor, np.random.default_rng(seed))
    recorded = trace.num_requests
    assert found.num_requests == recorded + round((factor - 1) * recorded)
    assert (np.diff(found.arrival_s) >= 0).all()
    assert found.arrival_s[0] == 0
    assert found.arrival_s[-1] == trace.arrival_s[-1]
    assert (found.num_output == 3 * found.num_input).all()
    pairs = set(zip(found.arrival_s.tolist(), found.num_input.tolist(), strict=True))
    assert pairs >= set(zip(trace.arrival_s.tolist(), trace.num_input.tolist(), strict=True))
    between = np.searchsorted(trace.arrival_s, found.arrival_s)
    assert (np.abs(found.num_input - 1 - between) <= 65).all()
    if blocks:
        first, own = found.prefix_ids.reshape(-1, 2).T
        assert len(set(first.tolist())) == 1  # what all share
        assert len(set(own.tolist())) == found.num_requests  # what only one has


@cases(20)
@given(factor=st.floats(1.5, 8), more=st.floats(1, 3), seed=st.integers(0, 99))
def test_a_larger_factor_draws_what_a_smaller_one_does(factor, more, seed):
    trace = day(50, seed)
    few, many = (
        thicken(trace, f, np.random.default_rng(seed)).arrival_s for f in (factor, factor * more)
    )
    assert np.isin(few, many).all()


def test_every_hour_grows_alike():
    trace = day(2000, 0)
    found = thicken(trace, 10.0, np.random.default_rng(0))
    edges = np.linspace(0, trace.arrival_s[-1], 9)
    before, after = (np.histogram(t.arrival_s, edges)[0] for t in (trace, found))
    np.testing.assert_allclose(after / before, 10, rtol=0.06)


def load(folder, seed=0, **table):
    return load_requests(validate(WorkloadSpec, table, "test [workload]"), folder, seed)


def test_a_workload_is_thickened_before_it_is_cut_and_scaled(tmp_path):
    write_table(day(200, 1), tmp_path / "day.csv")
    plain = load(tmp_path, requests="day.csv")
    thick = load(tmp_path, requests="day.csv", thickening=5.0)
    assert thick.num_requests == 5 * plain.num_requests
    assert thick.arrival_s[-1] == pytest.approx(plain.arrival_s[-1])
    assert "thickened 5 times: 1600 of 2000 requests" in thick.notes[-1]
    again = load(tmp_path, requests="day.csv", thickening=5.0)
    other = load(tmp_path, seed=1, requests="day.csv", thickening=5.0)
    assert thick.arrival_s.tobytes() == again.arrival_s.tobytes()
    assert thick.arrival_s.tobytes() != other.arrival_s.tobytes()
    fast = load(tmp_path, requests="day.csv", thickening=5.0, rate_scale=2.0, num_requests=700)
    np.testing.assert_allclose(fast.arrival_s, thick.arrival_s[:700] / 2)
    spec = validate(WorkloadSpec, {"requests": "day.csv", "thickening": 5.0}, "t")
    np.testing.assert_array_equal(source_arrivals_s(spec, tmp_path, 0), thick.arrival_s)


POISSON = {"kind": "poisson", "rate_per_s": 5.0}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"requests": "day.csv", "thickening": 0.5}, "thickening must be at least 1"),
        ({"requests": "day.csv", "thickening": 1e6}, "lower thickening"),
        ({"requests": "day.csv", "thickening": 2.0, "arrivals": POISSON}, "leave it out"),
        ({"requests": "azure-conv", "thickening": 2.0}, "leave it out"),
        (
            {
                "requests": {
                    "arrivals": POISSON,
                    "lengths": {"kind": "fixed", "num_input": 1, "num_output": 1},
                },
                "num_requests": 5,
                "thickening": 2.0,
            },
            "leave it out",
        ),
    ],
)
def test_what_has_no_recorded_times_is_not_thickened(tmp_path, table, message):
    write_table(day(30, 1), tmp_path / "day.csv")  # a million times as many are too many
    with pytest.raises(UserError, match=message):
        load(tmp_path, **table)


def test_a_workload_may_ask_for_a_file_without_repairs(tmp_path):
    Path(tmp_path / "log.csv").write_text(
        "timestamp,prompt_tokens,completion_tokens\n5,1,1\n3,2,2\n"
    )
    assert load(tmp_path, requests="log.csv").num_input.tolist() == [2, 1]
    with pytest.raises(UserError, match=r"log\.csv, line 3: timestamp lies 2 s before"):
        load(tmp_path, requests="log.csv", strict=True)
