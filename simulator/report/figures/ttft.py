"""How time to first token is spread over requests."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.base.columns import Columns
from simulator.base.frozen import Frozen
from simulator.report.figures._curves import distribution
from simulator.results.folder import Results


class Ttft(Frozen):
    """The cumulative distribution, a curve a deployment, with the target."""

    title: ClassVar[str] = "Time to first token"
    section: ClassVar[str] = "Latency"
    definition: ClassVar[str] = (
        "Share of requests whose time to first token (arrival to first output token, "
        "queueing included) is at most x."
    )
    absent: ClassVar[str] = "No request finished."
    order: ClassVar[int] = 20
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, results: Results) -> go.Figure | None:
        values = {name: self._values(requests) for name, requests in results.requests.items()}
        return distribution(results, values, "TTFT", (results.run.get("slo") or {}).get("ttft_s"))

    @staticmethod
    def _values(requests: Columns) -> NDArray[np.float64]:
        return (requests["first_token_s"] - requests["arrival_s"]).to_numpy(float)
