"""The table against the ranks on the very same batches, and on traces whose batches go their own
ways.
"""

import numpy as np
import pytest

from simulator.engine import timeline
from simulator.engine.by_ranks import ByRanks
from simulator.engine.step_log import LOG_COLUMNS
from simulator.engine.table import start_table
from simulator.engine.timeline import run_plan
from simulator.results.metrics import latencies
from simulator.step.mixes import single_mix
from simulator.step.prices import Prices
from tests.tables import price_filling

pytestmark = pytest.mark.shipped_draws


@pytest.mark.parametrize(
    ("model", "split", "longest_input"),
    [
        ("mixtral-8x7b", {"attention_dp": 8, "ep": 8, "cluster": "h100-sxm-8"}, 1500),
        ("moe", {"attention_dp": 4, "ep": 4}, 600),
        ("latent-moe", {"attention_dp": 16, "ep": 16}, 600),
        ("state-moe", {"attention_dp": 2, "ep": 2}, 600),
    ],
)
def test_every_batch_of_a_rank_run_costs_the_same_by_the_table(
    tiny, monkeypatch, model, split, longest_input
):
    plan = tiny.plan(model, **split)
    prices, tables, asked = [], [], []
    read_batches = timeline.read_batches

    def price_by_table(requests, ranks):
        row = np.zeros(len(LOG_COLUMNS))
        asked.append(price_filling(*tables[0], requests, ranks, row))
        return read_batches(requests, ranks)

    class Both(ByRanks):
        """Runs the step by ranks, after the table was asked what it would take."""

        def __init__(self, *args):
            super().__init__(*args)
            own = self.pool.prices
            tables.append((start_table(single_mix(own)), own, "steps"))

        def take_step(self, env, replica, number, batches, row, *rest):
            table_s = asked.pop()
            taken = yield from super().take_step(env, replica, number, batches, row, *rest)
            prices.append((table_s, row[1]))
            return taken

    monkeypatch.setattr(timeline, "ByRanks", Both)
    monkeypatch.setattr(timeline, "read_batches", price_by_table)
    run_plan(
        plan,
        tiny.trace(50, rate_per_s=60.0, longest_input=longest_input, longest_output=16),
        "rank",
    )
    by_table, by_ranks = np.array(prices).T
    assert by_table.sum() == pytest.approx(by_ranks.sum(), rel=0.02)
    assert np.median(np.abs(by_table / by_ranks - 1)) < 0.02


@pytest.mark.slow
def test_a_shipped_model_over_several_traces(tiny):
    """One request that just misses a step moves a short trace's latencies by some per cent either
    way, so six are averaged.

    Each has choices of experts and a table of its own.
    """
    ratios = []
    for seed in range(1, 7):
        plan = tiny.plan(
            "mixtral-8x7b",
            attention_dp=8,
            ep=8,
            cluster="h100-sxm-8",
            weight_dtype="fp8",
            seed=seed,
        )
        trace = tiny.trace(50, rate_per_s=20.0, longest_input=1500, longest_output=16, seed=seed)
        measured = []
        for fidelity in ("step", "rank"):
            record = run_plan(plan, trace, fidelity)
            latency = latencies(record.requests)
            busy_s = record.steps["duration_s"].sum()
            measured.append(
                [
                    busy_s,
                    latency["ttft_s"].mean(),
                    latency["tpot_s"].mean(),
                    latency["e2e_s"].quantile(0.9),
                ]
            )
        ratios.append(np.divide(*measured))
    assert np.mean(ratios, axis=0) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("sequences", [64, 512, 513, 2048])
def test_the_engines_own_time_grows_no_faster_than_measured_beyond_what_was_measured(
    tiny, sequences
):
    prices = Prices(tiny.plan("dense").placement, 4096)
    engine = prices.placement.calibration.engine
    one_s, more_s = prices.overheads_s(np.array([sequences, sequences + 1.0]), np.zeros(2))
    grown_s = one_s - engine.step_s
    assert grown_s <= sequences * engine.sequence_s * (1 + 1e-12)
    assert more_s > one_s
    if sequences > 512:
        most_s = 512 * engine.sequence_s + (sequences - 512) * 2e-6
        assert grown_s == pytest.approx(most_s, rel=1e-12)
