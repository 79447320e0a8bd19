"""Trial of a change: the deployment served again with it, as a run by hand would."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from simulator.config.workload import SLO
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.by_ranks import Fidelity
from simulator.engine.timeline import run_plan
from simulator.explanation.waterfall import measure_queue
from simulator.planner.calibration_error import Floats
from simulator.planner.uncertainty.run_bands import StepTables, draw_figures
from simulator.results.metrics import METRICS, select_judged, summarise
from simulator.workload.traces import RequestTrace

_IN_TIME = 0.95
"""Share of requests in time above which targets count as met, so that speed decides: goodput has
no more than a twentieth to gain."""
_LATE = 0.5
"""Share of requests' time before their first step above which a deployment has fallen behind."""


class Trial:
    """Trace served by one plan."""

    def __init__(
        self, plan: DeploymentPlan, trace: RequestTrace, slo: SLO, seed: int, fidelity: Fidelity
    ) -> None:
        self._plan, self._trace, self._slo, self._seed = plan, trace, slo, seed
        self._fidelity: Fidelity = fidelity
        self._tables = StepTables()
        self._record = run_plan(plan, trace, fidelity, fill=self._tables.slow(1.0))
        self._row = summarise([plan], [self._record], slo).iloc[0]

    @property
    def values(self) -> dict[str, float]:
        """Metrics by name."""
        return {name: float(self._row[name]) for name in METRICS}

    @cached_property
    def samples(self) -> dict[str, Floats]:
        """Metrics in all samples of the calibration's error."""
        drawn = draw_figures(
            self._plan,
            self._trace,
            self._slo,
            self._seed,
            self._row,
            self._record if self._fidelity == "step" else None,
            self._tables,
        )
        return drawn.values

    def choose_metric(self) -> str:
        """Choose the metric by which changes are ranked: requests in time where targets are missed;
        throughput where the deployment decides it, in a closed loop or one that has fallen behind;
        time per output token otherwise.
        """
        values = self.values
        if values["slo_attainment"] < _IN_TIME and values["goodput_per_s"] > 0:
            return "goodput_per_s"
        queue = measure_queue(
            self._plan,
            select_judged(self._record.requests, self._record.num_lead_in),
            self._record.steps,
        )
        if self._trace.concurrency is not None or queue.share > _LATE:
            return "output_tokens_per_s"
        return "tpot_p50_s" if values["tpot_p50_s"] > 0 else "ttft_p50_s"


def measure_gain(metric: str, before: float, after: float) -> float:
    """Measure the share by which a metric is better after a change."""
    if METRICS[metric].better == "lower":
        return 1.0 - after / before
    return after / before - 1.0


def find_band(metric: str, before: dict[str, Floats], after: dict[str, Floats]) -> list[float]:
    """Find the 10th and 90th percentile of a change's gain over samples of the calibration's error,
    which is the same with and without the change; empty where none were drawn.
    """
    if metric not in before or metric not in after:
        return []
    pairs = zip(before[metric].tolist(), after[metric].tolist(), strict=True)
    gains = [measure_gain(metric, old, new) for old, new in pairs if old > 0]
    return [float(edge) for edge in np.quantile(gains, (0.1, 0.9))] if gains else []
