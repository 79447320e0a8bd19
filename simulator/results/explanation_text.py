"""Sentences and rows on where the time of a token goes, and what limits it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

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
from simulator.results.formats import heading_unit, metric, percent, seconds_text
from simulator.results.metrics import METRICS

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
_QUEUE_WORDS = {
    "none": "a step to end",
    "max_sequences": "one of a rank's places (max_sequences)",
    "kv_cache": "blocks of the KV cache",
    "token_budget": "a part of a step's tokens (token_budget)",
    "held_back": "more prompts to come",
}
"""Words for what requests wait for, by :data:`~simulator.results.tables.ADMISSION_LIMITS`."""


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


def tell_token(short: str, waterfall: Waterfall) -> str:
    """Say how long a token takes, and what limits it most."""
    kind = "An output token" if waterfall.token == "output" else "A prompt token"
    mean = (
        "mean over all but each request's first"
        if waterfall.token == "output"
        else "in a replica's steps, mean over all"
    )
    return (
        f"{kind} of {short} takes {seconds_text(waterfall.token_s)}, {mean}: "
        f"{LIMITS[waterfall.binding]} is {percent(waterfall.limits[waterfall.binding])} of it."
    )


def list_pieces(waterfall: Waterfall) -> Iterator[tuple[str, str, str]]:
    """List the pieces of a token's time, with a heading and the sum: words, time and share."""
    size, unit = (1e-3, "ms") if waterfall.token_s >= _LEAST_MS else (1e-6, "us")
    yield "Where it goes", f"time ({unit})", "share"
    for name, seconds in waterfall.pieces.items():
        share = seconds / waterfall.token_s
        if share >= LEAST_SHOWN:
            yield PIECES[name], f"{seconds / size:,.3f}", f"{100 * share:.1f} %"
    yield "all", f"{waterfall.token_s / size:,.3f}", "100.0 %"


def tell_limits(explained: Explained, waterfall: Waterfall) -> Iterator[str]:
    """Describe the limits, the layers and ranks that are uneven, what overlap hides, and the
    queue.
    """
    named = [
        f"{LIMITS[limit]} {percent(share)}"
        for limit, share in waterfall.limits.items()
        if share >= _LEAST_LIMIT
    ]
    yield f"Limits, by their share of the time: {', '.join(named)}."
    uneven = waterfall.pieces.get("chance", 0.0) + waterfall.pieces.get("skew", 0.0)
    if uneven > _LEAST_UNEVEN * waterfall.token_s:
        yield _tell_uneven(waterfall, uneven)
    if waterfall.hidden_s > LEAST_SHOWN * waterfall.token_s:
        hidden = seconds_text(waterfall.hidden_s)
        yield f"Another {hidden} of exchanges pass behind computation and cost nothing."
    if explained.queue.share > _LEAST_QUEUE:
        wait = _QUEUE_WORDS[explained.queue.limited_by]
        yield (
            f"Before its first step a request waits for {percent(explained.queue.share)} of its "
            f"time, mostly for {wait}."
        )


def _tell_uneven(waterfall: Waterfall, uneven_s: float) -> str:
    """Name the layers and the rank that make others wait."""
    order = np.argsort(waterfall.layers_s, kind="stable")[::-1][:_NUM_NAMED]
    layers = ", ".join(
        f"{layer} ({percent(waterfall.layers_s[layer] / uneven_s)})" for layer in order.tolist()
    )
    rank = int(np.argmax(waterfall.ranks))
    return (
        f"Uneven experts make ranks wait longest in MoE layers {layers} of "
        f"{len(waterfall.layers_s)}; rank {rank} computes them for {waterfall.ranks[rank]:.2f} "
        "times as long as the mean rank."
    )


def tell_changes(changes: Changes) -> Iterator[str]:
    """Describe the changes that were tried: a headline, the best ones a sentence each with the
    override that makes them, and the others together.
    """
    label = METRICS[changes.metric].label
    stretch = f"the first {changes.num_requests:,} requests" if changes.stretch else "all requests"
    yield (
        f"What would help most, each simulated by itself with {stretch}, by {label}, "
        f"{_write(changes, changes.value)} as it is; gains above 0 are better:"
    )
    if changes.stretch:
        yield f"To repeat one, add {_list_flags(changes.stretch)} and what stands behind it."
    sure = [one for one in changes.tried if one.is_sure]
    yield from (_tell_tried(changes, one) for one in sure)
    if not sure:
        yield "Nothing that was tried helps for sure."
    noise = [one for one in changes.tried if one.band is not None and not one.is_sure]
    others = [one for one in changes.tried if one.gain is not None and one.band is None]
    least = percent(LEAST_GAIN)
    groups = {
        "Within the noise": noise,
        f"Within {least}": [one for one in others if abs(one.gain or 0.0) < LEAST_GAIN],
        "Worse": [one for one in others if (one.gain or 0.0) <= -LEAST_GAIN],
    }
    for name, group in groups.items():
        if group:
            yield f"{name}: {', '.join(map(_name_tried, group))}."
    refused = [f"{one.text} ({one.reason})" for one in changes.tried if one.reason]
    if refused:
        yield f"Not simulated: {'; '.join(refused)}."


def _tell_tried(changes: Changes, tried: Tried) -> str:
    value = _write(changes, tried.value or 0.0)
    return f"{_name_tried(tried)}: {value}, by {_list_flags(tried.overrides)}"


def _name_tried(tried: Tried) -> str:
    """Name a change with its gain, and with the gain's band where it has one."""
    band = ""
    if tried.band is not None:
        low, high = map(_write_gain, tried.band)
        band = f", 80 % band {low} to {high} %"
    return f"{tried.text} ({_write_gain(tried.gain or 0.0)} %{band})"


def _write_gain(gain: float) -> str:
    return f"{round(100 * gain, 1) + 0.0:+.1f}"


def _list_flags(overrides: Sequence[str]) -> str:
    """Write overrides as flags of the command line."""
    return " ".join(f"--set {shlex.quote(one)}" for one in overrides)


def _write(changes: Changes, value: float) -> str:
    unit = heading_unit(changes.metric)
    return f"{metric(changes.metric, value, '')} {unit}".rstrip()
