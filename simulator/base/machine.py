"""The machine that the program runs on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def name_machine() -> str:
    """The processor and its cores, as a name to tell machines apart by."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+?)\s*$", text, re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
