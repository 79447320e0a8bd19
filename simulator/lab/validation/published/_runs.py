"""Runs of what published figures are of, no formula beside them: requests that are queued, by the
plan, its step table and the compiled engine, and single steps of large replicas.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from simulator.base.arrays import Ints
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.config.calibration import Calibration, Fit
from simulator.config.deployment import DeploymentSpec
from simulator.deployment.facts import warnings_of
from simulator.deployment.fits import fits_of
from simulator.deployment.memory import check_requests
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.engine import timeline as engine
from simulator.engine.probe import forecast, make_even_batch
from simulator.engine.table import StepTable, make_table
from simulator.lab.validation.extrapolation import ASSUMED, Band
from simulator.lab.validation.published import Part, Reply
from simulator.results.phases import STEP_PHASES
from simulator.step.prices import Prices
from simulator.workload.traces import RequestTrace

_OF_PROMPTS = {"attention": "attention over prompts"}
"""Phases that other kernels compute where a sequence has more than one new token."""


_WHERE = "published"
_NONE = 1e-9
"""Share of a time below which a phase takes none of it but for rounding."""
_OF_MEDIAN = 2.5
"""An error's 90th percentile over its median: 2.4 where errors are normal."""


@dataclass(frozen=True)
class Served:
    """A run of one replica."""

    plan: DeploymentPlan
    requests: pd.DataFrame
    """``REQUEST_COLUMNS`` but the deployment."""
    log: pd.DataFrame
    """A row a step, with the columns of ``LOG_COLUMNS``."""

    @property
    def output_per_s(self) -> float:
        """Output tokens of all requests over the time from the first arrival to the last token."""
        return float(self.requests["num_output"].sum() / self.requests["finish_s"].max())

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of the time that each phase of the steps takes."""
        total = float(self.log["duration_s"].sum())
        return {phase: float(self.log[f"{phase}_s"].sum()) / total for phase in STEP_PHASES}

    @property
    def because(self) -> str:
        """The batch reached, the cache and the shares of the time, in words."""
        running = float(np.average(self.log["running"], weights=self.log["duration_s"]))
        return (
            f"{running:.0f} requests at once on a replica, room "
            f"for {self.plan.serving.capacity.tokens:,} KV tokens; {tell_shares(self.shares)}"
        )

    def reply(self, value: float, status: str = "") -> Reply:
        """``value``, a rate, with the band of the parts that the time is made of."""
        band, parts = band_of(self.plan, self.shares), parts_of(self.plan, self.shares)
        return Reply.from_times(value, band, status or status_of(self.plan), self.because, parts)


class Step(NamedTuple):
    """A step that has run at the ``rank`` fidelity: every rank a process, links shared by all
    traffic present.
    """

    plan: DeploymentPlan
    num_tokens: int
    """Tokens that each data-parallel rank computes."""
    seconds: float
    phases: dict[str, float]
    """Shares of the time by phase."""
    shares: dict[str, float]
    """Shares of the time by phase, or by the calibration entry that prices it where that differs
    for prompts."""

    @property
    def imbalance(self) -> float:
        """Token-expert pairs of the busiest rank over the mean rank's, mean over layers."""
        placement = self.plan.placement
        tokens_d = np.full(placement.layout.attention_dp, self.num_tokens, dtype=np.int64)
        prices = Prices(placement, 1)
        layers = range(placement.model.num_moe_layers)
        steps = [prices.expert_step(layer, tokens_d, 0).pairs_R for layer in layers]
        return float(np.mean([pairs_R.max() / pairs_R.mean() for pairs_R in steps]))


def run_step(plan: DeploymentPlan, num_sequences: int, new: int, context: int) -> Step:
    """Run a step in which every data-parallel rank has ``num_sequences`` with ``context`` tokens in
    the cache, computing ``new`` each.
    """
    sequences_D = [num_sequences] * plan.placement.layout.attention_dp
    (times,) = forecast(plan, [(make_even_batch(sequences_D, new, context), 0)])
    phases = {phase: seconds / times.duration_s for phase, seconds in times.phases.items()}
    priced_as = _OF_PROMPTS if new > 1 else {}
    shares = {priced_as.get(phase, phase): share for phase, share in phases.items()}
    return Step(plan, num_sequences * new, times.duration_s, phases, shares)


def tell_shares(shares: Mapping[str, float]) -> str:
    """Shares of a time in words, without those that round to nothing."""
    return ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items() if share >= 0.005)


