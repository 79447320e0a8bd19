"""Collection of garbage around what a process imports as it starts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hold_imports() -> Iterator[None]:
    """Let the objects that imports make stay for good: none is looked at for garbage, neither
    meanwhile nor later. Looking took a fifth of the start of a process that imports PyTorch, and
    afterwards a tenth of a second now and then, in the middle of a step that is measured.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
