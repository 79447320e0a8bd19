"""Load of each expert."""

from __future__ import annotations

import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.heat import grid, load_map
from simulator.results.folder import Results


class ExpertLoad(Figure[Results]):
    """A heat map a mixture-of-experts deployment: layer by logical expert."""

    title = "Load of each expert"
    section = "Experts and ranks"
    definition = (
        "Tokens that each logical expert gets over the mean of its layer: red is popular, "
        "blue is idle, and the scale is the same everywhere."
    )
    absent = "No deployment in this run recorded routed experts."
    order = 40

    def draw(self, results: Results) -> dict[str, go.Figure]:
        label = style.labels(results)
        return {
            label[str(name)]: load_map(grid(table, "layer", "expert", "load"), "Expert", "tokens")
            for name, table in results.experts.groupby("deployment", sort=False)
        }
