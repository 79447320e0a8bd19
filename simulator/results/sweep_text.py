"""Sentences on a sweep: which deployment serves the traffic better at which settings, and how far
seeds differ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from simulator.results.formats import metric
from simulator.results.metrics import METRICS
from simulator.results.sweep import Sweep, measure_spread

_WIDE = 0.05
"""Spread of a figure over its mean above which a single seed says little."""
_MOST_TOLD = 12
"""Most settings whose winner is stated one by one."""
_NONE = "none is better (a tie or a trade-off)"
_SPREAD_OF = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "output_tokens_per_s")


def value_text(value: Any) -> str:
    """Write a swept value for people.

    >>> value_text(2.0), value_text("vllm"), value_text({"kind": "zipf"})
    ('2.0', 'vllm', '{"kind": "zipf"}')
    """
    return value if isinstance(value, str) else json.dumps(value, default=str)


def setting_text(setting: Mapping[str, Any]) -> str:
    """Name a setting by the last part of each key, or by the whole key where that is ambiguous.

    >>> setting_text({"workload.rate_scale": 2, "deployments.0.engine": "vllm"})
    'rate_scale = 2, engine = vllm'
    >>> setting_text({"deployments.0.engine": "vllm", "deployments.1.engine": "sglang"})
    'deployments.0.engine = vllm, deployments.1.engine = sglang'
    """
    ends = {key: key.rpartition(".")[2] for key in setting}
    names = list(ends.values())
    return ", ".join(
        f"{key if names.count(end) > 1 or end.isdecimal() else end} = {value_text(setting[key])}"
        for key, end in ends.items()
    )


def tell_sweep(sweep: Sweep) -> tuple[str, list[str]]:
    """Write a headline, and further sentences."""
    reasons = []
    refused = [point for point in sweep.run["points"] if "refusal" in point]
    if refused:
        reasons.append(
            f"{len(refused):,} of {len(sweep.run['points']):,} points are refused, the first since "
            f"{refused[0]['refusal']}"
        )
    if (spread := _tell_spread(sweep)) is not None:
        reasons.append(spread)
    winners = [(setting, _winners_at(sweep, setting)) for setting in sweep.settings]
    winners = [(setting, own) for setting, own in winners if own]
    if not winners:
        return _tell_range(sweep), reasons
    if len(winners) == 1:
        return _tell_seeds(winners[0][1]), reasons
    if len({tuple(own) for _, own in winners}) == 1 and len(winners[0][1]) == 1:
        left_out = " that was not refused" if len(winners) < len(sweep.settings) else ""
        return _tell_best(next(iter(winners[0][1])), f"at every setting{left_out}"), reasons
    told = [f"{setting_text(setting)}: {_tell_winners(own)}" for setting, own in winners]
    if len(told) > _MOST_TOLD:
        told[_MOST_TOLD:] = [f"{len(told) - _MOST_TOLD:,} more settings are in the table."]
    return (
        "Which deployment serves the traffic better depends on the setting.",
        [*told, *reasons],
    )


def _tell_seeds(winners: Mapping[str, int]) -> str:
    """Write a headline where there is one setting."""
    total = sum(winners.values())
    if len(winners) > 1:
        return (
            "Which deployment serves the traffic better depends on the seed: "
            f"{_tell_winners(winners)}"
        )
    return _tell_best(next(iter(winners)), f"with all {total} seeds" if total > 1 else "")


def _tell_best(best: str, where: str) -> str:
    said = "It is a tie or a trade-off" if best == _NONE else f"{best} serves this traffic better"
    return f"{said} {where}".rstrip() + "."


def _winners_at(sweep: Sweep, setting: Mapping[str, Any]) -> dict[str, int]:
    """Count the seeds with which each deployment is better at a setting; empty where there is one
    deployment.
    """
    found: dict[str, int] = {}
    for point in sweep.points_at(setting):
        rivals = (sweep.table["point"] == point["point"]).sum()
        if "refusal" not in point and rivals > 1:
            winner = point["winner"] or _NONE
            found[winner] = found.get(winner, 0) + 1
    return found


def _tell_winners(winners: Mapping[str, int]) -> str:
    total = sum(winners.values())
    if len(winners) == 1:
        return f"{next(iter(winners))}."
    counted = sorted(winners.items(), key=lambda one: -one[1])
    return ", ".join(f"{name} for {count} of {total} seeds" for name, count in counted) + "."


def _tell_spread(sweep: Sweep) -> str | None:
    """Describe the figure that seeds differ in most, over all settings."""
    widest = (0.0, "")
    for setting in sweep.settings:
        rows = sweep.rows_at(setting)
        for deployment, own in rows.groupby("deployment", sort=False):
            for name in _SPREAD_OF:
                mean, spread, count = measure_spread(own, name)
                if math.isfinite(spread) and mean > 0 and spread / mean > widest[0]:
                    at = f" at {setting_text(setting)}" if setting else ""
                    what = f"{METRICS[name].label} of {deployment}{at}, over {count} seeds"
                    widest = (spread / mean, what)
    share, what = widest
    if not what:
        return None
    if share < _WIDE:
        return f"Seeds differ by at most {100 * share:.1f} % of their mean ({what})."
    return (
        f"Seeds differ by up to {100 * share:.0f} % of their mean ({what}): a single one says "
        "little of that."
    )


def _tell_range(sweep: Sweep) -> str:
    """Describe the range of the medians of a single deployment."""
    pieces = []
    for name in ("ttft_p50_s", "tpot_p50_s"):
        values = sweep.table[name].dropna()
        if len(values):
            low, high = (metric(name, float(edge), "") for edge in (values.min(), values.max()))
            pieces.append(f"{METRICS[name].label} from {low} to {high}")
    return f"{sweep.deployments[0]}: {' and '.join(pieces)}."
