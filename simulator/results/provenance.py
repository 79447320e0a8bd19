"""Provenance of a result besides its input: command, program versions, time and duration."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from simulator import __version__

_PACKAGES = ("numba", "numpy", "pandas", "plotly", "pyarrow", "pydantic", "scipy", "simpy")
"""Packages that can move numbers, whose versions are recorded."""


@dataclass(frozen=True)
class Provenance:
    """Provenance of one result, from its beginning."""

    started: datetime.datetime
    clock_s: float
    """Reading of :func:`time.perf_counter` at the beginning."""

    @classmethod
    def begin(cls) -> Provenance:
        """Begin a result now."""
        return cls(datetime.datetime.now(datetime.UTC), time.perf_counter())

    def describe(self, *packages: str) -> dict[str, object]:
        """Describe the provenance for ``run.json``: ``command``, ``started``, ``wall_s`` (seconds
        until now), ``versions`` and ``revision``.

        Args:
            packages: further packages whose versions are recorded.
        """
        return {
            "command": _find_command(),
            "started": self.started.isoformat(timespec="seconds"),
            "wall_s": round(time.perf_counter() - self.clock_s, 3),
            "versions": _find_versions(*_PACKAGES, *packages),
            "revision": find_revision(),
        }


def _find_command() -> str:
    """Command line of this process, or the words for a program that imports ``simulator``."""
    program = Path(sys.argv[0])
    is_command = program.stem == "moesim" or program.parent.name in ("simulator", "cli")
    return shlex.join(["moesim", *sys.argv[1:]]) if is_command else "Python: import simulator"


def _find_versions(*packages: str) -> dict[str, str]:
    """Find the versions of all packages that can move a number."""
    own = {"moesim": __version__, "python": platform.python_version()}
    return own | {package: importlib.metadata.version(package) for package in packages}


@cache
def find_revision() -> str | None:
    """Find the commit of the running checkout, with ``+`` for changes on top, as it was when this
    process first asked; ``None`` outside a checkout, also where moesim is installed in a folder of
    another project's.
    """
    try:
        _ask_git("ls-files", "--error-unmatch", Path(__file__).name)
        return _ask_git("describe", "--always", "--dirty=+", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None


def _ask_git(*arguments: str) -> str:
    """Run git in this file's folder and return its output."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()
