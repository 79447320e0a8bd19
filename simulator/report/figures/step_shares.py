"""Where the time of all steps goes."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.figures._bars import stacked
from simulator.results.folder import Results
from simulator.results.formats import number
from simulator.results.tables import STEP_PHASES


class StepShares(Frozen):
    """A stacked bar a deployment."""

    title: ClassVar[str] = "All steps of the run"
    section: ClassVar[str] = "Where a step's time goes"
    definition: ClassVar[str] = (
        "Share of step time along the critical path; 'wait' is the slowest rank's time beyond the "
        "mean, 'dispatch' and 'combine' the two all-to-alls, 'collective' the tensor-parallel "
        "all-reduces and, in a pipeline, the way to the next stage."
    )
    absent: ClassVar[str] = "No step was run."
    order: ClassVar[int] = 70
    width: ClassVar[Literal["full", "half", "quarter"]] = "full"

    def draw(self, results: Results) -> go.Figure | None:
        columns = [f"{phase}_share" for phase in STEP_PHASES]
        shares = (
            results.summary.set_index("deployment")
            .reindex(columns=columns)
            .dropna(how="all")
            .fillna(0.0)
        )
        if shares.empty:
            return None
        parts = {
            phase: shares[column].to_list()
            for phase, column in zip(STEP_PHASES, columns, strict=True)
        }
        texts = {
            phase: [f"{number(float(np.round(100 * share, 1)))} %" for share in part]
            for phase, part in parts.items()
        }
        drawn = stacked(
            results,
            [str(name) for name in shares.index],
            parts,
            style.PHASE_COLOURS,
            "Step time (share)",
            texts,
        )
        drawn.update_xaxes(tickformat=".2~%")
        return drawn
