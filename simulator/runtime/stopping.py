"""Interrupts by SIGTERM and Ctrl-C, so that what a command started is stopped.

Python raises ``KeyboardInterrupt`` wherever the main thread happens to be. In a callback that no
code of Python's has called (of a weak reference, a finalizer, compiled code) it is reported and
dropped, and a library may catch whatever is raised, and run on or fail with an error of its own
(as pydantic while it builds a class). Here an interrupt that is dropped comes again, and an error
behind one is one.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

_AGAIN_S = 0.05
"""Seconds until a dropped interrupt comes again, when the callback will have ended."""


_heard: list[int] = []
"""Signals that interrupted this program, by number."""
_open: list[object] = []
"""Contexts that are open, the outermost first, in which a dropped interrupt comes again; another
object stands for it once an interrupt has been told otherwise."""


class _Interrupt(KeyboardInterrupt):
    """Interrupt that comes again if it is dropped before it has left :func:`stop_on_signal`."""

    __module__, __qualname__ = "builtins", "KeyboardInterrupt"  # what a traceback shows
    has_left = False

    def __del__(self) -> None:
        if not self.has_left and _open and signal.getsignal(signal.SIGTERM) is _interrupt:
            _thread.start_new_thread(_repeat, (_open[0],))


def _interrupt(number: int, _: object) -> None:
    _heard.append(number)
    raise _Interrupt


def _repeat(within: object) -> None:
    time.sleep(_AGAIN_S)
    if _open[:1] == [within] and signal.getsignal(signal.SIGTERM) is _interrupt:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


@contextlib.contextmanager
def stop_on_signal() -> Iterator[None]:
    """Turn SIGTERM, and Ctrl-C unless it is ignored, into a KeyboardInterrupt that leaves this
    context however often it is dropped within; only in the main thread, since no other can set a
    handler.
    """
    before_all, is_main = len(_heard), threading.current_thread() is threading.main_thread()
    with contextlib.ExitStack() as stack:
        if is_main:
            _open.append(object())
            stack.callback(_open.pop)
            stack.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
            sys.unraisablehook = _hide_interrupts(sys.unraisablehook)
            for number in (signal.SIGTERM, signal.SIGINT):
                before = signal.getsignal(number)
                if number == signal.SIGTERM or before is signal.default_int_handler:
                    stack.callback(signal.signal, number, before)
                    signal.signal(number, _interrupt)
        try:
            yield
        except BaseException as error:
            interrupts = list(find_interrupts(error))
            for interrupt in interrupts:
                vars(interrupt)["has_left"] = True
            is_hidden = is_main and len(_heard) > before_all and not interrupts
            if is_hidden and isinstance(error, Exception):
                _open[0] = object()
                raise KeyboardInterrupt from error
            raise


def find_interrupts(error: BaseException | None) -> Iterator[KeyboardInterrupt]:
    """Find the interrupts that an error came of; a library that was at work may have raised its own
    meanwhile.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            yield error
        error = error.__cause__ or error.__context__


def _hide_interrupts(report: Any) -> Any:
    """Report what is raised in a callback, but for interrupts, which come again."""
    return lambda raised: None if raised.exc_type is _Interrupt else report(raised)
