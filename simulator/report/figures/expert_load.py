"""Which experts the tokens go to."""

from __future__ import annotations

from typing import ClassVar, Literal

import plotly.graph_objects as go

from simulator.base.frozen import Frozen
from simulator.report import style
from simulator.report.heat import grid, load_map
from simulator.results.folder import Results


class ExpertLoad(Frozen):
    """A heat map a mixture-of-experts deployment: layer by logical expert."""

    title: ClassVar[str] = "Load of each expert"
    section: ClassVar[str] = "Experts and ranks"
    definition: ClassVar[str] = (
        "Tokens that each logical expert gets over the mean of its layer: red is popular, "
        "blue is idle, and the scale is the same everywhere."
    )
    absent: ClassVar[str] = "No deployment in this run recorded routed experts."
    order: ClassVar[int] = 40
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, results: Results) -> dict[str, go.Figure]:
        label = style.labels(results)
        return {
            label[str(name)]: load_map(grid(table, "layer", "expert", "load"), "Expert", "tokens")
            for name, table in results.experts.groupby("deployment", sort=False)
        }
