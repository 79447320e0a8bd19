"""Results of trainings that ran for real: every step's time by part, beside the simulated step.

| file | holds |
|---|---|
| ``run.json`` | resolved scenario, seed, versions, machine, and facts of each deployment |
| ``steps.csv`` | a row a deployment and measured step, and one of the simulated step |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.results.folder import check_writable, replace_folder, write_files
from simulator.results.formats import count
from simulator.results.formats import seconds as write_seconds

STEP_PARTS = (
    "attention",
    "dense",
    "experts",
    "dispatch",
    "combine",
    "wait",
    "gradients",
    "optimizer",
)
"""Parts of a step that ran for real, which add up to it: as those of
:data:`simulator.results.training.PARTS`, where sums of gradients are not hidden and there is one
stage."""
_SPREAD = (10, 90)
"""Percentiles of measured steps that a spread is between."""


@dataclass(frozen=True)
class Trained:
    """Trainings of several deployments."""

    run: dict[str, Any]
    """Facts as ``run.json`` has them; those of each deployment in ``deployments``: ``num_ranks``,
    ``layout``, ``loss`` (nats a token, of each step), ``gradient_error``, ``exchanges`` (of a step
    and MoE layer), ``micro_batches``, ``others_share``."""
    steps: pd.DataFrame
    """Columns ``deployment``, ``source`` (``measured`` or ``simulated``), ``step``, ``step_s``, and
    the seconds of each of :data:`STEP_PARTS`, mean over ranks."""

    @property
    def deployments(self) -> list[str]:
        """Names of the deployments, in the scenario's order."""
        return list(dict.fromkeys(self.steps["deployment"]))

    def find_steps(self, name: str, source: str) -> pd.DataFrame:
        """Find the steps of a deployment, ``measured`` or ``simulated``."""
        own = self.steps["deployment"] == name
        return self.steps[own & (self.steps["source"] == source)]

    def find_ratio(self, name: str) -> tuple[float, float, float]:
        """Median of the measured steps' times over the simulated one, and the 10th and 90th
        percentile.
        """
        simulated_s = float(self.find_steps(name, "simulated")["step_s"].iloc[0])
        ratios = self.find_steps(name, "measured")["step_s"].to_numpy(float) / simulated_s
        low, high = np.percentile(ratios, _SPREAD)
        return float(np.median(ratios)), float(low), float(high)

    def list_findings(self) -> list[str]:
        """State what was found of each deployment, a sentence or two."""
        return list(self._yield_findings())

    def _yield_findings(self) -> Iterator[str]:
        for name in self.deployments:
            facts = self.run["deployments"][name]
            measured_s = float(self.find_steps(name, "measured")["step_s"].median())
            simulated_s = float(self.find_steps(name, "simulated")["step_s"].iloc[0])
            ratio, low, high = self.find_ratio(name)
            exchanges = (
                f", {facts['exchanges']} exchanges a MoE layer and micro-batch"
                if facts["exchanges"]
                else ""
            )
            yield (
                f"{name}: a step on {count(facts['num_ranks'], 'rank')} ({facts['layout']}) took "
                f"{write_seconds(measured_s)} where {write_seconds(simulated_s)} is simulated, "
                f"{ratio:.2f} times as long ({low:.2f} to {high:.2f} for four steps in five)"
                f"{exchanges}; gradients of all weights equal one process's to "
                f"{facts['gradient_error']:.0e}."
            )


def write_trained(trained: Trained, folder: Path) -> None:
    """Write the folder under a temporary name and rename it when it is whole.

    Raises:
        UserError: if ``folder`` exists and is not a results folder, or cannot be written.
    """
    check_writable(folder)
    replace_folder(folder, partial(write_files, trained.run, {"steps.csv": trained.steps}))