def make(deployment: Mapping[str, object], seed: int = 0) -> DeploymentPlan:
    """The plan of a deployment written as a table.

    Raises:
        UserError: if it names what there is not, or does not fit.
    """
    spec = validate(DeploymentSpec, {"name": _WHERE, "replicas": 1, **deployment}, _WHERE)
    return make_plan(spec, seed, _WHERE, Path())


def make_once(deployment: Mapping[str, object]) -> DeploymentPlan:
    """The plan of a deployment, kept for the cases that follow."""
    return _plan(json.dumps(deployment, sort_keys=True))


@lru_cache(maxsize=4)
def _plan(deployment: str) -> DeploymentPlan:
    return make(json.loads(deployment))


def serve(
    deployment: Mapping[str, object],
    num_input: Ints,
    num_output: Ints,
    rate_per_s: float = math.inf,
) -> Served:
    """Serve requests on one replica: all waiting from the start, or arriving at random (Poisson) at
    a rate.

    Raises:
        UserError: if the deployment is impossible, or a request does not fit in its cache.
    """
    plan = make(deployment)
    count, longest = len(num_input), int((num_input + num_output).max())
    gaps_s = (
        plan.placement.rng("arrivals").exponential(1.0, count) / rate_per_s
        if math.isfinite(rate_per_s)
        else np.zeros(count)
    )
    trace = RequestTrace(np.cumsum(gaps_s), num_input, num_output, _WHERE)
    check_requests(plan.serving.capacity, longest, _WHERE)
    priced = {
        key: value for key, value in deployment.items() if key != "scheduling"
    }  # which moves no price
    named = json.dumps(priced, sort_keys=True)
    found = engine.serve(
        plan, trace, fill=lambda pool, _: _table(named, pool.max_tokens), ingress_delay_s=0.0
    )
    return Served(plan, found.requests_table(), found.steps_of("both"))


@lru_cache(maxsize=8)
def _table(deployment: str, largest: int) -> StepTable:
    plan = make(json.loads(deployment))
    return make_table(Prices(plan.placement, largest))


def status_of(plan: DeploymentPlan) -> str:
    """``ok``, or ``extrapolated`` with what is assumed or outside what was measured."""
    found = [
        str(one).rstrip(".").removeprefix("Extrapolated: ")
        for one in warnings_of(plan)
        if one.kind != "warning.rumour"
    ]
    return "extrapolated: " + "; ".join(found) if found else "ok"


def band_of(plan: DeploymentPlan, shares: Mapping[str, float]) -> tuple[float, float]:
    """Factors on a time for its low and its high: the bands of its parts, which err together, by
    their shares.
    """
    parts = parts_of(plan, shares)
    total = sum(part.share for part in parts)
    return sum(part.share * part.low for part in parts) / total, sum(
        part.share * part.high for part in parts
    ) / total


def parts_of(plan: DeploymentPlan, shares: Mapping[str, float]) -> tuple[Part, ...]:
    """The phases of a time by the calibration entries that price them, with the bands of these.

    Raises:
        UserError: if the plan is priced by a machine's own calibration, which has no bands.
    """
    if not isinstance(plan.placement.calibration, Calibration):
        raise UserError(f"{plan.name}: only calibrations of accelerator families carry bands")
    fits, entries = fits_of(plan), _entries_of(plan)
    found = []
    for phase, share in shares.items():
        if share < _NONE:  # what takes no time has no band
            continue
        entry = entries.get(phase, phase)
        band = _band_of_entry(fits, entry)
        found.append(Part(entry, share, min(band.low, 1.0), max(band.high, 1.0)))
    return tuple(found)


def _entries_of(plan: DeploymentPlan) -> dict[str, str]:
    """Calibration entry that prices each phase."""
    experts = f"{plan.placement.precision.experts} experts"
    return {
        "attention": "attention in decode",
        "dense": f"{plan.placement.precision.weights} matrices",
        "experts": experts,
        "wait": experts,
        "collective": "all-reduce",
        "overhead": "engine overhead",
    }


def _band_of_entry(fits: Mapping[str, Fit], entry: str) -> Band:
    """The band of an entry; where many tokens are sent in another way than few, one that holds the
    bands of both, since a time may be made of either.
    """
    names = [name for name in (entry, f"{entry} of many tokens") if name in fits]
    bands = [_band_of_fit(fits[name]) for name in names] or [ASSUMED]
    return Band(min(band.low for band in bands), max(band.high for band in bands))


def _band_of_fit(fit: Fit) -> Band:
    if fit.kind == "assumed":
        return ASSUMED
    if fit.band is None and fit.p90_error is None and fit.median_error is not None:
        wide = 1.0 + _OF_MEDIAN * fit.median_error
        return Band(1.0 / wide, wide)
    return Band.from_fit(fit)
