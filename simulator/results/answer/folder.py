"""Folder of a plan: its answer as JSON, its tables, scenario files, and the traffic."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd
from pydantic import ValidationError

from simulator.base.reading import read_bytes
from simulator.results.answer import Answer
from simulator.results.answer.handover import COMPARED, RECOMMENDED, SERVING, TRAFFIC
from simulator.results.answer.parts import Part, make_table
from simulator.results.results_folder import Content, ResultsFolder, Verdict
from simulator.workload.traces.table import list_columns

_TABLES = ("candidates", "pareto", "ruled_out", "sensitivity", "losses")
_MAPS = ("cells", "at_same_time", "at_full_load")
"""Tables of the crossover map."""
_ALWAYS = ("candidates", "pareto", "ruled_out")
"""Tables that are written without rows too, since every answer has them."""


@dataclass(frozen=True)
class PlanResults(ResultsFolder):
    """Answer of a plan, and how it was made."""

    answer: Answer

    writer = "moesim plan"
    own_files = frozenset(
        {
            *("plan.json", "crossover.csv", RECOMMENDED, COMPARED, TRAFFIC, *SERVING),
            *(f"{name}.csv" for name in _TABLES),
        }
    )

    @property
    def verdict(self) -> Verdict:
        """Headline, and further answers."""
        answer = self.answer
        return {
            "headline": answer.headline,
            "reasons": list(answer.reasons),
            "findings": list(answer.findings),
        }

    def list_others(self) -> dict[str, Content]:
        """The answer, its tables, and what is handed over."""
        answer = self.answer
        text = json.dumps(answer.model_dump(mode="json"), indent=1, allow_nan=False)
        files: dict[str, Content] = {"plan.json": f"{text}\n"}
        for name in _TABLES:
            rows: tuple[Part, ...] = getattr(answer, name)
            if rows or name in _ALWAYS:
                files[f"{name}.csv"] = make_table(rows)
        if answer.crossover is not None:
            points = [(name, point) for name in _MAPS for point in getattr(answer.crossover, name)]
            files["crossover.csv"] = table = make_table([point for _, point in points])
            table.insert(0, "reading", [name for name, _ in points])
        if answer.handover is not None:
            handed = (*answer.handover.scenarios, *answer.handover.serving)
            files |= {one.file: one.text for one in handed}
            if answer.handover.traffic is not None:
                files[TRAFFIC] = pd.DataFrame(list_columns(answer.handover.traffic))
        return files

    @classmethod
    def read_files(cls, folder: Path, run: dict[str, Any]) -> Self:
        """Read the answer."""
        try:
            return cls(run, Answer.model_validate_json(read_bytes(folder / "plan.json")))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            reason = f"plan.json holds no answer: {where}: {problem['msg']}"
            raise ValueError(reason) from None
