"""Every figure of an answer lies in its band, and every deployment in an answer has bands."""

import pytest

from simulator.planner.samples import name_band
from tests.laws.tiny_question import answer_table


def figures(value):
    """All figures of an answer that have a band, with it."""
    if isinstance(value, dict):
        for name in value:
            for banded in (name, f"needed_{name}"):
                if f"{banded}_low" in value:
                    yield value[name], value[f"{banded}_low"], value[f"{banded}_high"]
            yield from figures(value[name])
    elif isinstance(value, list):
        for one in value:
            yield from figures(one)


def test_every_band_holds_its_figure():
    banded = [(one, low, high) for one, low, high in figures(answer_table()) if one is not None]
    assert len(banded) > 100
    for one, low, high in banded:
        assert low is None or low <= one * (1 + 1e-12)
        assert high is None or one <= high * (1 + 1e-12)
    assert name_band("gpus", None, (1.0, 2.0)) == {}


def test_every_deployment_has_bands():
    named = {
        "needed_cost_per_hour",
        "cost_per_million_output_tokens",
        "needed_gpus",
        "output_tokens_per_s",
        "ttft_s.p90",
        "tpot_s.p90",
    }
    everywhere = [
        *answer_table()["candidates"],
        *answer_table()["best_of_each_model"].values(),
        answer_table()["moe_vs_dense"]["moe"],
    ]
    for row in everywhere:
        assert row["band"] in ("simulated", "closed form")
        assert all(f"{name}_low" in row for name in named)
    assert sum(row["is_best_probability"] for row in answer_table()["candidates"]) == pytest.approx(
        1.0, abs=0.02
    )
    assert all(
        row["none_cheaper_probability"] >= row["is_best_probability"]
        for row in answer_table()["candidates"]
    )
    for name in ("cost_ratio", "cost_per_hour"):
        assert all(f"{name}_low" in row for row in answer_table()["sensitivity"])
    assert all("goodput_per_s_low" in row and "note" in row for row in answer_table()["losses"])
    for row in answer_table()["spare_nodes"]:
        least = max(row["gpus_lost"], row["nodes_lost"]) + 1
        assert row["gpus_low"] is None or row["gpus_low"] >= least
    assert (
        answer_table()["recommended"]["headroom_low"]
        <= answer_table()["recommended"]["headroom"]
        <= answer_table()["recommended"]["headroom_high"]
    )
    points = answer_table()["pareto"]
    assert {point["kind"] for point in points} == {"closed form", "simulated"}
    assert all(
        point["tokens_per_s_user_low"]
        <= point["tokens_per_s_user"]
        <= point["tokens_per_s_user_high"]
        for point in points
    )


def test_figures_of_tokens_have_the_band_of_the_tokens_that_come_out_of_the_same_cluster():
    for row in answer_table()["candidates"]:
        made = row["output_tokens_per_s_low"], row["output_tokens_per_s_high"]
        assert made[0] <= row["output_tokens_per_s"] <= made[1]
        for end, other, tokens in zip(("low", "high"), ("high", "low"), made, strict=True):
            per_gpu = row[f"output_tokens_per_s_per_gpu_{end}"]
            assert per_gpu * row["gpus"] == pytest.approx(tokens)
            for name in ("cost_per_million_output_tokens", "cost_joules_per_output_token"):
                paid = row[name] * row["output_tokens_per_s"]
                assert row[f"{name}_{other}"] * tokens == pytest.approx(paid)


def test_a_change_of_the_plan_costs_so_many_times_as_much():
    rows = [row for row in answer_table()["sensitivity"] if row["cost_per_hour"] is not None]
    assert rows
    for row in rows:
        assert row["cost_ratio"] == pytest.approx(row["cost_per_hour"] / row["base_cost_per_hour"])


def test_a_cell_of_the_map_has_a_band():
    cells = [row for row in answer_table()["crossover"]["cells"] if row["fits"]]
    assert cells
    for row in cells:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["moe_requests_per_s_gpu"] * row["output"] == pytest.approx(
            row["moe_tokens_per_s_gpu"], rel=1e-3
        )
    same_time = [
        row
        for row in answer_table()["crossover"]["at_same_time"]
        if row["ratio"] is not None and row.get("ratio_low") is not None
    ]
    assert all(row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in same_time)
