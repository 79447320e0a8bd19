"""How a result was made, besides its input: by which command and program, when, for how long."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator import __version__

_PACKAGES = ("numba", "numpy", "pandas", "plotly", "pyarrow", "pydantic", "scipy", "simpy")


@dataclass(frozen=True)
class Provenance:
    """The making of one result, from when it began."""

    started: datetime.datetime
    clock_s: float
    """Reading of :func:`time.perf_counter` at its beginning."""

    @classmethod
    def begin(cls) -> Provenance:
        """A result whose making begins now."""
        return cls(datetime.datetime.now(datetime.UTC), time.perf_counter())

    def describe(self, *packages: str) -> dict[str, Any]:
        """What ``run.json`` says of it: ``command``, ``started``, ``wall_s`` (seconds until now),
        ``versions`` and ``revision``.

        Args:
            packages: whose versions count besides those that every result rests on.
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
    """The versions of everything that can move a number."""
    own = {"moesim": __version__, "python": platform.python_version()}
    return own | {package: importlib.metadata.version(package) for package in packages}


def find_revision() -> str | None:
    """The commit of the checkout that runs, with ``+`` for changes on top; ``None`` outside a
    checkout, also where moesim is installed in a folder of another project's.
    """
    try:
        _ask_git("ls-files", "--error-unmatch", Path(__file__).name)
        return _ask_git("describe", "--always", "--dirty=+", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None


def _ask_git(*arguments: str) -> str:
    """What git prints in this file's folder."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()
