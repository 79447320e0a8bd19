"""Speeds of pruned layers that are measured on this machine, kept and read back."""

import pytest

from simulator.calibration.host import sparsity
from simulator.commands.sparsity import compare_sparsity, measure_here
from simulator.report.sparsity_page import render
from simulator.results.provenance import Provenance
from simulator.results.sparsity import SparsityFolder


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """One timing of each product, and nobody's cache."""
    monkeypatch.setattr(sparsity, "_PASSES", 1)
    monkeypatch.setattr(sparsity, "_TIMED_S", 0.0)
    monkeypatch.setattr("simulator.commands.sparsity.measured_folder", lambda: tmp_path)
    return tmp_path


def test_everything_is_measured_once_and_read_back(quick, monkeypatch):
    told = []
    found = measure_here((64, 48), (1, 5), lambda *words: told.append(words))
    assert told[-1] == ("pruned products", sparsity.NUM_TIMINGS, sparsity.NUM_TIMINGS)
    assert {(one.kernels, one.tokens) for one in found.curves} == {
        (kernels, tokens) for kernels in ("csr", "block", "two_four") for tokens in (1, 5)
    }
    for one in found.curves:
        assert len(one.speed_ups) == (1 if one.kernels == "two_four" else len(sparsity.SPARSITIES))
        assert min(one.speed_ups) > 0
    monkeypatch.setattr(sparsity, "measure_speeds", None)  # which nobody calls again
    assert measure_here((64, 48), (1, 5)) == found
    (file,) = quick.glob("sparsity-*.json")
    shown = compare_sparsity((64, 48), "bf16", ["a100-sxm"], [16], (8, 8, 3), found)
    page = render(SparsityFolder.make(shown, Provenance.begin()))
    assert "Measured on this machine" in page
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(TypeError):  # is measured anew
        measure_here((64, 48), (1, 5))


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ((0.5, 0.8, 0.9), None),
        ((1.5, 1.8, 2.0), 0.4),
        ((0.5, 2.0, 4.0), 0.5),
        ((1.2, 0.5, 2.0), 0.7),
    ],
)
def test_the_break_even_is_where_all_that_follow_are_faster(speeds, expected):
    found = sparsity.interpolate_break_even((0.4, 0.6, 0.8), speeds)
    assert found == (None if expected is None else pytest.approx(expected))
