"""Findings and rows on where the time of a token goes, and what limits it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from simulator.base.findings import Finding
from simulator.base.formats import gain_text
from simulator.results.explained import (
    LEAST_GAIN,
    LIMITS,
    PIECES,
    Changes,
    Explained,
    Queue,
    Tried,
    Waterfall,
)
from simulator.results.metrics import METRICS, heading_unit, metric

LEAST_SHOWN = 5e-4
"""Share of a token's time below which a piece is not shown: it would read as 0.0 %."""
_LEAST_MS = 1e-3
"""Seconds from which a token's time is shown in milliseconds."""
_LEAST_LIMIT = 0.02
"""Share below which a limit is not named."""
_NUM_NAMED = 3
"""MoE layers that are named."""
_LEAST_UNEVEN = 0.01
"""Share of a token's time in uneven experts above which layers and ranks are named."""
_LEAST_QUEUE = 0.01
"""Share of a request's time in the queue above which it is mentioned."""


def read_explanation(run: Mapping[str, Any]) -> dict[str, Explained]:
    """Read the explanation of a run's deployments; empty where it was not asked for."""
    return {
        name: Explained(
            tuple(Waterfall(**waterfall) for waterfall in entry["waterfalls"]),
            Queue(**entry["queue"]),
            _read_changes(entry["changes"]),
        )
        for name, entry in (run.get("explanation") or {}).items()
    }


def _read_changes(entry: Mapping[str, Any]) -> Changes:
    return Changes(**{**entry, "tried": [Tried(**one) for one in entry["tried"]]})


def find_token(short: str, waterfall: Waterfall) -> Finding:
    """Find how long a token takes, and what limits it most."""
    return Finding("token.time", name=short, pool=waterfall, limit=LIMITS[waterfall.binding])


def list_pieces(waterfall: Waterfall) -> Iterator[tuple[str, ...]]:
    """List the pieces of a token's time, with a heading and the sum: words, time, the part of it
    that is of prompts of other requests where there are some, and share.
    """
    size, unit = (1e-3, "ms") if waterfall.token_s >= _LEAST_MS else (1e-6, "us")
    has_prompts = waterfall.prompts_s >= LEAST_SHOWN * waterfall.token_s

    def write(words: str, seconds: float, prompts_s: float, share: float) -> tuple[str, ...]:
        parts = [seconds, prompts_s] if has_prompts else [seconds]
        return words, *(f"{part / size:,.3f}" for part in parts), f"{100 * share:.1f} %"

    of_prompts = (f"for prompts ({unit})",) if has_prompts else ()
    yield "Where it goes", f"time ({unit})", *of_prompts, "share"
    for name, seconds in waterfall.pieces.items():
        share = seconds / waterfall.token_s
        if share >= LEAST_SHOWN:
            yield write(PIECES[name], seconds, waterfall.prompts[name], share)
    yield write("all", waterfall.token_s, waterfall.prompts_s, 1.0)


def list_limits(explained: Explained, waterfall: Waterfall) -> Iterator[tuple[str, ...]]:
    """List the limits of a token's time, with a heading: words, share, what the resource twice as
    fast saves in the same steps, and what it gains by simulation.
    """
    label = METRICS[explained.changes.metric].label
    gains = {one.resource: one.gain for one in explained.changes.tried if one.resource}
    yield "Limited by", "share", "twice as fast saves", f"{label} simulated"
    for limit, share in waterfall.limits.items():
        doubled, gain = waterfall.doubled.get(limit), gains.get(limit)
        if share >= _LEAST_LIMIT or (gain or 0.0) > _LEAST_LIMIT:
            yield (
                LIMITS[limit],
                f"{100 * share:.1f} %",
                "-" if doubled is None else f"{100 * doubled:.1f} %",
                "-" if gain is None else f"{gain_text(gain)} %",
            )


