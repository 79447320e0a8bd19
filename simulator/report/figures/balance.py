"""Load imbalance between ranks, over the run."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.results.folder import Results
from simulator.results.formats import time_axis
from simulator.results.run_sentences import describe_move


class Balance(Figure[Results]):
    """A curve a deployment, what chance alone would come to, and a line where experts moved."""

    title = "Load imbalance over time"
    section = "Over time"
    definition = (
        "Token-expert pairs on the busiest rank over the mean rank, as a mean over layers and the "
        "steps of each bin; 1.0 is even. Thin: what chance alone would come to, were routing "
        "uniform at the same batches. Dotted: experts moved."
    )
    absent = "No deployment in this run has routed experts."
    order = 34

    def draw(self, results: Results) -> go.Figure | None:
        curves = {
            name: curve
            for name in results.deployments
            if (curve := style.facts(results, name).get("imbalance_curve"))
        }
        if not curves:
            return None
        last_s = max(curve["at_s"][-1] for curve in curves.values())
        unit_s, unit = time_axis(last_s)
        drawn = style.figure(
            f"Time since the first arrival ({unit})", "Busiest rank over mean rank (ratio)", 260
        )
        label, line = style.labels(results), style.lines(results)
        for name, curve in curves.items():
            at = [at_s / unit_s for at_s in curve["at_s"]]
            common: dict[str, Any] = {"x": at, "name": label[name], "mode": "lines"}
            drawn.add_scatter(
                **common,
                y=curve["imbalance"],
                line=line[name] | {"width": 1.6},
                hovertemplate=f"%{{y:.3~g}} at %{{x:.3~g}} {unit}",
            )
            drawn.add_scatter(
                **common,
                y=curve["uniform"],
                line=line[name] | {"width": 0.7},
                opacity=0.65,
                showlegend=False,
                hovertemplate="%{y:.3~g} by chance",
            )
        _mark_moves(drawn, results, unit_s)
        drawn.update_yaxes(nticks=6)
        drawn.update_xaxes(range=[0, last_s / unit_s])
        return drawn


def _mark_moves(drawn: go.Figure, results: Results, unit_s: float) -> None:
    """Lines where the experts of a deployment moved, in its colour."""
    label, line = style.labels(results), style.lines(results)
    levels = [value for trace in drawn.data for value in trace.y if value is not None]
    low, high = min(levels), max(levels)
    for name in results.deployments:
        moves = [
            (moved["at_s"] / unit_s, str(describe_move(moved)))
            for moved in style.facts(results, name).get("rebalances") or []
        ]
        style.add_moves(drawn, label[name], line[name], moves, (low, high))
