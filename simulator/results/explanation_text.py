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
                "-" if gain is None else f"{_write_gain(gain)} %",
            )


def tell_limits(explained: Explained, waterfall: Waterfall) -> Iterator[str]:
    """Describe prompts of other requests, what queues make of a faster resource, the layers and
    ranks that are uneven, what overlap hides, and the queue.
    """
    if waterfall.prompts_s >= _LEAST_LIMIT * waterfall.token_s:
        yield _tell_prompts(waterfall)
    gains = {one.resource: one.gain or 0.0 for one in explained.changes.tried if one.resource}
    if any(gains.get(name, 0.0) > one + _LEAST_LIMIT for name, one in waterfall.doubled.items()):
        yield (
            "Where a resource gains more by simulation than it saves in the same steps, queues add "
            "the rest: faster steps hold fewer requests and fewer prompts."
        )
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


def _tell_prompts(waterfall: Waterfall) -> str:
    """Divide the time of prompts of other requests, the largest part first."""
    ordered = sorted(waterfall.prompts.items(), key=lambda entry: -entry[1])
    named = [
        f"{PIECES[name]} {100 * part_s / waterfall.token_s:.1f} %"
        for name, part_s in ordered
        if part_s >= _LEAST_UNEVEN * waterfall.token_s
    ]
    share = percent(waterfall.prompts_s / waterfall.token_s)
    return f"Prompts of other requests are {share} of it: {', '.join(named)}."


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
    refused = [f"{_name_change(one)} ({one.reason})" for one in changes.tried if one.reason]
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
    return f"{_name_change(tried)} ({_write_gain(tried.gain or 0.0)} %{band})"


def _name_change(tried: Tried) -> str:
    """Name a change, and whether the deployment's engine has no way to do it."""
    if tried.offered_by is None:
        return tried.text
    if not tried.offered_by:
        return f"{tried.text}, which no engine offers"
    verb = "offers" if len(tried.offered_by) == 1 else "offer"
    return f"{tried.text}, which {' and '.join(tried.offered_by)} {verb}, not this engine"


def _write_gain(gain: float) -> str:
    return f"{round(100 * gain, 1) + 0.0:+.1f}"


def _list_flags(overrides: Sequence[str]) -> str:
    """Write overrides as flags of the command line."""
    return " ".join(f"--set {shlex.quote(one)}" for one in overrides)


def _write(changes: Changes, value: float) -> str:
    unit = heading_unit(changes.metric)
    return f"{metric(changes.metric, value, '')} {unit}".rstrip()
