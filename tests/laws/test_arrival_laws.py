"""Laws of arrivals and traces: whatever the parameters, times are sorted, rates are kept, and
nothing depends on more than the seed.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.base.quantities import MOST_TOKENS
from simulator.config.workload import WorkloadSpec
from simulator.workload.requests import describe, load_requests, read_trace
from simulator.workload.traces import RequestTrace
from simulator.workload.traces.table import write_table
from tests.cases import cases

RATES = st.floats(0.01, 1000)
CVS = st.floats(0.1, 5)
SEEDS = st.integers(0, 2**31)


@st.composite
def processes(draw):
    rate_per_s = draw(RATES)
    span_s = draw(st.floats(10, 5000))
    times_s = st.floats(span_s / 1000, span_s)
    return draw(
        st.one_of(
            st.just({"kind": "poisson"}),
            st.builds(lambda cv: {"kind": "gamma", "cv": cv}, CVS),
            st.builds(lambda cv: {"kind": "weibull", "cv": cv}, CVS),
            st.builds(
                lambda cv, profile, swings, pauses: {
                    "kind": "modulated",
                    "span_s": span_s,
                    "cv": cv,
                    "profile": profile,
                    "swings": swings,
                    **({"pauses": pauses} if pauses else {}),
                },
                CVS,
                st.lists(st.floats(0.1, 10), min_size=1, max_size=12),
                st.lists(
                    st.fixed_dictionaries({"std": st.floats(0.01, 2), "time_s": times_s}),
                    max_size=3,
                ),
                st.none()
                | st.fixed_dictionaries({"share": st.floats(0.01, 0.9), "mean_s": times_s}),
            ),
        ).map(lambda table: {**table, "rate_per_s": rate_per_s})
    )


@cases(80)
@given(table=processes(), num_requests=st.integers(0, 3000), seed=SEEDS)
def test_times_are_sorted_finite_and_as_many_as_asked(table, num_requests, seed):
    times = plugins.build("arrivals", table, "test").arrival_s(
        num_requests, np.random.default_rng(seed)
    )
    assert len(times) == num_requests
    assert np.isfinite(times).all()
    assert (np.diff(times, prepend=0) >= 0).all()


@cases(40)
@given(
    kind=st.sampled_from(["poisson", "gamma", "weibull"]),
    rate_per_s=RATES,
    cv=st.floats(0.2, 2),
    seed=SEEDS,
)
def test_renewal_processes_keep_their_mean_rate(kind, rate_per_s, cv, seed):
    """The mean of n gaps has a relative standard deviation of cv / sqrt(n); six of them are
    allowed.
    """
    table = {"kind": kind, "rate_per_s": rate_per_s, **({} if kind == "poisson" else {"cv": cv})}
    n = 20_000
    times = plugins.build("arrivals", table, "test").arrival_s(n, np.random.default_rng(seed))
    assert n / times[-1] == pytest.approx(rate_per_s, rel=6 * max(cv, 1) / n**0.5)


@cases(40)
@given(table=processes().filter(lambda table: table["kind"] == "modulated"), seed=SEEDS)
def test_modulation_keeps_its_rate_exactly_over_each_span(table, seed):
    """Each part's count is its share rounded up or down, so a span is off by at most one request a
    part.
    """
    table = {**table, "rate_per_s": 2000 / table["span_s"]}
    process = plugins.build("arrivals", table, "test")
    times = process.arrival_s(6100, np.random.default_rng(seed))
    counts = np.bincount((times // process.span_s).astype(int))
    assert len(counts) >= 3
    assert (abs(counts[:2] - 2000) <= len(process.profile) + 1).all()


@cases(40)
@given(table=processes(), scale=st.floats(0.1, 10), seed=st.integers(0, 1000))
def test_scaling_the_rate_changes_the_times_and_nothing_else(table, scale, seed):
    generator = {
        "arrivals": table,
        "lengths": {
            "kind": "lognormal",
            "input": {"p50": 9, "sigma": 1},
            "output": {"p50": 9, "sigma": 1},
        },
    }
    spec = {"requests": {**generator, "num_requests": 200}}
    plain = load_requests(validate(WorkloadSpec, spec, "t"), Path("."), seed)
    scaled = load_requests(
        validate(WorkloadSpec, {**spec, "rate_scale": scale}, "t"), Path("."), seed
    )
    np.testing.assert_allclose(scaled.arrival_s * scale, plain.arrival_s, rtol=1e-12)
    assert scaled.num_input.tobytes() == plain.num_input.tobytes()
    assert describe(scaled)["output"] == describe(plain)["output"]


@cases(40)
@given(table=processes(), start_s=st.floats(0, 5), seed=st.integers(0, 1000))
def test_a_limit_takes_a_stretch_of_the_whole(table, start_s, seed):
    table = {**table, "rate_per_s": 20.0}
    spec = {
        "requests": {
            "arrivals": table,
            "lengths": {"kind": "fixed", "num_input": 1, "num_output": 1},
        },
        "num_requests": 400,
    }
    whole = load_requests(validate(WorkloadSpec, spec, "t"), Path("."), seed)
    part = load_requests(
        validate(WorkloadSpec, {**spec, "start_s": start_s, "num_requests": 50}, "t"),
        Path("."),
        seed,
    )
    assert part.arrival_s[0] == 0
    gaps = np.diff(part.arrival_s)
    windows = np.lib.stride_tricks.sliding_window_view(np.diff(whole.arrival_s), 49)
    assert (
        np.isclose(windows, gaps, rtol=1e-6, atol=1e-9).all(axis=1).any()
        or start_s > whole.arrival_s[-60]
    )


@st.composite
def traces(draw):
    n = draw(st.integers(1, 30))
    gaps = draw(st.lists(st.floats(0, 1e4), min_size=n, max_size=n))
    arrival_s = np.cumsum([0.0, *gaps[1:]])
    tokens = st.lists(st.integers(1, MOST_TOKENS), min_size=n, max_size=n)
    counts = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    has_blocks = draw(st.booleans())
    ids = np.array(
        draw(st.lists(st.integers(0, 9), min_size=sum(counts), max_size=sum(counts))), np.int64
    )
    return RequestTrace(
        arrival_s=arrival_s,
        num_input=np.array(draw(tokens)),
        num_output=np.array(draw(tokens)),
        provenance="made up",
        has_arrivals=True,
        prefix_block_tokens=16 if has_blocks else 0,
        prefix_starts=np.concatenate([[0], np.cumsum(counts)])
        if has_blocks
        else np.zeros(0, np.int64),
        prefix_ids=np.unique(ids, return_inverse=True)[1].astype(np.int64)
        if has_blocks
        else np.zeros(0, np.int64),
    )


@cases(40)
@given(trace=traces(), suffix=st.sampled_from([".csv", ".parquet"]))
def test_a_written_table_reads_back_as_it_was(trace, suffix, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / f"trace{suffix}"
    write_table(trace, path)
    found = read_trace(path)
    for name in ("arrival_s", "num_input", "num_output", "prefix_block_tokens", "prefix_starts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(trace, name))
    # CSV numbers blocks by first appearance: the same blocks are equal, under other numbers
    pairs = set(zip(found.prefix_ids.tolist(), trace.prefix_ids.tolist(), strict=True))
    assert len(pairs) == len(set(found.prefix_ids.tolist())) == len(set(trace.prefix_ids.tolist()))


@cases(150)
@given(
    content=st.binary(max_size=300)
    | st.text(alphabet='{}[]":,\n 0123456789.-eNaN' + "timestamp", max_size=200).map(str.encode)
)
def test_any_content_is_read_or_refused_and_never_crashes(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(content)
    with pytest.raises(UserError):
        read_trace(path)
