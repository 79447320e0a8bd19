"""Choices of experts that were dropped or went to another expert, layer by layer."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.results.folder import Results


class Overflow(Figure[Results]):
    """A curve a deployment of what is dropped, and a dotted one of what goes elsewhere."""

    title = "Choices of experts that found no room, layer by layer"
    section = "Experts and ranks"
    definition = (
        "Share of the token-expert pairs of each MoE layer that were dropped; dotted, where any: "
        "that another expert computed than the one that was chosen. Counted over all batches of "
        "the run where ranks were simulated, otherwise over some of them."
    )
    absent = "No deployment in this run bounds its experts (overflow)."
    order = 43

    def draw(self, results: Results) -> go.Figure | None:
        label, line = style.labels(results), style.lines(results)
        drawn = style.figure("MoE layer (index)", "Share of token-expert pairs (%)", 260)
        for name in results.deployments:
            found = style.facts(results, name).get("overflow_by_layer")
            if found is None:
                continue
            for key, words, dash in (
                ("dropped", "dropped", "solid"),
                ("rerouted", "to next choices", "dot"),
            ):
                if key == "dropped" or any(found[key]):
                    drawn.add_scatter(
                        x0=0,
                        y=[round(100 * share, 2) for share in found[key]],
                        name=label[name],
                        line=line[name] | {"width": 1.6, "dash": dash},
                        mode="lines",
                        showlegend=key == "dropped",
                        hovertemplate=f"%{{y:.3~g}} % {words}, layer %{{x}}",
                    )
        return drawn if drawn.data else None
