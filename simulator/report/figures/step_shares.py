"""Time of all steps by phase."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import draw_stacked
from simulator.results.folder import Results
from simulator.results.formats import number
from simulator.results.phases import STEP_PHASES


class StepShares(Figure[Results]):
    """A stacked bar a deployment."""

    title = "All steps of the run"
    section = "Where a step's time goes"
    definition = (
        "Share of step time along the critical path; 'wait' is the slowest rank's time beyond the "
        "mean, 'dispatch' and 'combine' the two all-to-alls, 'collective' the tensor-parallel "
        "all-reduces and, in a pipeline, the way to the next stage."
    )
    absent = "No step was run."
    order = 70
    width = "full"

    def draw(self, results: Results) -> go.Figure | None:
        columns = {f"{phase}_share": phase for phase in STEP_PHASES}
        shares = results.summary.set_index("deployment").reindex(columns=list(columns))
        shares = shares.rename(columns=columns).dropna(how="all").fillna(0.0)
        if shares.empty:
            return None
        drawn = draw_stacked(results, shares, style.PHASE_COLOURS, "Step time (share)", _percent)
        drawn.update_xaxes(tickformat=".2~%")
        return drawn


def _percent(share: float) -> str:
    return f"{number(round(100 * share, 1))} %"
