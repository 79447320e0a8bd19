"""Time of an output token by phase and kind of step, in seconds, over all steps of the run."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import draw_stacked
from simulator.results.folder import Results
from simulator.results.formats import seconds, time_axis
from simulator.results.phases import STEP_PHASES
from simulator.results.token_time import KINDS

_KIND_COLOURS = dict(zip(KINDS, ("#332288", "#882255", "#DDCC77", "#BBBBBB"), strict=True))


class TokenTime(Figure[Results]):
    """Two stacked bars a deployment: by what ranks do, and by what steps compute."""

    title = "An output token"
    section = "Where a step's time goes"
    definition = (
        "Seconds of an output token, mean over all but each request's first: by what a rank was "
        "doing, and by what the steps computed: output tokens only (decode), prompts beside them "
        "(mixed), or prompts while requests with tokens to come waited (prefill); 'cut' are steps "
        "that were cut off when their replica stopped. 'outside' is the "
        "way of a cache from the prefill pool into a step of the decode pool."
    )
    absent = "No request has more than one output token."
    order = 69

    def draw(self, results: Results) -> dict[str, go.Figure]:
        table = results.token_time
        names = [name for name in results.deployments if name in set(table["deployment"])]
        if not names:
            return {}
        by_kind = table.pivot_table("token_s", "deployment", "kind", aggfunc="sum")
        by_kind = by_kind.reindex(names, columns=list(KINDS)).fillna(0.0)
        by_phase = table.groupby("deployment")[[f"{phase}_s" for phase in STEP_PHASES]].sum()
        by_phase = by_phase.loc[names].rename(columns=lambda column: column.removesuffix("_s"))
        unit_s, unit = time_axis(float(by_kind.sum(axis=1).max()))
        colours, title = style.PHASE_COLOURS | _KIND_COLOURS, f"Time of an output token ({unit})"
        return {
            heading: draw_stacked(results, parts, colours, title, seconds, unit_s)
            for heading, parts in (
                ("By what ranks do", by_phase),
                ("By what steps compute", by_kind),
            )
        }
