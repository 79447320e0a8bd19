"""Replicas that serve and that are paid for, over the run."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.results.folder import Results
from simulator.results.formats import time_axis
from simulator.results.run_sentences import is_scaled, list_held


class Replicas(Figure[Results]):
    """A stepped line a deployment, and a thin one of those that are held."""

    title = "Replicas over time"
    section = "Over time"
    definition = (
        "Replicas that serve; thin: those whose GPUs are held, so that they are paid for: also "
        "while they start, and while they wait for repair."
    )
    absent = "Every replica of this run serves from its beginning to its end."
    order = 35

    def draw(self, results: Results) -> go.Figure | None:
        levels = {
            name: list_held(facts)
            for name in results.deployments
            if (facts := style.facts(results, name)).get("changes") or is_scaled(facts)
        }
        if not levels:
            return None
        durations_s = results.summary.set_index("deployment")["duration_s"]
        last_s = max(float(durations_s[name]) for name in levels)
        unit_s, unit = time_axis(last_s)
        drawn = style.figure(f"Time since the first arrival ({unit})", "Replicas (count)", 260)
        label, line = style.labels(results), style.lines(results)
        for name, level in levels.items():
            end_s = float(durations_s[name])
            shown = [one for one in level if one[0] <= end_s]
            shown.append((end_s, *shown[-1][1:]))
            at = [at_s / unit_s for at_s, _, _ in shown]
            common: dict[str, Any] = {"x": at, "name": label[name], "mode": "lines"}
            for place, width, word in ((2, 1.6, "serve"), (1, 0.7, "are held")):
                drawn.add_scatter(
                    **common,
                    y=[one[place] for one in shown],
                    line=line[name] | {"width": width, "shape": "hv"},
                    showlegend=place == 2,
                    hovertemplate=f"%{{y}} {word} from %{{x:.3~g}} {unit}",
                )
        drawn.update_yaxes(rangemode="tozero", nticks=6)
        drawn.update_xaxes(range=[0, last_s / unit_s])
        return drawn
