"""A training: its results, its folder, sentences on it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from simulator.base.findings import Finding
from simulator.base.formats import TIMES, UNDEFINED, num_bytes, number, parameters, seconds
from simulator.results.metrics import Metric
from simulator.results.results_folder import Cell, Content, ResultsFolder, TextTable
from simulator.results.sampled_steps import chrome_trace

PARTS = (
    "attention",
    "dense",
    "experts",
    "dispatch",
    "combine",
    "collective",
    "wait",
    "gradients",
    "optimizer",
    "bubble",
)
"""Parts of a step, which add up to it on every stage: computation of attention, of blocks that
every token passes, and of routed experts; exchanges with experts; exchanges between tensor- and
context-parallel ranks; waiting for the busiest rank; gradients and weights on their way between
data-parallel ranks that nothing hides; the optimizer; and waiting for other stages."""
MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations")
"""Components of a GPU's memory."""


METRICS = {
    "tokens_per_s_per_gpu": Metric(
        "Tokens/s per GPU", "tokens/s", "Training tokens per second of one GPU."
    ),
    "tokens_per_s": Metric("Tokens/s", "tokens/s", "Training tokens per second of all GPUs."),
    "flops_per_s_per_gpu": Metric(
        "Model FLOP/s per GPU",
        "FLOP/s",
        "Three times the FLOPs of a forward pass, per second of one GPU; what is computed again "
        "does not count.",
    ),
    "mfu": Metric(
        "MFU", "ratio", "Model FLOP/s over the peak of the number format that matrices compute in."
    ),
    "step_s": Metric("Step", "s", "Seconds from one step to the next."),
    "bubble_share": Metric(
        "Pipeline bubble", "ratio", "Share of a step in which a stage waits for others, mean."
    ),
    "imbalance": Metric(
        "Expert load imbalance",
        "x",
        "Token-expert pairs of the busiest rank over the mean rank's, mean over layers.",
    ),
    "dropped_share": Metric(
        "Dropped pairs", "ratio", "Share of token-expert pairs that found no room."
    ),
    "memory_bytes": Metric("Memory of a GPU", "B", "Bytes of the GPU that needs most."),
    "tokens": Metric("Tokens to train on", "tokens", "Training tokens of the whole training."),
    "days": Metric("Days", "days", "Days to train on all tokens, at the stated uptime."),
    "gpu_hours": Metric("GPU-hours", "h", "Hours of all GPUs together until then."),
    "cost": Metric("Cost", "currency", "Price of these hours."),
}
"""Columns of ``summary.csv`` behind ``deployment``, in order."""


_BANDS = (
    "Behind a value, its 80 % band: by the errors of the kernels that price it, of backward "
    "passes, which nobody has measured, and of what frameworks take besides."
)


@dataclass(frozen=True)
class TrainingResults(ResultsFolder):
    """Simulated training of several deployments.

    ``run`` has ``verdict``, ``notes``, ``deployments`` by name, and the resolved ``scenario``.
    """

    summary: pd.DataFrame
    """:data:`METRICS`, a row for each deployment; NaN where one is undefined."""
    spans: pd.DataFrame
    """Timeline of one step: ``deployment``, ``phase`` (always ``step``), ``rank`` (the stage),
    ``name``, ``layer`` (the micro-batch), ``start_s``, ``duration_s``."""

    writer = "a training"
    files = {"summary": "summary.csv", "spans": "spans.parquet"}

    def list_tables(self) -> list[TextTable]:
        """Metrics that some deployment has, a row each."""
        rows: list[list[str | Cell]] = [["Metric", *self.deployments]]
        facts = [self.facts(name) for name in self.deployments]
        for name, described in METRICS.items():
            values = self.summary[name].astype(float).to_list()
            if all(map(math.isnan, values)):
                continue
            cells = [
                Cell(
                    write_metric(name, value, own["currency"]),
                    write_band(name, value, own),
                    name,
                    value,
                )
                for value, own in zip(values, facts, strict=True)
            ]
            rows.append([Cell(described.label, described.definition), *cells])
        return [TextTable("In numbers", rows, _BANDS)]

    def list_others(self) -> dict[str, Content]:
        """The timeline."""
        trace = chrome_trace(self.spans, lambda *_: "a training step")
        return {"timeline.json": json.dumps(trace)}


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
class Trained(ResultsFolder):
    """Executed training steps of several deployments.

    ``run`` has for each of its ``deployments`` ``num_ranks``, ``layout``, ``loss`` (nats a token,
    of each step), ``gradient_error``, ``exchanges`` (of a step and MoE layer), ``micro_batches``,
    ``others_share``.
    """

    steps: pd.DataFrame
    """Columns ``deployment``, ``source`` (``measured`` or ``simulated``), ``step``, ``step_s``, and
    the seconds of each of :data:`STEP_PARTS`, mean over ranks."""

    writer = "moesim execute"
    files = {"steps": "steps.csv"}

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
        return list(map(str, self._find_steps()))

    def _find_steps(self) -> Iterator[Finding]:
        for name in self.deployments:
            facts, (ratio, low, high) = self.facts(name), self.find_ratio(name)
            yield Finding(
                "training.executed",
                name=name,
                ranks=facts["num_ranks"],
                layout=facts["layout"],
                measured_s=float(self.find_steps(name, "measured")["step_s"].median()),
                simulated_s=float(self.find_steps(name, "simulated")["step_s"].iloc[0]),
                ratio=ratio,
                low=low,
                high=high,
                exchanges=facts["exchanges"],
                gradient_error=facts["gradient_error"],
            )


