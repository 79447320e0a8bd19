"""The answer in a sentence: which deployment serves the traffic better, by how much, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from simulator.records import STEP_PHASES
from simulator.results import Results

_ATTAINMENT_STEP = 0.005
"""Shares of requests in time that differ by less than half a percentage point count as equal."""
_LATENCY_STEP = 1.02
"""Latencies within 2 % count as equal: closer than the fidelities agree among themselves."""
_PHASE_WORDS = {
    "attention": "attention",
    "dense": "dense blocks",
    "experts": "routed experts",
    "dispatch": "sending tokens to experts",
    "combine": "bringing results back",
    "wait": "waiting for the slowest rank",
    "collective": "all-reduces",
    "overhead": "the engine's own overhead",
}


def verdict(results: Results) -> dict[str, Any]:
    """``{"headline", "reasons", "winner"}`` from a run's summary and steps; the winner is ``None`` for a tie or a single deployment."""
    rows = {str(row["deployment"]): row for _, row in results.summary.iterrows()}
    if len(rows) == 1:
        name, row = next(iter(rows.items()))
        return {"headline": f"{name} serves the traffic with {_numbers(row)}.", "reasons": _inside(results, rows), "winner": None}
    ranked = sorted(rows, key=lambda name: _order(rows[name]))
    best, second = ranked[0], ranked[1]
    headline, winner = _compare(best, rows[best], second, rows[second])
    if len(ranked) > 2:
        headline += f" Behind them: {', '.join(ranked[2:])}."
    return {
        "headline": headline,
        "reasons": [*_costs(best, rows[best], second, rows[second]), *_inside(results, rows)],
        "winner": winner,
    }


def _order(row: pd.Series) -> tuple[float, float]:
    """Share of requests in time, then latency: the geometric mean of the medians of TTFT and TPOT."""
    attainment = 0.0 if np.isnan(row["slo_attainment"]) else round(float(row["slo_attainment"]) / _ATTAINMENT_STEP)
    medians = [float(row[key]) for key in ("ttft_p50_s", "tpot_p50_s") if float(row[key]) > 0]
    return -attainment, float(np.exp(np.mean(np.log(medians)))) if medians else 0.0


def _compare(best: str, first: pd.Series, other: str, second: pd.Series) -> tuple[str, str | None]:
    attained, missed = float(first["slo_attainment"]), float(second["slo_attainment"])
    if not np.isnan(attained) and attained - missed >= _ATTAINMENT_STEP:
        latency = f"TTFT p50 {_pair(first, second, 'ttft_p50_s')}, TPOT p50 {_pair(first, second, 'tpot_p50_s')}"
        return (
            f"{best} serves this traffic better: {attained:.1%} of requests meet the targets against {missed:.1%} of {other} ({latency}).",
            best,
        )
    ttft = float(second["ttft_p50_s"]) / float(first["ttft_p50_s"])
    tpot = float(second["tpot_p50_s"]) / float(first["tpot_p50_s"])
    tpot = 1.0 if np.isnan(tpot) else tpot
    both = "" if np.isnan(attained) else f" Both meet the targets for {min(attained, missed):.1%} of requests or more."
    numbers = f"TPOT p50 {_pair(first, second, 'tpot_p50_s')}, TTFT p50 {_pair(first, second, 'ttft_p50_s')}"
    if max(ttft, tpot) < _LATENCY_STEP:
        return f"{best} and {other} serve this traffic equally well ({numbers}).{both}", None
    if min(ttft, tpot) < 1 / _LATENCY_STEP:
        sooner, faster = (best, other) if ttft > tpot else (other, best)
        return (
            f"It is a trade-off: {sooner} gives the first token sooner, {faster} the rest faster ({best} against {other}: {numbers}).{both}",
            None,
        )
    return (
        f"{best} serves this traffic better: {max(ttft, tpot):.2f}x lower {'TPOT' if tpot >= ttft else 'TTFT'} than {other} ({numbers}).{both}",
        best,
    )


def _pair(first: pd.Series, second: pd.Series, key: str) -> str:
    return f"{seconds_text(float(first[key]))} against {seconds_text(float(second[key]))}"


def _numbers(row: pd.Series) -> str:
    return (
        f"TTFT p50 {seconds_text(float(row['ttft_p50_s']))}, TPOT p50 {seconds_text(float(row['tpot_p50_s']))} and "
        f"{float(row['output_tokens_per_s']):,.0f} output tokens/s on {int(row['num_gpus'])} GPUs"
    )


def _costs(best: str, first: pd.Series, other: str, second: pd.Series) -> list[str]:
    reasons = []
    if first["num_gpus"] != second["num_gpus"]:
        reasons.append(f"Not the same hardware: {best} has {int(first['num_gpus'])} GPUs, {other} has {int(second['num_gpus'])}.")
    reasons.append(
        f"Room to grow: a replica of {best} is busy {float(first['utilisation']):.0%} of the time, one of {other} {float(second['utilisation']):.0%}; "
        "the lower, the more traffic fits before queues build up."
        if max(first["utilisation"], second["utilisation"]) < 0.995
        else f"At least one is saturated: a replica of {best} is busy {float(first['utilisation']):.0%} of the time, one of {other} "
        f"{float(second['utilisation']):.0%}; output {float(first['output_tokens_per_s']):,.0f} against {float(second['output_tokens_per_s']):,.0f} tokens/s."
    )
    return reasons


def _inside(results: Results, rows: dict[str, pd.Series]) -> list[str]:
    """For each deployment, where the time of its steps goes."""
    reasons = []
    for name, row in rows.items():
        facts = results.run["deployments"][name]
        steps = results.steps[results.steps["deployment"] == name]
        decodes = steps[(steps["prefill_tokens"] == 0) & (steps["decode_tokens"] > 0)]
        step = (
            f"a decode step takes {seconds_text(float(decodes['duration_s'].mean()))} for {float(decodes['decode_tokens'].mean()):.0f} sequences"
            if len(decodes)
            else "it never runs a pure decode step"
        )
        shares = sorted(((float(row[f"{phase}_share"]), phase) for phase in STEP_PHASES), reverse=True)[:3]
        spent = ", ".join(f"{_PHASE_WORDS[phase]} {share:.0%}" for share, phase in shares)
        active, total = facts["active_parameters"] / 1e9, facts["total_parameters"] / 1e9
        size = (
            f"uses {active:.3g} B of its {total:.3g} B parameters for a token"
            if facts["is_moe"]
            else f"uses all its {total:.3g} B parameters for every token"
        )
        skew = (
            f"; its busiest rank has {float(row['load_imbalance']):.2f} times the mean load"
            if facts["is_moe"] and facts["layout"].find("EP ") >= 0
            else ""
        )
        reasons.append(f"{name} {size}: {step}. Of all step time: {spent}{skew}.")
    return reasons


def seconds_text(seconds: float) -> str:
    """Seconds for people: ``8.04 ms``, ``1.20 s``."""
    if np.isnan(seconds):
        return "undefined"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
