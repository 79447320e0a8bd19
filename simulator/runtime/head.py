"""Check that a Ray cluster's head still answers. Without it Ray's compiled code ends this program
silently after a minute.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

_EVERY_S = 1.0
"""Seconds between two checks, so that a loss is reported long before Ray gives up on the head."""
_TRIES = 2
"""Checks without an answer in a row after which the head counts as lost."""
ANSWER_S = 5.0
"""Seconds after which an address that has not answered has no listener. The operating system
answers for a listener at once, however busy the machine is."""


class Head:
    """Head of a cluster: its address, and the process here that it depends on."""

    def __init__(self, address: str, has_ended: Callable[[], bool] = lambda: False) -> None:
        """Prepare to watch the head.

        Args:
            address: of the server that knows all of the cluster's nodes (``host:port``).
            has_ended: whether a process that this connection depends on has ended.
        """
        self.address, self._has_ended = address, has_ended
        self.lost: str | None = None
        """Description of the loss, as a sentence without its end; ``None`` while nothing is
        lost."""

    def look(self) -> None:
        """Check now that the head is still there."""
        if self._has_ended():
            self.lost = "its raylet, which this process was connected to, has ended"
        elif not any(answers(self.address) for _ in range(_TRIES)):
            self.lost = f"its head at {self.address} does not answer any more"

    @contextlib.contextmanager
    def watch_until_lost(self) -> Iterator[None]:
        """Check regularly within this context; in the main thread a loss interrupts it, as SIGTERM
        does.
        """
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
    """Whether a server listens at ``host:port``."""
    try:
        knock(address)
    except OSError:
        return False
    return True


def knock(address: str) -> None:
    """Connect to ``host:port``, and disconnect again.

    Raises:
        OSError: if no server listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
