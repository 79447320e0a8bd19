"""Published speeds and perplexities of pruned models: the shipped file has the rows of
``sparsity.csv``, and speeds that no calibration was fitted on are predicted.
"""

import csv

import numpy as np
import pytest

from simulator.commands.sparsity import compare_sparsity
from simulator.config.sparsity import load_published
from tests.shared import shared_file

BAND = (0.75, 1.1)
"""Predicted speed over the published one, 2:4 on A100: the calibration is of cuSPARSELt 0.8 on the
PCIe card, the figures are of CUTLASS and do not say which card."""


@pytest.fixture(scope="module")
def rows():
    with shared_file("measurements/published/sparsity.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def results():
    return compare_sparsity((14336, 4096), "bf16", ["a100-sxm"], [16])


def test_speeds_are_those_of_the_source(rows):
    speeds = load_published().speeds
    by_hand = {
        ("DeepSparse, CPU", share): speed
        for share, speed in ((0.4, 1.57), (0.5, 1.82), (0.6, 2.16))
    }
    for row in rows:
        if row["case"].startswith("DeepSparse"):
            share = float(row["case"].split("%")[0].split()[-1]) / 100
            assert by_hand.pop(("DeepSparse, CPU", share)) == float(row["value"])
    assert not by_hand
    found = sorted(one.speed_up for one in speeds if one.rests == "compared")
    wanted = [float(row["value"]) for row in rows if row["case"].startswith("2:4 CUTLASS")]
    assert found == sorted(wanted)
    assert len(found) == 3
    (sputnik,) = (row for row in rows if row["case"].startswith("Sputnik break-even"))
    (shown,) = (one for one in speeds if one.title.startswith("Sputnik"))
    assert (shown.sparsity, shown.speed_up) == (float(sputnik["value"]) / 100, 1.0)


def test_perplexities_are_those_of_the_source(rows):
    wanted = sorted(
        float(row["value"])
        for row in rows
        if " ppl " in row["case"] and not row["case"].endswith("dense")
    )
    losses = load_published().losses
    assert sorted(one.pruned for one in losses) == wanted
    assert len(wanted) == 22
    whole = {float(row["value"]) for row in rows if row["case"].endswith("ppl dense")}
    assert {one.whole for one in losses} == whole
    assert all(one.pruned > one.whole for one in losses)


def test_accuracies_fall_with_the_experts_left():
    found = sorted(load_published().reductions, key=lambda one: -one.experts_left)
    assert len(found) == 2
    assert all(one.experts_left < one.experts for one in found)
    assert [one.points for one in found] == sorted(one.points for one in found)


def test_2_4_products_of_opt_175b_on_a100_are_within_their_band(results):
    compared = [point for point in results.published if point.rests == "compared"]
    ratios = np.array([point.predicted / point.speed_up for point in compared])
    assert len(ratios) == 3
    assert np.all((ratios > BAND[0]) & (ratios < BAND[1])), ratios
    assert np.median(np.abs(ratios - 1)) < 0.2
    inside = [point.low <= point.speed_up <= point.high for point in compared]
    assert sum(inside) >= 2


def test_what_was_fitted_or_has_no_calibration_is_not_predicted(results):
    for point in results.published:
        assert (point.predicted is not None) == (point.rests == "compared")
    titles = {point.title for point in results.published if point.rests == "shown"}
    assert titles == {"DeepSparse, CPU", "Sputnik, V100"}
