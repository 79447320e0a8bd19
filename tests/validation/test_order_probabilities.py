"""How often the deployment that is said to be faster with some probability is: measured serving
points, in pairs of the same load.

Points: NVIDIA aiconfigurator-core 0.12.0, Apache-2.0; most are in the fits, so errors are smaller
than on models that are new. ``python tests/validation/test_order_probabilities.py TABLE`` prints
what all of a table's points say.
"""

import itertools
import sys
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from simulator.lab.validation import OK
from simulator.lab.validation.serving import answer
from simulator.lab.validation.serving.deployments import plan_of, table_key
from simulator.lab.validation.serving.points import read_point
from simulator.planner.analytical import Curve
from simulator.planner.calibration_error import CalibrationError, compare_speeds, read_error
from simulator.planner.crossover import make_fixed_traffic
from tests.shared import shared_file

GPU = "h200_sxm"
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0 + 1e-9)


class Measured(NamedTuple):
    """One point: seconds a token, measured and predicted."""

    load: tuple
    model: str
    where: tuple
    tpot_s: float
    predicted_s: float
    error: CalibrationError


def points_of(table, workers=None):
    """Points without pools for prompts whose deployments are fully said and inside what was
    measured.
    """
    table = table[table["mode"] == "agg"].reset_index(drop=True)
    answers = answer(table, workers=workers)
    found, curves = [], {}
    for row, predicted_s, status in zip(
        table.to_dict("records"), answers.seconds[:, 1], answers.status, strict=True
    ):
        if status != OK:
            continue
        point = read_point(row)
        plan = plan_of(table_key(point))
        key = (table_key(point), point.num_input, point.num_output)
        if key not in curves:
            curves[key] = Curve(plan, make_fixed_traffic(point.num_input, point.num_output), 2048)
        sequences = np.array([max(1.0, point.concurrency / plan.placement.layout.attention_dp)])
        terms = np.array(
            curves[key].terms(sequences, sequences / point.num_output, float(point.num_input))
        )[:, 0]
        load = (point.num_input, point.num_output, point.concurrency)
        where = (plan.spec.engine, plan.placement.accelerator.name)
        found.append(
            Measured(
                load,
                plan.placement.model.name,
                where,
                row["silicon_tpot_ms"] / 1e3,
                predicted_s,
                read_error(plan, terms, is_pooled=False),
            )
        )
    return found


def pairs_of(points):
    """Every two of the same load: kinds, probability that the likelier one is faster, whether it
    is, and whether the band holds.
    """
    found = []
    by_load = itertools.groupby(
        sorted(points, key=lambda point: (point.load, point.where, point.model)),
        key=lambda point: point.load,
    )
    for _, group in by_load:
        for one, other in itertools.combinations(group, 2):
            if one.tpot_s == other.tpot_s:
                continue
            # Tokens a second of the one over the other's.
            sure = compare_speeds(other.predicted_s / one.predicted_s, one.error, other.error)
            measured = other.tpot_s / one.tpot_s
            stated, is_so = max(sure.above, 1 - sure.above), (measured > 1) == (sure.above > 0.5)
            kind = "one model" if one.model == other.model else "two models"
            place = "one engine and GPU" if one.where == other.where else "other engines or GPUs"
            found.append((f"{kind}, {place}", stated, is_so, sure.low <= measured <= sure.high))
    return pd.DataFrame(found, columns=["kind", "stated", "true", "held"])


def reliability(pairs):
    """Stated against true, by how sure."""
    grouped = pairs.assign(level=pd.cut(pairs["stated"], list(LEVELS), right=False)).groupby(
        "level", observed=True
    )
    return grouped.agg(pairs=("true", "size"), stated=("stated", "mean"), true=("true", "mean"))


def brier(pairs):
    """Mean square of what was stated less what is: 0.25 says nothing."""
    return float(((pairs["stated"] - pairs["true"]) ** 2).mean())


@pytest.fixture(scope="module")
def pairs():
    table = pd.read_csv(shared_file("measurements/serving_points.csv.gz"))
    few = (table["system"] == GPU) & (table["isl"] == 1024) & (table["osl"] == 1024)
    return pairs_of(points_of(table[few], workers=1))


@pytest.mark.measured
def test_who_is_said_to_be_faster_mostly_is(pairs):
    assert len(pairs) > 200
    assert brier(pairs) < 0.08
    sure = pairs[pairs["stated"] > 0.95]
    assert sure["true"].mean() > 0.9
    rising = [
        pairs[pairs["stated"].between(low, high)]["true"].mean()
        for low, high in ((0.5, 0.8), (0.8, 0.95), (0.95, 1.0))
    ]
    assert rising == sorted(rising)


@pytest.mark.measured
def test_bands_of_ratios_hold_what_they_say(pairs):
    """Of the splits of one model on one engine and GPU, which share most of their errors."""
    alike = pairs[pairs["kind"] == "one model, one engine and GPU"]
    assert len(alike) > 50
    assert 0.65 < alike["held"].mean() < 0.97


if __name__ == "__main__":
    everything = pairs_of(points_of(pd.read_csv(sys.argv[1])))
    for name, part in [("all", everything), *everything.groupby("kind")]:
        held = f"{brier(part):.3f}, 80 % band of the ratio holds {part['held'].mean():.1%}"
        sys.stdout.write(
            f"{name}: {len(part)} pairs, Brier score {held}\n"
            f"{reliability(part).round(3).to_string()}\n"
        )
