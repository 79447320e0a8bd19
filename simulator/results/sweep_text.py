"""What a sweep says in sentences: who serves the traffic better at which settings, and how far
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
"""Spread of a figure over its mean from which on a single seed says little."""
_SPREAD_OF = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "output_tokens_per_s")


def value_text(value: Any) -> str:
    """A swept value as people read it.

    >>> value_text(2.0), value_text("vllm"), value_text({"kind": "zipf"})
    ('2.0', 'vllm', '{"kind": "zipf"}')
    """
    return value if isinstance(value, str) else json.dumps(value, default=str)


def setting_text(setting: Mapping[str, Any]) -> str:
    """A setting by the last part of each key.

    >>> setting_text({"workload.rate_scale": 2, "deployments.0.engine": "vllm"})
    'rate_scale = 2, engine = vllm'
    """
    return ", ".join(
        f"{key.rpartition('.')[2]} = {value_text(value)}" for key, value in setting.items()
    )


def tell_sweep(sweep: Sweep) -> tuple[str, list[str]]:
    """A headline, and what else there is to say."""
    reasons = []
    refused = [point for point in sweep.run["points"] if "refusal" in point]
    if refused:
        reasons.append(
            f"{len(refused):,} of {len(sweep.run['points']):,} points are refused, the first since "
            f"{refused[0]['refusal']}"
        )
    if (spread := _tell_spread(sweep)) is not None:
        reasons.append(spread)
    if len(sweep.deployments) < 2:
        return _tell_range(sweep), reasons
    winners = {repr(setting): _winners_at(sweep, setting) for setting in sweep.settings}
    told = [
        f"{setting_text(setting) or 'as written'}: {_tell_winners(winners[repr(setting)])}"
        for setting in sweep.settings
        if winners[repr(setting)]
    ]
    sure = {next(iter(own)) for own in winners.values() if len(own) == 1}
    count = sum(bool(own) for own in winners.values())
    if len(sure) == 1 and all(len(own) <= 1 for own in winners.values()):
        (best,) = sure
        where = "every setting" if count > 1 else "every seed"
        headline = (
            f"At {where} it is a tie or a trade-off."
            if best == _NONE
            else f"{best} serves this traffic better at {where}."
        )
        return headline, reasons
    return "Which deployment serves the traffic better depends on the setting.", [*told, *reasons]


_NONE = "none is better (a tie or a trade-off)"


def _winners_at(sweep: Sweep, setting: Mapping[str, Any]) -> dict[str, int]:
    """For how many seeds each deployment is better at a setting."""
    found: dict[str, int] = {}
    for point in sweep.points_at(setting):
        if "refusal" not in point:
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
    """The figure that seeds differ in most, over all settings."""
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
    """From where to where the medians of a single deployment move."""
    pieces = []
    for name in ("ttft_p50_s", "tpot_p50_s"):
        values = sweep.table[name].dropna()
        if len(values):
            low, high = (metric(name, float(edge), "") for edge in (values.min(), values.max()))
            pieces.append(f"{METRICS[name].label} from {low} to {high}")
    return f"{sweep.deployments[0]}: {' and '.join(pieces)}."
