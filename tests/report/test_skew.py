"""What is drawn of a curve above chance."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.report.marks import add_imbalance
from tests.cases import cases

UNIFORM = {"mean": 1.5, "low": 1.2, "high": 1.9}
LINE = {"color": "#0077BB", "dash": "solid", "width": 2}


def drawn(ratios):
    plot = go.Figure()
    add_imbalance(plot, pd.Series(ratios), UNIFORM, "a", LINE)
    return plot.data


@cases(40)
@given(st.lists(st.floats(1.0, 8.0), min_size=1, max_size=12))
def test_the_shade_reaches_from_chance_to_the_mean_of_the_layers_above_it(ratios):
    shade, chance, curve = drawn(ratios)
    assert set(chance.y) == {UNIFORM["mean"]}
    assert sorted(set(curve.y)) == sorted(set(ratios))
    half = len(shade.y) // 2
    assert set(shade.y[:half]) == {UNIFORM["mean"]}
    assert shade.y[half:] == pytest.approx(max(np.mean(ratios), UNIFORM["mean"]))
    assert [trace.name for trace in (shade, chance, curve)] == ["a"] * 3
    assert [trace.showlegend for trace in (shade, chance, curve)] == [False, False, None]


def test_a_single_layer_is_seen():
    shade, _, curve = drawn([2.0])
    assert np.ptp(curve.x) > 0.5
    assert np.ptp(shade.x) > 0.5
