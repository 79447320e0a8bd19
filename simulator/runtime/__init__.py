"""Real execution of plans: PyTorch shards in one process, or on Ray actors; and recordings for the
simulator, as files.
"""

from __future__ import annotations

import importlib.util

from simulator.base.errors import UserError

_INSTALL = {
    "torch": (
        "PyTorch",
        "pip install 'moesim[real]' (CPU only: first pip install torch --index-url https://download.pytorch.org/whl/cpu)",
    ),
    "ray": ("Ray", "pip install 'moesim[real]'"),
    "starlette": ("a local web server", "pip install 'moesim[explore]'"),
    "safetensors": ("safetensors", "pip install 'moesim[real]'"),
    "transformers": ("transformers", "pip install 'moesim[real,hf]'"),
}


def require(package: str, what: str = "this command") -> None:
    """Refuse to continue without an optional package; it is looked for, not imported.

    Args:
        what: part that needs it, as the error's subject.

    Raises:
        UserError: with the command that installs it.
    """
    if importlib.util.find_spec(package) is None:
        name, install = _INSTALL[package]
        raise UserError(f"{what} needs {name}: {install}")
