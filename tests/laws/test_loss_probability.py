"""Shares of the time in which no more machines are out of work than may be lost."""

import numpy as np
import pytest

from simulator.config.capacity import Spare
from simulator.config.failures import FailureRates
from simulator.planner.loss_probability import share_of_time_within


@pytest.mark.parametrize("mtbf", [20.0, 8_100.0])
def test_spares_are_enough_for_as_long_as_machines_drawn_at_that_rate_are_there(mtbf):
    rates = FailureRates(mtbf_gpu_hours_low=mtbf, mtbf_gpu_hours_high=mtbf, repair_hours=1.0)
    out = np.random.default_rng(1).random((20_000, 8, 8)) < 1 / (mtbf + 1)
    for spare, lost in (
        (Spare(), out.sum(axis=(1, 2))),
        (Spare(gpus=1), out.sum(axis=(1, 2))),
        (Spare(nodes=1), out.any(axis=2).sum(axis=1)),
        (Spare(nodes=2), out.any(axis=2).sum(axis=1)),
    ):
        found = share_of_time_within(64, 8, spare, rates)
        drawn = (lost <= spare.gpus + spare.nodes).mean()
        assert found == pytest.approx((drawn, drawn), abs=0.012)


def test_failures_that_take_whole_nodes_leave_no_single_gpu_out():
    """As many of the failures, each of a whole node: one spare GPU helps nothing, and a spare node
    as often as all others work.
    """
    rates = FailureRates(mtbf_gpu_hours_low=800.0, mtbf_gpu_hours_high=800.0, node_share=1.0)
    nothing, gpu, node = (
        share_of_time_within(64, 8, spare, rates)[0]
        for spare in (Spare(), Spare(gpus=1), Spare(nodes=1))
    )
    out = np.random.default_rng(1).random((200_000, 8)) < 8 / 808
    assert nothing == gpu == pytest.approx((out.sum(axis=1) == 0).mean(), abs=0.003)
    assert node == pytest.approx((out.sum(axis=1) <= 1).mean(), abs=0.001)
