"""What other programs take of the cores is told apart from what the ranks take themselves."""

import math
import subprocess
import sys
import time

import pytest

from simulator.runtime.load import LoadMeter, Use, others_share, read_use
from simulator.runtime.shard import Shard


def use(pid, busy_s, own_s, now_s, machine="here", cores=2):
    return Use(machine, pid, cores, busy_s, own_s, now_s)


def test_a_share_is_of_the_cores_and_of_the_time_and_ours_is_left_out():
    before = [use(1, 100.0, 5.0, 0.0), use(2, 100.0, 7.0, 0.0)]
    after = [use(1, 118.0, 9.0, 10.0), use(2, 118.0, 11.0, 10.0)]
    assert others_share(before, after) == pytest.approx((18 - 8) / (2 * 10))
    assert others_share(before, before) != others_share(before, before)  # no time: not a number


def test_a_rank_that_was_replaced_has_used_all_that_it_has_since():
    before = [use(1, 100.0, 5.0, 0.0), use(2, 100.0, 70.0, 0.0)]
    after = [use(1, 110.0, 9.0, 10.0), use(3, 110.0, 2.0, 10.0)]
    assert others_share(before, after) == pytest.approx((10 - 6) / 20)


def test_of_several_machines_the_busiest_counts():
    before = [use(1, 0.0, 0.0, 0.0), use(1, 0.0, 0.0, 50.0, "there", cores=4)]
    after = [use(1, 2.0, 2.0, 10.0), use(1, 36.0, 4.0, 60.0, "there", cores=4)]
    assert others_share(before, after) == pytest.approx(32 / 40)


class Here:
    """A backend whose only rank is this process."""

    def apply(self, function):
        return [function(Shard(0, 1))]


def test_a_program_beside_is_seen_and_this_process_is_not():
    def measured_s():
        meter, until_s = LoadMeter(Here()), time.monotonic() + 1.0
        while time.monotonic() < until_s:
            pass
        return meter.others_share() * read_use(Shard(0, 1)).num_cores

    spin = [sys.executable, "-c", "while True: pass"]
    alone = measured_s()
    others = [subprocess.Popen(spin) for _ in range(read_use(Shard(0, 1)).num_cores)]
    try:
        beside = measured_s()
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert math.isfinite(alone)
    assert beside > 0.2  # at least so much of a core, however many others there were before
    assert beside >= alone - 1.0
