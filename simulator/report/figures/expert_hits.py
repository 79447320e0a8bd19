"""Share of a token's experts that the GPU's memory holds, layer by layer."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.results.folder import Results


class ExpertHits(Figure[Results]):
    """A curve a deployment that offloads experts."""

    title = "Experts found in the GPU's memory"
    section = "Experts and ranks"
    definition = (
        "Share of its experts that one sequence finds there, by a replay of the deployment's "
        "routing; the others are brought or computed below."
    )
    absent = "No deployment in this run offloads experts."
    order = 44

    def draw(self, results: Results) -> go.Figure | None:
        label, line = style.labels(results), style.lines(results)
        drawn = style.figure("MoE layer (index)", "Share found (%)", 260)
        for name in results.deployments:
            hits_L = style.facts(results, name).get("hits_by_layer")
            if hits_L:
                drawn.add_scatter(
                    x0=0,
                    y=[round(100 * share, 1) for share in hits_L],
                    name=label[name],
                    line=line[name] | {"width": 1.6},
                    mode="lines",
                    hovertemplate="%{y:.3~g} %, layer %{x}",
                )
        return drawn.update_yaxes(range=[0, 100]) if drawn.data else None
