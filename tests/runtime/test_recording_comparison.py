"""Comparisons of a mixture of experts with its dense twins over seeds, and the words on them."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from simulator.runtime.recording.comparison import (
    SAME_TIME,
    SAME_TOKENS,
    compare_models,
    headline,
)
from simulator.runtime.recording.models import MOE, SAME_ACTIVE, SAME_TOTAL, Shape, three_models


def curves(ends):
    """Straight curves of 100 s from 4.0 to the given ends, by run, model and seed."""
    return pd.DataFrame(
        [
            {
                "run": run,
                "seed": seed,
                "model": model,
                "step": step,
                "tokens": 10 * step,
                "seconds": 10.0 * step,
                "train_loss": end,
                "held_out_loss": 4.0 + (end - 4.0) * step / 10,
            }
            for (run, model), by_seed in ends.items()
            for seed, end in enumerate(by_seed)
            for step in range(11)
        ]
    )


def compare(ends):
    losses = {
        run: [
            {model: np.array([by_seed[seed]]) for (of, model), by_seed in ends.items() if of == run}
            for seed in range(len(ends[SAME_TOKENS, MOE]))
        ]
        for run in (SAME_TOKENS, SAME_TIME)
    }
    models = three_models(Shape(), "m")
    step_s = dict.fromkeys(models, np.array([0.01, 0.02, 0.09]))
    rates = dict.fromkeys(models, 1e-3)
    return compare_models(models, rates, curves(ends), losses, step_s, {MOE: 0.01})


def test_differences_are_taken_seed_by_seed():
    """Seeds that shift all models alike leave the band of a difference narrow."""
    moe = [2.0, 2.4, 2.8]
    above = [0.09, 0.10, 0.11]
    worse = [loss + more for loss, more in zip(moe, above, strict=True)]
    better = [loss - more for loss, more in zip(moe, above, strict=True)]
    ends = {(SAME_TOKENS, MOE): moe}
    for run in (SAME_TOKENS, SAME_TIME):
        ends |= {(run, SAME_TOTAL): worse, (run, SAME_ACTIVE): better}
    own, total, active = compare(ends)
    assert (own.step_s, own.simulated_step_s, total.simulated_step_s) == (0.02, 0.01, None)
    assert total.above_moe.loss == pytest.approx(0.1)
    half = stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    assert total.above_moe.half_width == pytest.approx(half)
    assert total.above_moe.is_clear
    assert (total.num_reached, total.time_to_moe_loss) == (0, None)
    assert own.time_to_moe_loss.ratio == pytest.approx(1.0)
    ratios = [(4.0 - loss) / (4.0 - end) for loss, end in zip(moe, better, strict=True)]
    assert active.num_reached == 3
    assert active.time_to_moe_loss.ratio == pytest.approx(stats.gmean(ratios))
    assert active.time_to_moe_loss.low < min(ratios)
    assert active.time_to_moe_loss.high > max(ratios)
    assert headline([own, total, active]).endswith("same active size learned fastest.")


def test_what_one_seed_did_alone_is_no_clear_difference():
    ends = {(SAME_TOKENS, MOE): [2.0, 2.0, 2.0]}
    for run in (SAME_TOKENS, SAME_TIME):
        ends |= {(run, SAME_TOTAL): [2.3, 2.3, 2.4], (run, SAME_ACTIVE): [1.7, 2.01, 2.01]}
    rows = compare(ends)
    assert rows[1].above_moe.is_clear
    assert not rows[2].above_moe.is_clear
    assert rows[2].num_reached == 1
    assert "no clear difference" in headline(rows)
