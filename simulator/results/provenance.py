"""What a result rests on besides its input: the versions of everything that can move a number."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from simulator import __version__

_PACKAGES = ("numba", "numpy", "pandas", "plotly", "pyarrow", "pydantic", "scipy", "simpy")


def versions() -> dict[str, str]:
    """Of everything that can move a number."""
    return {
        "moesim": __version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
    }


def revision() -> str | None:
    """The commit of the checkout that runs, with ``+`` for changes on top; ``None`` outside a
    checkout.
    """
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
