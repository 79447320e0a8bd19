"""``python -m tests.benchmarks.child FILE ARGUMENTS``: ``moesim ARGUMENTS``, and what it took from
the start of the process, in FILE.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path


def read_peak_bytes() -> int:
    """Most memory that this process held at a time.

    Linux counts a parent's into what ``getrusage`` says of its child, so that the process's own
    account is read there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Run the command, and write what it took whatever becomes of it."""
    began_s, out = time.perf_counter(), Path(sys.argv[1])
    sys.argv = ["moesim", *sys.argv[2:]]
    try:
        from simulator.cli import main as run_command

        run_command()
    finally:
        used = os.times()
        spent = {
            "cpu_s": used.user + used.system + used.children_user + used.children_system,
            "wall_s": time.perf_counter() - began_s,
            "peak_bytes": read_peak_bytes(),
        }
        out.write_text(json.dumps(spent), encoding="utf-8")


if __name__ == "__main__":
    main()
