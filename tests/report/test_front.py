"""First screens: figures stand where their values are, and the gravest finding comes first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.findings import TABLE, Finding, rank, sentences
from simulator.base.reading import read_toml
from simulator.report.front import Gauge, find_doubt, make_front, make_mark
from simulator.results.answer.parts import Band
from simulator.results.results_folder import make_verdict

VALUES = st.floats(1e-6, 1e6)


def mark(value, band=None):
    return make_mark("A", "background:#000", value, band, "{:g} s".format)


@given(st.lists(VALUES, min_size=1, max_size=4), VALUES, st.floats(1.0, 100.0))
def test_bars_are_as_long_as_their_values_and_never_leave_their_tracks(values, limit, factor):
    gauge = Gauge(
        "A", [mark(value, Band(value / factor, value * factor)) for value in values], limit
    )
    for value, bar in zip(values, gauge.bars(), strict=True):
        assert 0 <= bar.low <= bar.at <= bar.high <= 100
        # Two digits of a percent are kept.
        assert bar.at / 100 * gauge.length == pytest.approx(value, abs=1e-4 * gauge.length)
        assert bar.runs_off == (value * factor > gauge.length)
        assert (bar.at > gauge.limit_at) <= (value > limit)
    assert gauge.length >= max([*values, limit])


def test_a_share_fills_its_track():
    gauge = Gauge("A", [mark(1.0)], most=1.0)
    assert [(bar.at, gauge.is_flat) for bar in gauge.bars()] == [(100.0, False)]


def test_what_tells_nothing_apart_is_left_out():
    alike = Gauge("Cost", [mark(2.0), mark(2.0)])
    other = Gauge("Time", [mark(2.0), mark(3.0)])
    front = make_front("a run", {"headline": "A wins.", "reasons": []}, gauges=[alike, other])
    assert list(front.gauges) == [other]


def test_the_largest_doubt_is_the_widest_band():
    gauges = [
        Gauge("First token, for 90 %", [mark(1.0, Band(0.5, 2.0)), mark(2.0, Band(1.9, 2.1))]),
        Gauge("Others", [mark(1.0)]),
    ]
    found = find_doubt(gauges)
    assert (found.text, found.hint) == ("0.5 to 2 s", "in 80 % of cases: first token of A")
    assert find_doubt(gauges[1:]) is None


def test_findings_are_ranked_by_their_numbers():
    many, few = (Finding("run.refuses", name="A", refused=n, requests=1000) for n in (11, 10))
    plain = Finding("verdict.behind", behind=["A"]), Finding("why.alike", quick_s=1.0, slow_s=1.0)
    assert (many.severity, few.severity) == ("warning", "detail")
    assert rank([few, *plain, many]) == [many, plain[1], few, plain[0]]
    told = make_verdict([Finding("verdict.behind", behind=["B"]), few, many, many])
    assert [one["severity"] for one in told["findings"]] == ["warning", "detail"]
    assert told["reasons"] == [str(many), str(few)]


def test_severities_and_sections_are_of_kinds_that_there_are():
    kinds = set(sentences()) | {name.partition(".")[0] for name in sentences()}
    named = {*read_toml(TABLE)["severity"], *read_toml(TABLE)["section"]}
    assert named <= kinds
