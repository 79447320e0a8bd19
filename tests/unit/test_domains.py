"""Kinds of text of requests, drawn by shares that follow the clock."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.config.workload import WorkloadSpec
from simulator.workload.requests import describe, load_requests
from simulator.workload.traces.table import write_table

TWO = [{"shares": {"chat": 3, "code": 1}}, {"at_s": 50, "shares": {"code": 1}}]


def load(tmp_path, domains, arrivals=None, num_requests=4000):
    requests = {
        "arrivals": arrivals or {"kind": "poisson", "rate_per_s": 40.0},
        "lengths": {"kind": "fixed", "num_input": 8, "num_output": 2},
        "num_requests": num_requests,
    }
    spec = validate(WorkloadSpec, {"requests": requests, "domains": domains}, "test")
    return load_requests(spec, tmp_path, 1)


def share_of(trace, name, first_s, end_s):
    inside = (trace.arrival_s >= first_s) & (trace.arrival_s < end_s)
    return float((trace.domain[inside] == trace.domains.index(name)).mean())


def test_shares_hold_from_their_time_on(tmp_path):
    scaled = [{"shares": {"chat": 0.75, "code": 0.25}}, TWO[1]]
    trace = load(tmp_path, {"mixes": scaled})
    assert trace.domains == ("chat", "code")
    assert share_of(trace, "chat", 0, 50) == pytest.approx(0.75, abs=0.03)
    assert share_of(trace, "chat", 50, 100) == 0
    counts = describe(trace)["domains"]
    assert sum(counts.values()) == 4000


def test_shares_change_evenly_and_again_each_period(tmp_path):
    mixes = [{"shares": {"chat": 1}}, {"at_s": 20, "shares": {"code": 1}}]
    spec = {"mixes": mixes, "changes": "linear", "period_s": 40.0}
    trace = load(tmp_path, spec)
    assert share_of(trace, "chat", 0, 4) == pytest.approx(0.9, abs=0.06)
    assert share_of(trace, "chat", 8, 12) == pytest.approx(0.5, abs=0.09)
    assert share_of(trace, "chat", 18, 22) < 0.12
    assert share_of(trace, "chat", 58, 62) < 0.12
    assert share_of(trace, "chat", 78, 82) > 0.88


def test_arrivals_and_lengths_do_not_depend_on_domains(tmp_path):
    one = load(tmp_path, {"mixes": [{"shares": {"chat": 1}}]})
    none = load(tmp_path, None)
    assert np.array_equal(one.arrival_s, none.arrival_s)
    assert none.domains == ()


@pytest.mark.parametrize(
    ("domains", "wanted"),
    [
        ({"mixes": []}, "mixes"),
        ({"mixes": [{"shares": {"a": 0.0}}]}, "shares must not all be 0"),
        ({"mixes": [{"shares": {"": 0.5, "a": 0.5}}]}, "needs a name"),
        ({"mixes": [TWO[1], {"at_s": 3, "shares": {"a": 1}}]}, "in order of at_s"),
        ({"mixes": [TWO[1]], "period_s": 50.0}, r"the last mix \(at_s = 50\)"),
    ],
)
def test_mixes_that_make_no_sense_are_refused(tmp_path, domains, wanted):
    with pytest.raises(UserError, match=wanted):
        load(tmp_path, domains)


def test_a_closed_loop_has_one_mix(tmp_path):
    loop = {"kind": "closed_loop", "concurrency": 3}
    one = {"mixes": [{"shares": {"chat": 0.5, "code": 0.5}}]}
    assert len(set(load(tmp_path, one, loop, 60).domain.tolist())) == 2
    two = {"mixes": [*one["mixes"], TWO[1]]}
    with pytest.raises(UserError, match="a closed loop has no arrival times that mixes could"):
        load(tmp_path, two, loop, 60)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_identifiers_of_a_table_are_kept_and_its_kinds_of_text_take_no_mixes(tmp_path, tiny, name):
    ids = np.array(["a", "b", "c"], dtype=object)
    kinds = {"domains": ("chat",), "domain": np.array([0, -1, 0])}
    write_table(dataclasses.replace(tiny.trace(3), request_ids=ids, **kinds), tmp_path / name)
    spec = validate(WorkloadSpec, {"requests": name}, "test")
    assert load_requests(spec, tmp_path, 1).request_ids.tolist() == ["a", "b", "c"]
    mixes = {"mixes": [{"shares": {"x": 1}}]}
    again = validate(WorkloadSpec, {"requests": name, "domains": mixes}, "test")
    with pytest.raises(UserError, match="have kinds of text of their own"):
        load_requests(again, tmp_path, 1)


@pytest.mark.parametrize("name", ["mixes.csv", "mixes.parquet"])
def test_mixes_of_a_file_are_those_written_out(tmp_path, name):
    table = pd.DataFrame({"at_s": [0, 50], "chat": [0.75, None], "code": [0.25, 1.0]})
    if name.endswith(".csv"):
        table.to_csv(tmp_path / name, index=False)
    else:
        table.to_parquet(tmp_path / name, index=False)
    written = [{"shares": {"chat": 0.75, "code": 0.25}}, {"at_s": 50, "shares": {"code": 1}}]
    for changes in ("step", "linear"):
        found, known = (
            load(tmp_path, {"mixes": mixes, "changes": changes}) for mixes in (name, written)
        )
        assert found.domains == known.domains
        assert np.array_equal(found.domain, known.domain)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, "mixes.csv"),
        ("", "found are none"),
        ("at_s\n0\n", "found are at_s"),
        ("at_s,a,a\n0,1,1\n", "found are at_s, a, a"),
        ("at_s,a\n0,x\n", "row 1: a must be a number, not 'x'"),
        ("at_s,a\n0,1\n5\n", "row 2: has 1 values, for 2 columns"),
    ],
)
def test_a_file_of_mixes_that_makes_no_sense_is_refused(tmp_path, text, wanted):
    if text is not None:
        (tmp_path / "mixes.csv").write_text(text)
    with pytest.raises(UserError, match=wanted) as refused:
        load(tmp_path, {"mixes": "mixes.csv"}, num_requests=5)
    assert "mixes.csv" in str(refused.value)
