"""How time per output token is spread over requests."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.base.columns import Columns, Picked
from simulator.base.frozen import Frozen
from simulator.report.figures._curves import distribution
from simulator.results.folder import Results


class Tpot(Frozen):
    """The cumulative distribution, a curve a deployment, with the target."""

    title: ClassVar[str] = "Time per output token"
    section: ClassVar[str] = "Latency"
    definition: ClassVar[str] = (
        "Share of requests whose time per output token, (E2E - TTFT) "
        "/ (output tokens - 1), is at most x."
    )
    absent: ClassVar[str] = (
        "No request has two output tokens, so time per output token is undefined."
    )
    order: ClassVar[int] = 21
    width: ClassVar[Literal["full", "half", "quarter"]] = "half"

    def draw(self, results: Results) -> go.Figure | None:
        values = {name: self._values(requests) for name, requests in results.requests.items()}
        return distribution(results, values, "TPOT", (results.run.get("slo") or {}).get("tpot_s"))

    @staticmethod
    def _values(requests: Columns) -> NDArray[np.float64]:
        several = Picked(requests, (requests["num_output"] > 1).to_numpy())
        return (
            (several["finish_s"] - several["first_token_s"]) / (several["num_output"] - 1)
        ).to_numpy(float)
