"""The files of a benchmark: ``bench.json``, ``bench.csv``, and a line more in the history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from tests.benchmarks.rows import Bench


def as_dict(bench: Bench) -> dict[str, Any]:
    """What ``bench.json`` holds."""
    return {
        **bench.made,
        "rows": [row.as_dict() for row in bench.rows],
        "growths": [growth.as_dict() for growth in bench.growths],
    }


def write_files(bench: Bench, folder: Path, history: Path) -> None:
    """Write both, and add the figures to a history: a line of JSON for each call."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_dict(bench), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "bench.json").write_text(text + "\n", encoding="utf-8")
    table = pd.DataFrame([row.as_dict() for row in bench.rows])
    table.to_csv(folder / "bench.csv", index=False, float_format="%.6g")
    history.parent.mkdir(parents=True, exist_ok=True)
    with history.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_summarise(bench), ensure_ascii=False, allow_nan=False) + "\n")


def _summarise(bench: Bench) -> dict[str, Any]:
    """The date, the revision, the machine, and every figure that was found."""
    figures = [
        {
            "kind": row.kind,
            "figure": f"{row.name}: {row.measure}",
            "unit": row.unit,
            "value": row.value,
            "better": row.better,
        }
        for row in bench.rows
    ]
    made = {name: bench.made[name] for name in ("revision", "effort", "machine")}
    return {"date": bench.made["started"], **made, "figures": figures}