_ADJACENT = 0.02
"""Relative difference below which two rates are called alike."""
_CAUSES = ("bubble", "wait", "dispatch", "combine", "collective", "gradients", "optimizer")
"""Parts of a step that do not compute the model."""
_LEAST_CAUSE = 0.03
"""Smallest share of a step that a reason names."""


def write_metric(name: str, value: float, currency: str) -> str:
    """Write a metric with its unit.

    >>> write_metric("flops_per_s_per_gpu", 4.24e14, ""), write_metric("mfu", 0.4284, "")
    ('424 TFLOP/s', '42.8 %')
    """
    if not math.isfinite(value):
        return "never" if value > 0 else UNDEFINED
    unit = METRICS[name].unit
    if unit == "FLOP/s":
        return f"{number(value / 1e12)} TFLOP/s"
    if unit == "ratio":
        return f"{number(100 * value)} %"
    if unit == "s":
        return seconds(value)
    if unit == "x":
        return f"{value:.2f}{TIMES}"
    if unit == "B":
        return num_bytes(value)
    if name == "tokens":
        return parameters(value)
    if unit == "h":
        return f"{number(value)} h"
    return f"{number(value)} {currency if unit == 'currency' else unit}".rstrip()


_RATES = ("tokens_per_s_per_gpu", "tokens_per_s", "flops_per_s_per_gpu", "mfu")
"""Metrics that fall as a step takes longer."""
_DURATIONS = ("step_s", "days", "gpu_hours", "cost")


def find_band(name: str, value: float, facts: Mapping[str, Any]) -> tuple[float, float] | None:
    """The ends of a metric's 80 % band; ``None`` for one without.

    >>> find_band("step_s", 2.0, {"band": [0.9, 1.25]})
    (1.8, 2.5)
    """
    low, high = facts["band"]
    if not math.isfinite(value) or name not in _RATES + _DURATIONS:
        return None
    return (value / high, value / low) if name in _RATES else (value * low, value * high)


def write_band(name: str, value: float, facts: Mapping[str, Any]) -> str:
    """Write the ends of a metric's 80 % band; empty for one without."""
    ends = find_band(name, value, facts) or ()
    return " to ".join(write_metric(name, end, facts["currency"]) for end in ends)


def find_training(results: TrainingResults) -> Iterator[Finding]:
    """Find a headline, and reasons: what each deployment needs in all, and what its step is spent
    on besides computing.
    """
    rows = {str(row["deployment"]): row for _, row in results.summary.iterrows()}
    losses = [facts["loss"] for name in rows if "loss" in (facts := results.facts(name))]
    yield _find_best_to_loss(rows, losses[0]) if losses else _find_fastest(rows)
    if losses:
        tokens = {name: float(row["tokens"]) for name, row in rows.items()}
        # By the first steps, so that those of a model that never gets there by one law count too.
        hours = {
            name: 1 / (3600 * row["tokens_per_s_per_gpu"] * results.facts(name)["uptime"])
            if math.isinf(tokens[name])
            else float(row["gpu_hours"]) / tokens[name]
            for name, row in rows.items()
        }
        yield from find_losses(
            results, "GPU-hours", tokens, lambda own: {one: hours[one] * own[one] for one in hours}
        )
    for name, row in rows.items():
        yield from _find_whole(name, row, results.facts(name))
    for name in rows:
        yield _find_causes(name, results.facts(name)["parts_s"])


