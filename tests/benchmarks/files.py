"""The files of a benchmark: ``bench.json``, ``bench.csv`` and ``bench.html``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from tests.benchmarks.history import append_history, read_history
from tests.benchmarks.page import render
from tests.benchmarks.rows import Bench


def as_dict(bench: Bench) -> dict[str, Any]:
    """What ``bench.json`` holds."""
    return {
        **bench.made,
        "rows": [row.as_dict() for row in bench.rows],
        "growths": [growth.as_dict() for growth in bench.growths],
    }


def write_files(bench: Bench, folder: Path, history: Path) -> None:
    """Add the figures to a history, and write all three."""
    append_history(bench, history)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_dict(bench), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "bench.json").write_text(text + "\n", encoding="utf-8")
    table = pd.DataFrame([row.as_dict() for row in bench.rows])
    table.to_csv(folder / "bench.csv", index=False, float_format="%.6g")
    (folder / "bench.html").write_text(
        render(bench, read_history(history, bench)), encoding="utf-8"
    )
