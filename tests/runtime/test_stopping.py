"""Commands that are told to stop leave nothing behind; of those that are killed, the next command
takes what is left.
"""

import contextlib
import os
import signal
import time

import pytest

from simulator.base.partial import hold_folder
from tests.runtime.processes import (
    PATIENCE_S,
    common_folder,
    descendants,
    left_of,
    start_moesim,
)

pytestmark = pytest.mark.xdist_group("ray-apart")

CALIBRATE = ("calibrate", "cpu", "--out", "here.toml", "--ranks", "1")


def wait_for(condition, process):
    until_s = time.monotonic() + PATIENCE_S
    while not condition() and process.poll() is None and time.monotonic() < until_s:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]


def agents(process):
    return {(pid, args) for pid, args in descendants(process.pid) if "Agent" in args}


@pytest.mark.parametrize(
    "stop", [pytest.param(signal.SIGTERM, marks=pytest.mark.soak), signal.SIGKILL]
)
def test_what_calibrating_leaves_is_gone_after_the_next_command(tmp_path, stop):
    with common_folder() as common, hold_folder("moesim-", common.parent) as living:
        process = start_moesim(tmp_path, *CALIBRATE)
        wait_for(lambda: len(agents(process)) == 2, process)
        started = descendants(process.pid)
        process.send_signal(stop)
        process.communicate(timeout=PATIENCE_S)
        if stop == signal.SIGKILL:
            assert len(list(common.parent.glob("moesim-*"))) == 2
            start_moesim(tmp_path, "list").communicate(timeout=PATIENCE_S)
        assert left_of(started) == set()
        assert list(common.parent.glob("moesim-*")) == [living]
        assert living.is_dir()


def test_a_signal_to_the_whole_group_ends_as_one_to_the_program(tmp_path):
    """As ``timeout`` sends it: one that ended Ray's processes first left the program waiting for
    them, half of the times up to half a minute.
    """
    process = start_moesim(tmp_path, *CALIBRATE, start_new_session=True)
    wait_for(lambda: len(agents(process)) == 2, process)
    started = descendants(process.pid)
    groups = set()
    for pid, _ in started:
        with contextlib.suppress(ProcessLookupError):  # one that has ended meanwhile
            groups.add(os.getpgid(pid))
    assert groups
    assert process.pid not in groups
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err.splitlines()[-1]) == (130, "stopped; nothing was written")
    assert left_of(started) == set()
