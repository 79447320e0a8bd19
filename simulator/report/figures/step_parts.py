"""Where the time of the shown steps goes, in seconds."""

from __future__ import annotations

from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.figures._bars import stacked
from simulator.report.shown_steps import WHICH, shared_heading
from simulator.results.folder import Results
from simulator.results.formats import seconds, time_axis
from simulator.results.tables import STEP_PHASES


class StepParts(Frozen):
    """A stacked bar a deployment, a plot a phase."""

    title: ClassVar[str] = "One step"
    section: ClassVar[str] = "Where a step's time goes"
    definition: ClassVar[str] = (
        "Time of one decode step and one prefill step by what a rank was doing, mean over ranks. "
        f"{WHICH} Deployments' steps need not hold equally many tokens."
    )
    absent: ClassVar[str] = "The run holds no timeline of single steps."
    order: ClassVar[int] = 71
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, results: Results) -> dict[str, go.Figure]:
        plots = {}
        for phase, spans in results.spans.groupby("phase", sort=False):
            total_s = spans.pivot_table(
                index="deployment", columns="name", values="duration_s", aggfunc="sum", sort=False
            )
            num_ranks = spans.groupby("deployment")["rank"].nunique()
            mean_s = total_s.div(num_ranks, axis=0).reindex(columns=list(STEP_PHASES)).fillna(0.0)
            names = [name for name in results.deployments if name in mean_s.index]
            mean_s = mean_s.loc[names]
            unit_s, unit = time_axis(float(mean_s.sum(axis=1).max()))
            parts = {name: (mean_s[name] / unit_s).to_list() for name in STEP_PHASES}
            texts = {name: [seconds(value) for value in mean_s[name]] for name in STEP_PHASES}
            title = f"{str(phase).capitalize()} step ({unit})"
            plots[shared_heading(results, names, str(phase))] = stacked(
                results, names, parts, style.PHASE_COLOURS, title, texts
            )
        return plots