def _find_fastest(rows: Mapping[str, pd.Series]) -> Finding:
    rates = {name: float(row["tokens_per_s_per_gpu"]) for name, row in rows.items()}
    best, *others = sorted(rates, key=lambda name: -rates[name])
    return Finding(
        "training.fastest",
        name=best,
        tokens_per_s=rates[best],
        others={name: rates[best] / rates[name] for name in others},
        is_alike=bool(others) and rates[best] < rates[others[0]] * (1 + _ADJACENT),
    )


def _find_best_to_loss(rows: Mapping[str, pd.Series], loss: float) -> Finding:
    """Find which deployment needs the fewest GPU-hours to the loss."""
    hours = {name: float(row["gpu_hours"]) for name, row in rows.items()}
    best, *others = sorted(hours, key=lambda name: hours[name])
    return Finding(
        "training.fewest_hours",
        name=best,
        loss=loss,
        gpu_hours=hours[best],
        others={name: hours[name] / hours[best] for name in others},
    )


def find_losses(
    shown: ResultsFolder,
    what: str,
    tokens: Mapping[str, float],
    price: Callable[[Mapping[str, float]], Mapping[str, float]],
) -> Iterator[Finding]:
    """Find the tokens that deployments need to the same loss, and laws by which another one than
    by the law that was asked for needs least.

    Args:
        what: that the best one needs least of.
        tokens: of each deployment, by the law that was asked for.
        price: tells how much of it each deployment needs that is trained on such tokens.
    """
    by_law = {name: _list_laws(shown.facts(name)) for name in tokens}
    for name, own in by_law.items():
        ends = [write_metric("tokens", end(own.values()), "") for end in (min, max)]
        facts = {"loss": shown.facts(name)["loss"], "tokens": tokens[name], "laws": len(own)}
        yield Finding("training.quality", name=name, ends=ends, **facts)
    asked = price(tokens)
    best = min(asked, key=lambda name: asked[name], default="")
    first, *others = by_law.values()
    for law in (law for law in first if all(law in own for own in others)):
        needs = price({name: own[law] for name, own in by_law.items()})
        other = min(needs, key=lambda name: needs[name], default="")
        before = needs.get(best, math.inf)
        if other and needs[other] < before:
            share = needs[other] / before
            yield Finding(
                "training.other_law", law=law, name=other, share=share, best=best, what=what
            )


def _list_laws(facts: Mapping[str, Any]) -> dict[str, float]:
    """List the tokens to the loss by law; infinite where a model never gets there."""
    return {law: math.inf if one is None else one for law, one in facts["tokens_by_law"].items()}


def _find_whole(name: str, row: pd.Series, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Find days and cost, where the number of tokens is known; and how steps change in the course
    of the training, where what else is said of them is of the first ones.
    """
    days = float(row["days"])
    if not math.isfinite(days):
        return
    if facts.get("later_steps"):
        yield Finding("training.later", name=name, steps=facts["later_steps"])
    cost = write_metric("cost", float(row["cost"]), facts["currency"])
    yield Finding(
        "training.days",
        name=name,
        days=days,
        band=write_band("days", days, facts),
        gpus=facts["num_gpus"],
        cost="" if cost == UNDEFINED else cost,
        uptime=facts["uptime"],
    )


def _find_causes(name: str, parts_s: Mapping[str, float]) -> Finding:
    """Find where a step's time goes besides the model's computation, the largest part first."""
    total = sum(parts_s.values())
    computed = sum(parts_s[part] for part in ("attention", "dense", "experts")) / total
    shares = {part: parts_s[part] / total for part in sorted(_CAUSES, key=lambda p: -parts_s[p])}
    large = {part: share for part, share in shares.items() if share > _LEAST_CAUSE}
    return Finding("training.step", name=name, computed=computed, causes=large)
