"""Whether a Ray cluster's head still answers. Without it Ray's compiled code ends this program by
itself, in silence, after a minute.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

_EVERY_S = 1.0
"""Seconds between two looks: the head is told to be lost long before Ray gives up on it."""
_TRIES = 2
"""Looks in a row in which nobody answers, after which the head counts as lost."""
ANSWER_S = 5.0
"""Seconds after which an address that has not answered is nobody's. Who listens there answers at
once, however busy the machine is: the system does it."""


class Head:
    """What a cluster hangs on: its address, and what this process started of it."""

    def __init__(self, address: str, has_ended: Callable[[], bool] = lambda: False) -> None:
        """Nothing is watched yet.

        Args:
            address: of the server that knows all of its nodes (``host:port``).
            has_ended: whether a process has, without which nothing goes on here.
        """
        self.address, self._has_ended = address, has_ended
        self.lost: str | None = None
        """What is lost, as a sentence without its end; ``None`` while nothing is."""

    def look(self) -> None:
        """See whether it is still there, now."""
        if self._has_ended():
            self.lost = "its raylet, which this process was connected to, has ended"
        elif not any(answers(self.address) for _ in range(_TRIES)):
            self.lost = f"its head at {self.address} does not answer any more"

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look now and then; in the main thread a loss interrupts the context, as SIGTERM does."""
        is_main = threading.current_thread() is threading.main_thread()
        left = threading.Event()

        def watch() -> None:
            while not left.wait(_EVERY_S):
                self.look()
                if self.lost is not None:
                    if is_main and not left.is_set():
                        _thread.interrupt_main(signal.SIGTERM)
                    return

        watcher = threading.Thread(target=watch, name="watches Ray", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            left.set()


def answers(address: str) -> bool:
    """Whether anybody listens at ``host:port``."""
    try:
        knock(address)
    except OSError:
        return False
    return True


def knock(address: str) -> None:
    """Connect to ``host:port``, and go away again.

    Raises:
        OSError: if nobody listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
