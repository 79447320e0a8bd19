"""Arrow's readers, imported when a file is read: commands that read none start faster."""

from __future__ import annotations

import importlib
from typing import Any


def arrow(module: str | None = None) -> Any:
    """``pyarrow``, or a module of it. Untyped: what pyarrow exports is not declared in a way that a
    strict type check accepts.
    """
    return importlib.import_module(f"pyarrow.{module}" if module else "pyarrow")
