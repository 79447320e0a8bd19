"""Watchdog that ends the program after an interrupt even while Ray's compiled code waits, where
Python's own handlers never run.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from simulator.base.errors import INTERRUPTED
from simulator.runtime.orphans import Process, find_started_by, kill_left
from simulator.runtime.ray_files import remove

_ENDS_S = 30.0
"""Seconds after which an interrupted program has ended by itself, also on a machine with several
times more to do than it has cores."""
_STOPS = bytes([signal.SIGINT, signal.SIGTERM])
"""Signals that interrupt the program."""
_SAID = "stopped; nothing was written (Ray did not answer, and was killed)\n"


@contextlib.contextmanager
def end_though_stuck(folder: Path | None) -> Iterator[None]:
    """Leave the context within :data:`_ENDS_S` seconds after SIGINT or SIGTERM; otherwise kill what
    was started within, remove the folder, and end the process with status 130.

    Python runs a handler only between two of its own instructions. A thread of its own hears of
    every signal at once, from a socket that the C handler writes into. Only the main thread can ask
    for that; in any other the context does nothing.

    Args:
        folder: folder that Ray writes to; ``None`` where a cluster of the user's does the work.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = socket.socketpair()
    told.setblocking(False)
    others = find_started_by([os.getpid()])
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        until_s = math.inf
        try:
            while said := heard.recv(1):
                if before >= 0:  # an event loop's, which waits for its signals there
                    with contextlib.suppress(OSError):
                        os.write(before, said)
                if said in _STOPS:
                    until_s = min(until_s, time.monotonic() + _ENDS_S)
                if until_s < math.inf:
                    heard.settimeout(max(until_s - time.monotonic(), 0.001))
        except TimeoutError:
            _end(find_started_by([os.getpid()]) - others, folder)

    watcher = threading.Thread(target=watch, name="hears signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        told.close()
        watcher.join()
        heard.close()


def _end(processes: set[Process], folder: Path | None) -> None:
    kill_left(processes)
    if folder is not None:
        remove(folder)
    sys.stderr.write(_SAID)
    sys.stderr.flush()
    os._exit(INTERRUPTED)
