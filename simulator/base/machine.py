"""The machine that the program runs on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def name_machine() -> str:
    """The processor and its cores, as a name to tell machines apart by."""
    return f"{name_processor()}, {os.cpu_count()} cores"


def name_processor() -> str:
    """The processor's model, as the system calls it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+?)\s*$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()
