"""Collection of garbage around what a process imports as it starts."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hold_imports(heaviest: str) -> Iterator[None]:
    """Let the objects that imports make stay for good, where this context is the first to import
    the heaviest of them: none is looked at for garbage, neither meanwhile nor later.
    """
    if heaviest in sys.modules:
        yield
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
