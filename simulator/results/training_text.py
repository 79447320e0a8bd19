"""Findings of a training in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from simulator.results.formats import (
    TIMES,
    UNDEFINED,
    num_bytes,
    number,
    parameters,
    percent,
    seconds,
)
from simulator.results.training import METRICS

_ADJACENT = 0.02
"""Relative difference below which two rates are called alike."""
_CAUSES = {
    "bubble": "waits for other pipeline stages",
    "wait": "waits for the ranks with the busiest experts",
    "dispatch": "sends tokens to experts",
    "combine": "gets experts' outputs back",
    "collective": "exchanges activations between tensor- and context-parallel ranks",
    "gradients": "adds up gradients",
    "optimizer": "updates weights",
}
"""Parts of a step that do not compute the model, as a sentence says them."""
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


def write_band(name: str, value: float, facts: Mapping[str, Any]) -> str:
    """Write the ends of a metric's 80 % band; empty for one without.

    >>> write_band("step_s", 2.0, {"band": [0.9, 1.25], "currency": "USD"})
    '1.8 s to 2.5 s'
    """
    low, high = facts["band"]
    if not math.isfinite(value) or name not in _RATES + _DURATIONS:
        return ""
    ends = (value / high, value / low) if name in _RATES else (value * low, value * high)
    return " to ".join(write_metric(name, end, facts["currency"]) for end in ends)


def tell_training(
    summary: pd.DataFrame, deployments: Mapping[str, Mapping[str, Any]]
) -> tuple[str, list[str]]:
    """Tell a headline, and reasons: what each deployment needs in all, and what its step is spent
    on besides computing.
    """
    rows = {str(row["deployment"]): row for row in summary.to_dict("records")}
    rates = {name: float(row["tokens_per_s_per_gpu"]) for name, row in rows.items()}
    is_to_loss = any("loss" in facts for facts in deployments.values())
    headline = _tell_best_to_loss(rows, deployments) if is_to_loss else _tell_headline(rates)
    return headline, [
        *_tell_quality(rows, deployments),
        *_tell_whole(rows, deployments),
        *(_tell_step(name, deployments[name]) for name in rows),
    ]


def _tell_headline(rates: Mapping[str, float]) -> str:
    best, *others = sorted(rates, key=lambda name: -rates[name])
    if not others:
        return f"{best} trains {number(rates[best])} tokens/s on each GPU."
    if rates[best] < rates[others[0]] * (1 + _ADJACENT):
        return (
            f"{best} and {others[0]} train about equally many tokens/s on each GPU "
            f"({number(rates[best])})."
        )
    ratios = " and ".join(
        f"{rates[best] / rates[name]:.2f}{TIMES} those of {name}" for name in others
    )
    return f"{best} trains most tokens/s on each GPU: {number(rates[best])}, {ratios}."


def _tell_best_to_loss(
    rows: Mapping[str, Mapping[Any, Any]], deployments: Mapping[str, Mapping[str, Any]]
) -> str:
    """Tell which deployment needs the fewest GPU-hours to the loss."""
    hours = {name: float(row["gpu_hours"]) for name, row in rows.items()}
    best, *others = sorted(hours, key=lambda name: hours[name])
    told = [
        f"{hours[name] / hours[best]:.2f}{TIMES} as many for {name}"
        if math.isfinite(hours[name])
        else f"{name} never gets there"
        for name in others
    ]
    behind = f": {', '.join(told)}" if told else ""
    loss = next(facts["loss"] for facts in deployments.values())
    fewest = number(hours[best])
    return f"{best} reaches a loss of {loss:.3f} in the fewest GPU-hours, {fewest}{behind}."


def _tell_quality(
    rows: Mapping[str, Mapping[Any, Any]], deployments: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Tell the tokens that each deployment needs to the same loss, and how far laws differ."""
    for name, row in rows.items():
        facts, tokens = deployments[name], float(row["tokens"])
        if "loss" not in facts:
            continue
        found = [math.inf if one is None else one for one in facts["tokens_by_law"].values()]
        spread = ""
        if len(set(found)) > 1:
            low, high = min(found), max(found)
            ends = [parameters(one) if math.isfinite(one) else "never" for one in (low, high)]
            if ends[0] != ends[1]:
                spread = f"; {len(found)} laws say {ends[0]} to {ends[1]}"
        if math.isfinite(tokens):
            yield (
                f"{name} has a loss of {facts['loss']:.3f} after {parameters(tokens)} tokens"
                f"{spread}."
            )
        else:
            yield f"{name} never has a loss of {facts['loss']:.3f}{spread}."


def _tell_whole(
    rows: Mapping[str, Mapping[Any, Any]], deployments: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Tell days and cost, where the number of tokens is known."""
    for name, row in rows.items():
        facts, days = deployments[name], float(row["days"])
        if not math.isfinite(days):
            continue
        cost = write_metric("cost", float(row["cost"]), facts["currency"])
        paid = "" if cost == UNDEFINED else f" for {cost}"
        band = write_band("days", days, facts)
        if facts.get("later_steps"):
            yield _tell_later(name, facts)
        yield (
            f"{name} takes {number(days)} days ({band}) on {facts['num_gpus']:,} GPUs{paid}, "
            f"{percent(facts['uptime'])} of the time training."
        )


def _tell_later(name: str, facts: Mapping[str, Any]) -> str:
    """Tell how the steps of a deployment change in the course of the training; what else is said
    of its steps is of the first ones.
    """
    told = [
        f"{seconds(one['step_s'])} after {parameters(one['after_tokens'])} tokens"
        for one in facts["later_steps"]
    ]
    return f"A step of {name} takes {' and '.join(told)}; rates and parts are of the first ones."


def _tell_step(name: str, facts: Mapping[str, Any]) -> str:
    """Tell where a step's time goes besides the model's computation, the largest part first."""
    parts: dict[str, float] = facts["parts_s"]
    total = sum(parts.values())
    computed = sum(parts[part] for part in ("attention", "dense", "experts")) / total
    causes = sorted(_CAUSES, key=lambda part: -parts[part])
    told = [
        f"{percent(parts[part] / total)} {_CAUSES[part]}"
        for part in causes
        if parts[part] > _LEAST_CAUSE * total
    ]
    more = f"; {', '.join(told)}" if told else ""
    return f"A GPU of {name} computes for {percent(computed)} of a step{more}."
