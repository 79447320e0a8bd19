"""One function over many items: in order, with what it raises, and nothing left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulator.errors import UserError
from simulator.sweep import sweep


def squared(number):
    return number**2


def refuses_three(number):
    if number == 3:
        raise UserError("three is not a number for us")
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_items_order_and_progress_reaches_the_end(workers):
    seen = []
    assert sweep(squared, range(20), seen.append, workers) == [number**2 for number in range(20)]
    assert seen == sorted(seen)
    assert seen[-1] == 20
    assert sweep(squared, [], workers=workers) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_function_raises_is_raised_here(workers):
    with pytest.raises(UserError, match=r"^three is not a number for us$"):
        sweep(refuses_three, range(6), workers=workers)
    assert sweep(squared, [2, 3], workers=workers) == [4, 9]


def test_one_core_or_no_ray_starts_nothing(monkeypatch):
    monkeypatch.setattr("simulator.sweep._on_ray", lambda *_: pytest.fail("Ray was started"))
    monkeypatch.setattr("simulator.sweep.num_cores", lambda: 1)
    assert sweep(squared, [1, 2]) == [1, 4]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert sweep(squared, [1, 2], workers=2) == [1, 4]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by their environment in /proc")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_raylet(tmp_path, stop):
    program = tmp_path / "program.py"
    program.write_text(
        "import time\nfrom simulator.sweep import sweep\nsweep(time.sleep, [0.01] + [60.0] * 8, lambda done: print(done, flush=True), 2)\n"
    )
    mark = f"moesim-test-{os.getpid()}-{stop}"
    running = subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MOESIM_MARK": mark},
        start_new_session=True,
    )
    assert running.stdout.readline().strip() == "1"
    running.send_signal(stop)
    _, said = running.communicate(timeout=60)
    assert running.returncode != 0
    assert "KeyboardInterrupt" in said
    deadline = time.monotonic() + 20
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert marked(mark) == []


def marked(mark):
    """Living processes that were started with the mark in their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as environment, open(f"/proc/{pid}/stat") as state:
                if mark.encode() in environment.read() and state.read().rpartition(")")[2].split()[0] != "Z":
                    found.append(int(pid))
        except OSError:
            continue
    return found
