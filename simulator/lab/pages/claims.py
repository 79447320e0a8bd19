"""The page of a folder of ``moesim claims``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulator.lab.commands.claims import read_claims
from simulator.lab.report.claims_page import render


def build(folder: Path) -> tuple[str, dict[str, Any]]:
    """Build the page from what lies in a folder.

    Raises:
        UserError: if a file is missing or broken.
    """
    found = read_claims(folder)
    return render(found), found.run["verdict"]
