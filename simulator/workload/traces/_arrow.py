"""Readers of Arrow, imported only when a file is read: commands that read none start faster."""

from __future__ import annotations

import importlib
from typing import Any


def arrow(module: str | None = None) -> Any:
    """Import ``pyarrow``, or a module of it, untyped: its exports are not declared as a strict type
    check asks.
    """
    return importlib.import_module(f"pyarrow.{module}" if module else "pyarrow")
