"""Time of the shown steps by phase, in seconds."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import draw_stacked
from simulator.report.spans import WHICH, shared_heading
from simulator.results.folder import Results
from simulator.results.formats import seconds, time_axis
from simulator.results.phases import STEP_PHASES


class StepParts(Figure[Results]):
    """A stacked bar a deployment, a plot a phase."""

    title = "One step"
    section = "Where a step's time goes"
    definition = (
        "Time of one decode step and one prefill step by what a rank was doing, mean over ranks. "
        f"{WHICH} Deployments' steps need not hold equally many tokens."
    )
    absent = "The run holds no timeline of single steps."
    order = 71

    def draw(self, results: Results) -> dict[str, go.Figure]:
        plots = {}
        for phase, spans in results.spans.groupby("phase", sort=False):
            total_s = spans.pivot_table(
                index="deployment", columns="name", values="duration_s", aggfunc="sum", sort=False
            )
            num_ranks = spans.groupby("deployment")["rank"].nunique()
            names = [name for name in results.deployments if name in total_s.index]
            mean_s = total_s.div(num_ranks, axis=0).reindex(names, columns=list(STEP_PHASES))
            mean_s = mean_s.fillna(0.0)
            unit_s, unit = time_axis(float(mean_s.sum(axis=1).max()))
            title = f"{str(phase).capitalize()} step ({unit})"
            plots[shared_heading(results, names, str(phase))] = draw_stacked(
                results, mean_s, style.PHASE_COLOURS, title, seconds, unit_s
            )
        return plots
