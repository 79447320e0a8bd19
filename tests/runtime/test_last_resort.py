"""An interrupt ends a program whose main thread waits in compiled code, where no handler of
Python's is called.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.runtime.processes import PATIENCE_S, common_folder, descendants, left_of, running

STUCK = """
import ctypes, subprocess, sys
import ray
from simulator.runtime import ray_files
from simulator.runtime.nodes import connect

def rest():
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], **quiet)

def start_and_never_return(**_):
    rest()
    print("stuck", flush=True)
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    libc.pthread_mutex_init(mutex, None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)

ray_files._LEAVES_S = 1.0
ray.init = start_and_never_return
rest()
with connect():
    pass
"""
ENDS = """
import signal, socket, threading
from simulator.runtime import ray_files
from simulator.runtime.ray_files import end_though_stuck

ray_files._LEAVES_S = 1.0
heard, told = socket.socketpair()
told.setblocking(False)
signal.set_wakeup_fd(told.fileno())
try:
    with end_though_stuck(None):
        signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted", list(heard.recv(9)), signal.set_wakeup_fd(-1) == told.fileno())
threading.Event().wait(2.0)
print("goes on", threading.active_count())
"""


def run_script(script, **more):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs tests in the background ignores Ctrl-C, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **more,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_hanging_start_is_ended_with_all_that_it_left(number):
    with common_folder() as common:
        process = run_script(STUCK)
        check_end(process, number)
        assert not list(common.parent.glob("moesim-*"))


def check_end(process, number):
    assert process.stdout.readline() == "stuck\n"
    started = descendants(process.pid)
    assert len(started) == 2
    process.send_signal(number)
    time.sleep(0.3)
    process.send_signal(number)  # an impatient user does not put the end off
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert err == "stopped; nothing was written (Ray did not answer, and was killed)\n"
    (earlier,) = {pid for pid, *_ in running()} & {pid for pid, _ in started}
    os.kill(earlier, signal.SIGKILL)  # the caller's own, from before, is left alone
    assert left_of(started) == set()


def test_whoever_ends_in_time_goes_on_and_an_event_loop_still_hears_of_signals():
    out, err = run_script(ENDS).communicate(timeout=PATIENCE_S)
    assert out == f"interrupted [{int(signal.SIGINT)}] True\ngoes on 1\n", err
