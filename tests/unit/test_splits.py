"""Pairs of spread and split experts in tables of kernels: what is a pair, and what counts as
right.
"""

import numpy as np
import pandas as pd
import pytest

from simulator.base.data import shipped_folder
from simulator.lab.validation import Answers, Measure
from simulator.lab.validation.splits import split_orders
from simulator.lab.validation.suites import list_rivals

COLUMNS = ("gpu", "moe_tp_size", "moe_ep_size", "num_tokens")
MEASURE = Measure("kernel", "latency_ms", 1e-3)


def orders(rows, predicted_ms):
    table = pd.DataFrame(rows, columns=[*COLUMNS, "latency_ms"])
    seconds = np.array(predicted_ms, dtype=float)[:, None] / 1e3
    answers = Answers(seconds, seconds, seconds, ["ok"] * len(table), [""] * len(table))
    return [
        (order["pairs"], order["right"])
        for order in split_orders("moe", table, COLUMNS, MEASURE, answers)
    ]


SPLIT, SPREAD = ("h100", 4, 1, 8, 1.0), ("h100", 1, 4, 8, 2.0)
CLOSE = [("h100", 4, 1, 16, 1.0), ("h100", 1, 4, 16, 1.05)]


@pytest.mark.parametrize(
    ("rows", "predicted_ms", "found"),
    [
        ([SPLIT, SPREAD, *CLOSE], [1.0, 1.2, 1.0, 0.9], [(1, 1), (0, 0)]),
        ([SPLIT, SPREAD, *CLOSE], [1.0, 0.8, 1.0, 0.9], [(1, 0), (0, 0)]),
        ([SPLIT, SPREAD, ("h100", 1, 4, 8, 0.5)], [1.0, 0.8, 0.8], [(1, 1), (0, 0)]),
        ([SPLIT, ("b200", 1, 4, 8, 2.0)], [1.0, 2.0], []),
        ([SPLIT, ("h100", 1, 8, 8, 2.0)], [1.0, 2.0], []),
        ([SPLIT, ("h100", 1, 4, 16, 2.0)], [1.0, 2.0], []),
        ([SPLIT, ("h100", 2, 2, 8, 2.0)], [1.0, 2.0], []),
        ([SPLIT, SPREAD], [1.0, np.nan], []),
        ([SPLIT, ("h100", 1, 4, 8, "?")], [1.0, 2.0], []),
    ],
)
def test_the_faster_side_of_a_pair_is_counted_where_they_differ(rows, predicted_ms, found):
    assert orders(rows, predicted_ms) == found


@pytest.mark.parametrize(("power", "right"), [(0.3, 1), (-0.3, 0)])
def test_what_load_does_is_told_by_all_loads(power, right):
    rows, predicted = [], []
    for tokens in (4, 16, 64):
        rows += [("h100", 4, 1, tokens, 1.0), ("h100", 1, 4, tokens, tokens**0.5)]
        predicted += [1.0, tokens**power]
    assert orders(rows, predicted)[1] == (1, right)


def test_tables_without_splits_have_no_order():
    table, answers = pd.DataFrame({"m": [1], "latency_ms": [1.0]}), Answers.make_unsupported(1, 1)
    assert split_orders("gemm", table, ("m",), MEASURE, answers) == ()


def test_serving_points_are_compared_under_the_same_load():
    points = pd.read_csv(shipped_folder() / "workloads" / "validation" / "serving_pairs.csv").head(
        2
    )
    rivals = list_rivals(pd.concat([points, points, points.assign(isl="?")], ignore_index=True))
    assert rivals[:2] == rivals[2:4]
    assert all(rivals[:2])
    assert rivals[4:] == ["", ""]