def describe_limits(explained: Explained, waterfall: Waterfall) -> Iterator[Finding]:
    """Find prompts of other requests, what queues make of a faster resource, the layers and ranks
    that are uneven, what overlap hides, and the queue.
    """
    total_s, prompts_s = waterfall.token_s, waterfall.prompts_s
    if prompts_s >= _LEAST_LIMIT * total_s:
        ordered = sorted(waterfall.prompts.items(), key=lambda entry: -entry[1])
        parts = {PIECES[name]: part_s / total_s for name, part_s in ordered}
        parts = {words: part for words, part in parts.items() if part >= _LEAST_UNEVEN}
        yield Finding("token.prompts", share=prompts_s / total_s, parts=parts)
    gains = {one.resource: one.gain or 0.0 for one in explained.changes.tried if one.resource}
    if any(gains.get(name, 0.0) > one + _LEAST_LIMIT for name, one in waterfall.doubled.items()):
        yield Finding("token.queues_add")
    uneven_s = waterfall.pieces.get("chance", 0.0) + waterfall.pieces.get("skew", 0.0)
    if uneven_s > _LEAST_UNEVEN * total_s:
        yield _find_uneven(waterfall, uneven_s)
    if waterfall.hidden_s > LEAST_SHOWN * total_s:
        yield Finding("token.hidden", hidden_s=waterfall.hidden_s)
    if explained.queue.share > _LEAST_QUEUE:
        yield Finding("token.queue", queue=explained.queue)


def _find_uneven(waterfall: Waterfall, uneven_s: float) -> Finding:
    """Find the layers and the rank that make others wait."""
    layers_s, rank = waterfall.layers_s, int(np.argmax(waterfall.ranks))
    order = np.argsort(layers_s, kind="stable")[::-1][:_NUM_NAMED].tolist()
    return Finding(
        "token.uneven",
        layers={layer: layers_s[layer] / uneven_s for layer in order},
        num_layers=len(layers_s),
        rank=rank,
        ratio=waterfall.ranks[rank],
    )


def find_help(changes: Changes) -> Iterator[Finding]:
    """Find what would help of what was tried: a headline, the best changes each with the override
    that makes it, and the others together.
    """
    yield Finding(
        "help.headline",
        stretch=changes.stretch,
        requests=changes.num_requests,
        label=METRICS[changes.metric].label,
        value=_write(changes, changes.value),
    )
    if changes.stretch:
        yield Finding("help.repeat", flags=_list_flags(changes.stretch))
    sure = [one for one in changes.tried if one.is_sure]
    for one in sure:
        value, flags = _write(changes, one.value or 0.0), _list_flags(one.overrides)
        yield Finding("help.tried", change=_find_gain(one), value=value, flags=flags)
    if not sure:
        yield Finding("help.nothing")
    tried = [one for one in changes.tried if one.gain is not None]
    if noise := [_find_gain(one) for one in tried if one.band is not None and not one.is_sure]:
        yield Finding("help.noise", changes=noise)
    others = [(_find_gain(one), one.gain or 0.0) for one in tried if one.band is None]
    if little := [found for found, gain in others if abs(gain) < LEAST_GAIN]:
        yield Finding("help.little", least=LEAST_GAIN, changes=little)
    if worse := [found for found, gain in others if gain <= -LEAST_GAIN]:
        yield Finding("help.worse", changes=worse)
    if refused := [(_name_change(one), one.reason) for one in changes.tried if one.reason]:
        yield Finding("help.refused", changes=refused)


def _find_gain(tried: Tried) -> Finding:
    """Find the gain of a change, with its band where it has one."""
    return Finding("help.gain", change=_name_change(tried), gain=tried.gain or 0.0, band=tried.band)


def _name_change(tried: Tried) -> Finding:
    """Name a change, and whether the deployment's engine has no way to do it."""
    return Finding("help.change", text=tried.text, offered_by=tried.offered_by)


def _list_flags(overrides: Sequence[str]) -> str:
    """Write overrides as flags of the command line."""
    return " ".join(f"--set {shlex.quote(one)}" for one in overrides)


def _write(changes: Changes, value: float) -> str:
    unit = heading_unit(changes.metric)
    return f"{metric(changes.metric, value, '')} {unit}".rstrip()
