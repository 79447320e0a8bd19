"""Requests of a workload, from its generator or its trace."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from simulator.base import plugins
from simulator.base.contracts import ask, is_array
from simulator.base.data import available_files, find_file, load_once
from simulator.base.errors import UserError
from simulator.base.frozen import Policy, validate
from simulator.base.home import fetch, fetch_files
from simulator.base.quantities import MOST_REQUESTS
from simulator.base.reading import read_toml
from simulator.base.streams import open_stream
from simulator.config.workload import (
    DomainMix,
    DomainsSpec,
    GeneratorSpec,
    LogSpec,
    NamedWorkloadSpec,
    WorkloadSpec,
)
from simulator.workload.arrivals import ArrivalProcess
from simulator.workload.lengths import LengthDistribution
from simulator.workload.reading import check_bounds, read_mixes, read_trace
from simulator.workload.traces import RequestTrace, take_requests

_HOUR_S = 3600.0
"""Seconds of an hour."""
_MOST_HOURS = 24 * 366
"""Most hours that are listed: a year; a longer trace has its times in another unit."""


def describe_hours(trace: RequestTrace) -> dict[str, object]:
    """Count requests by hour and find the busiest hour, for people.

    Keys: ``requests_by_hour``, one number for each hour from the first request on, the last of
    which is not whole; ``busiest_hour``: ``{start_s, num_requests, rate_per_s}`` of the 3,600 s
    from a request on that have the most. Empty without arrival times.
    """
    if not trace.has_arrivals or trace.concurrency is not None or not trace.num_requests:
        return {}
    since_s = trace.arrival_s - trace.arrival_s[0]
    hours = np.arange(min(int(since_s[-1] // _HOUR_S) + 1, _MOST_HOURS) + 1)
    by_hour = np.diff(np.searchsorted(since_s, hours * _HOUR_S))
    counts = np.searchsorted(since_s, since_s + _HOUR_S) - np.arange(len(since_s))
    first = int(np.argmax(counts))
    lasts_s = min(_HOUR_S, float(since_s[-1]))
    return {
        "requests_by_hour": by_hour.tolist(),
        "busiest_hour": {
            "start_s": float(since_s[first]),
            "num_requests": int(counts[first]),
            "rate_per_s": float(counts[first] / lasts_s) if lasts_s else None,
        },
    }


_NEIGHBOURS = 64
"""Number of recorded requests around a moment that a request drawn for it may resemble: enough to
mix lengths, and few minutes of any published trace."""


def thicken(trace: RequestTrace, factor: float, rng: np.random.Generator) -> RequestTrace:
    """Make a trace with ``factor`` times as many requests: the recorded ones, and ones drawn
    between them.

    Between any two recorded arrivals equally many are drawn on average, so that the rate grows
    alike at any time. Each has the lengths of a recorded request near it in time; of its prefix
    blocks it shares those that recorded requests share. A larger factor draws what a smaller one
    draws, and more.

    Args:
        factor: at least 1.
    """
    recorded = trace.num_requests
    added = round((factor - 1) * recorded)
    if not added:
        return trace
    moment, choice = rng.random((added, 2)).T
    place = moment * (recorded - 1)
    drawn_s = np.interp(place, np.arange(recorded), trace.arrival_s)
    near = min(_NEIGHBOURS, recorded)
    first = np.clip(place.astype(np.int64) - near // 2, 0, recorded - near)
    like = first + (choice * near).astype(np.int64)
    arrival_s = np.concatenate([trace.arrival_s, drawn_s])
    order = np.argsort(arrival_s, kind="stable")
    source = np.concatenate([np.arange(recorded), like])[order]
    taken = take_requests(trace, source)
    note = (
        f"thickened {factor:g} times: {added} of {added + recorded} requests are drawn from "
        "recorded ones near in time"
    )
    return replace(
        taken,
        arrival_s=arrival_s[order],
        prefix_ids=_own_prefixes(taken, order >= recorded),
        notes=(*trace.notes, note),
    )


def _own_prefixes(taken: RequestTrace, is_drawn: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Renumber prefix blocks: a drawn request has blocks of its own where the one that it resembles
    shares them with no other.
    """
    if not taken.prefix_block_tokens:
        return taken.prefix_ids
    ids = taken.prefix_ids.copy()
    of_drawn = np.repeat(is_drawn, np.diff(taken.prefix_starts))
    num_ids = int(ids.max(initial=-1)) + 1
    uses = np.bincount(ids[~of_drawn], minlength=num_ids)
    own = of_drawn & (uses[ids] == 1)
    ids[own] = num_ids + np.arange(int(own.sum()))
    return ids


__all__ = [
    "asked_rate_per_s",
    "describe",
    "fano_factor",
    "load_requests",
    "longest_tokens",
    "read_trace",
    "source_arrivals_s",
]

Drawn = TypeVar("Drawn")
Drawer = TypeVar("Drawer")

_FAMILY = "workloads/requests"
_MOST_COUNTED = 20
"""Values of an attribute above which their number is told, not the requests of each."""


def load_requests(
    spec: WorkloadSpec, folder: Path, seed: int, where: str = "[workload]"
) -> RequestTrace:
    """Load the requests of a workload: the same for every deployment compared, and for the same
    seed.

    Args:
        folder: the scenario's folder, which relative paths are relative to.
        seed: of the run. Arrivals and lengths are drawn from their own streams, so changing one
            leaves the other alone.
        where: place in errors about what has no file of its own.

    Raises:
        UserError: if the name or file is unknown or wrong, arrivals are missing, or nothing is left
            after the limits.
    """
    trace = _set_limits(_load_requests(spec, folder, seed, where), spec, where)
    trace = _set_lead_in(trace, spec.judge_from_s, where)
    if spec.domains is None:
        return trace
    domains = read_mixes(spec.domains, folder)
    return draw_domains(trace, domains, open_stream(seed, "domains"), where)


def _draw_priorities(
    trace: RequestTrace, spec: WorkloadSpec, seed: int, where: str
) -> RequestTrace:
    """Draw the priority of every request where the workload has shares of them; requests have none
    yet.
    """
    shares = spec.priorities
    if shares is None:
        return trace
    if "priority" in trace.attributes:
        raise UserError(
            f"{where} priorities: the requests have priorities of their own; leave out "
            "priorities, or the column priority"
        )
    if not sum(shares):
        raise UserError(f"{where} priorities: shares must not all be 0")
    rng = open_stream(seed, "priorities")
    priority_N = rng.choice(len(shares), size=trace.num_requests, p=np.array(shares) / sum(shares))
    return replace(trace, attributes={**trace.attributes, "priority": priority_N})


def _set_limits(trace: RequestTrace, spec: WorkloadSpec, where: str) -> RequestTrace:
    """Give every request the workload's ``max_tokens``, where it has one."""
    if spec.max_tokens is None:
        return trace
    if "max_tokens" in trace.attributes:
        raise UserError(
            f"{where} max_tokens: the requests have a column max_tokens of their own; leave out one"
        )
    if trace.num_output.max() > spec.max_tokens:
        raise UserError(
            f"{where} max_tokens: outputs have up to {trace.num_output.max():,} tokens, so that "
            f"they did not end by {spec.max_tokens:,}; give as many, or more"
        )
    limits = np.full(trace.num_requests, spec.max_tokens)
    return replace(trace, attributes={**trace.attributes, "max_tokens": limits})


def _load_requests(spec: WorkloadSpec, folder: Path, seed: int, where: str) -> RequestTrace:
    """Load the requests of a workload, of the kinds of text that the source tells apart."""
    if isinstance(spec.requests, dict):
        generator = validate(GeneratorSpec, spec.requests, f"{where} requests")
        _refuse_thickening(spec, where)
        return _generate(generator, spec, folder, seed, f"{where} requests", "generated")
    path = _path_of(spec, folder, where)
    if path.suffix == ".toml":
        named = validate(NamedWorkloadSpec, read_toml(path), str(path))
        _refuse_thickening(spec, where)
        return _generate(
            named,
            spec,
            path.parent,
            seed,
            str(path),
            f"generated like {named.title or path.stem} ({path.stem})",
        )
    trace = _read_recorded(path, spec, seed, where)
    if spec.arrivals is not None:
        process = _build("arrivals", spec.arrivals, folder, f"{where} arrivals")
        drawn = _draw_once("arrivals", draw_arrivals, process, trace.num_requests, seed)
        note = f"arrival times generated ({spec.arrivals['kind']})"
        trace = replace(
            trace,
            arrival_s=drawn,
            has_arrivals=True,
            **_read_clients(process),
            notes=(*trace.notes, note),
        )
    elif not trace.has_arrivals:
        raise UserError(
            f"{where}: {path} lists lengths without arrival times; "
            'add arrivals = { kind = "poisson", rate_per_s = ... } or another '
            f"process ({', '.join(plugins.available('arrivals'))}); the times of a log may stand "
            'in any column: requests = { file = ..., columns = { arrival = "its name" } }'
        )
    if spec.num_requests is not None and spec.num_requests > trace.num_requests:
        note = f"{spec.num_requests} requests were asked for; the source has {trace.num_requests}"
        trace = replace(trace, notes=(*trace.notes, note))
    trace = _draw_priorities(trace, spec, seed, where)
    return _apply_limits(trace, spec, spec.num_requests, _source_duration_s(spec), where)


def _set_lead_in(trace: RequestTrace, judge_from_s: float, where: str) -> RequestTrace:
    """Set the time from which requests are judged, of which some must be left."""
    if not judge_from_s:
        return trace
    if trace.concurrency is not None:
        raise UserError(
            f"{where} judge_from_s: a closed loop has no arrival times to judge requests by; "
            "remove it, or set arrivals"
        )
    last_s = float(trace.arrival_s[-1])
    if judge_from_s >= last_s:
        raise UserError(
            f"{where} judge_from_s: must be less than {last_s:.6g}, when the last request arrives, "
            f"or none is judged; it is {judge_from_s:g}"
        )
    return replace(trace, judge_from_s=judge_from_s)


def source_arrivals_s(
    spec: WorkloadSpec, folder: Path, seed: int, where: str = "[workload]"
) -> NDArray[np.float64]:
    """Arrival times in the source's own time, including those before ``start_s``, from which a
    later ``start_s`` can be chosen.

    All of a file; of a generator up to the last request that the workload takes.
    """
    generator, process = _find_process(spec, folder, where)
    if generator is None:
        trace = _read_recorded(_path_of(spec, folder, where), spec, seed, where)
        if process is None:
            return trace.arrival_s
        return _draw_once("arrivals", draw_arrivals, process, trace.num_requests, seed)
    assert process is not None, "a generator has arrivals"
    num_requests, duration_s = spec.num_requests, _source_duration_s(spec)
    if num_requests is None and duration_s is None:
        num_requests, duration_s = generator.num_requests, generator.duration_s
    return _enough_arrivals(process, spec.start_s, num_requests, duration_s, seed, where)


def asked_rate_per_s(spec: WorkloadSpec, folder: Path, where: str = "[workload]") -> float | None:
    """Requests per second that a workload's arrival process is asked for, in the time of the run;
    ``None`` where requests come as they were recorded, or by a process without one rate.
    """
    rate = getattr(_find_process(spec, folder, where)[1], "rate_per_s", None)
    return rate * spec.rate_scale if isinstance(rate, float | int) else None


def _find_process(
    spec: WorkloadSpec, folder: Path, where: str
) -> tuple[GeneratorSpec | None, ArrivalProcess | None]:
    """Generator and arrival process of a workload; ``None`` where requests, or their times, are
    recorded.
    """
    generator: GeneratorSpec | None = None
    beside = folder
    if isinstance(spec.requests, dict):
        generator = validate(GeneratorSpec, spec.requests, f"{where} requests")
    elif (path := _path_of(spec, folder, where)).suffix == ".toml":
        generator, beside = validate(NamedWorkloadSpec, read_toml(path), str(path)), path.parent
    table = spec.arrivals or (None if generator is None else generator.arrivals)
    if table is None:
        return generator, None
    return generator, _build("arrivals", table, beside, f"{where} arrivals")


def _read_recorded(path: Path, spec: WorkloadSpec, seed: int, where: str) -> RequestTrace:
    """Read the requests of a file, thickened as the workload asks."""
    columns = spec.requests.columns if isinstance(spec.requests, LogSpec) else None
    trace = read_trace(path, columns=columns, strict=spec.strict)
    if spec.thickening == 1.0:
        return trace
    if spec.arrivals is not None or not trace.has_arrivals or trace.concurrency is not None:
        _refuse_thickening(spec, where)
    if trace.num_requests * spec.thickening > MOST_REQUESTS:
        raise UserError(
            f"{where}: thickening {trace.num_requests} requests {spec.thickening:g} times makes "
            f"more than {MOST_REQUESTS}; lower thickening"
        )
    return thicken(trace, spec.thickening, open_stream(seed, "thickening"))


def _refuse_thickening(spec: WorkloadSpec, where: str) -> None:
    if spec.thickening != 1.0:
        raise UserError(
            f"{where}: thickening draws between recorded arrival times, and here there are none; "
            "leave it out, and raise the rate or the concurrency of arrivals"
        )


def describe(trace: RequestTrace) -> dict[str, object]:
    """Statistics of a trace, for people and for comparing a generator with what it imitates.

    Keys: ``num_requests``, ``has_arrivals``, ``concurrency``; with arrival times ``duration_s``,
    ``rate_per_s``, ``iat_cv`` (coefficient of variation of the gaps) and ``fano_1s``, ``fano_10s``,
    ``fano_60s`` (variance over mean of the requests in a window; 1 for Poisson); ``input`` and
    ``output``, each ``{mean, p50, p90, p99, max}`` in tokens; ``input_output_correlation``; with
    prefix blocks ``prefix``: ``{block_tokens, num_blocks, num_unique, ideal_hit_ratio,
    single_use_ratio}``; with kinds of text ``domains``, the requests of each; with further columns
    ``attributes``, by name the requests of each value, or how many values differ; with a lead-in
    ``judge_from_s`` and ``num_lead_in``, the requests before it. What is undefined is ``None``.
    """
    found: dict[str, object] = {
        "num_requests": trace.num_requests,
        "has_arrivals": trace.has_arrivals,
        "concurrency": trace.concurrency,
    }
    if trace.has_arrivals and trace.concurrency is None:
        duration_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
        gaps = np.diff(trace.arrival_s)
        found["duration_s"] = duration_s
        found["rate_per_s"] = trace.num_requests / duration_s if duration_s > 0 else None
        found["iat_cv"] = float(gaps.std() / gaps.mean()) if duration_s > 0 else None
        for window_s in (1, 10, 60):
            found[f"fano_{window_s}s"] = fano_factor(trace.arrival_s, window_s)
    for side, lengths in (("input", trace.num_input), ("output", trace.num_output)):
        p50, p90, p99 = (float(q) for q in np.quantile(lengths, (0.5, 0.9, 0.99)))
        found[side] = {
            "mean": float(lengths.mean()),
            "p50": p50,
            "p90": p90,
            "p99": p99,
            "max": int(lengths.max()),
        }
    varies = bool(np.ptp(trace.num_input) and np.ptp(trace.num_output))
    found["input_output_correlation"] = (
        float(np.corrcoef(trace.num_input, trace.num_output)[0, 1]) if varies else None
    )
    if trace.prefix_block_tokens and len(trace.prefix_ids):
        uses = np.bincount(trace.prefix_ids)
        uses = uses[uses > 0]
        found["prefix"] = {
            "block_tokens": trace.prefix_block_tokens,
            "num_blocks": len(trace.prefix_ids),
            "num_unique": len(uses),
            "ideal_hit_ratio": 1 - len(uses) / len(trace.prefix_ids),
            "single_use_ratio": float((uses == 1).mean()),
        }
    if trace.domains:
        counts = np.bincount(trace.domain[trace.domain >= 0], minlength=len(trace.domains))
        found["domains"] = dict(zip(trace.domains, counts.tolist(), strict=True))
    told: dict[str, object] = {}
    for name, values in trace.attributes.items():
        different, counts = np.unique(values, return_counts=True)
        told[name] = f"{len(different):,} different"
        if len(different) <= _MOST_COUNTED:
            told[name] = dict(zip(map(str, different.tolist()), counts.tolist(), strict=True))
    if told:
        found["attributes"] = told
    if trace.judge_from_s:
        found["judge_from_s"] = trace.judge_from_s
    if trace.num_lead_in:
        found["num_lead_in"] = trace.num_lead_in
    return found


def longest_tokens(trace: RequestTrace) -> int:
    """Prompt and output tokens of the longest request, of the whole trace where this is a part of
    one.
    """
    if trace.part_of is not None:
        return trace.part_of.longest_tokens
    return int((trace.num_input + trace.num_output).max())


def fano_factor(arrival_s: NDArray[np.float64], window_s: float) -> float | None:
    """Variance over mean of the requests in whole windows from the first request on; ``None`` with
    fewer than two windows.

    Only windows with requests are kept, so that memory grows with the requests and not with time.

    >>> fano_factor(np.arange(100.0), 10.0)
    0.0
    """
    since_first = arrival_s - arrival_s[0]
    num_windows = since_first[-1] // window_s
    if num_windows < 2:
        return None
    whole = since_first[since_first < num_windows * window_s]
    mean = len(whole) / num_windows
    _, counts = np.unique(whole // window_s, return_counts=True)
    empty = num_windows - len(counts)
    variance = (((counts - mean) ** 2).sum() + empty * mean**2) / num_windows
    return float(variance / mean)


def _path_of(spec: WorkloadSpec, folder: Path, where: str) -> Path:
    """Find a shipped (or the user's own) named workload's TOML file, or the path of a trace."""
    requests = spec.requests
    if isinstance(requests, LogSpec):
        return fetch_files(folder / os.path.expanduser(requests.file))
    assert isinstance(requests, str), "requests in a table are generated"
    named = available_files(_FAMILY)
    if requests in named:
        return named[requests]
    path = fetch_files(folder / os.path.expanduser(requests))
    if path.exists() or path.suffix or len(Path(requests).parts) > 1:
        return path
    return find_file(_FAMILY, requests, f"{where} requests")


def _generate(
    generator: GeneratorSpec,
    spec: WorkloadSpec,
    folder: Path,
    seed: int,
    where: str,
    provenance: str,
) -> RequestTrace:
    lengths: LengthDistribution = _build("lengths", generator.lengths, folder, f"{where} lengths")
    process: ArrivalProcess = _build(
        "arrivals", spec.arrivals or generator.arrivals, folder, f"{where} arrivals"
    )
    num_requests, duration_s = spec.num_requests, _source_duration_s(spec)
    if num_requests is None and duration_s is None:
        num_requests, duration_s = generator.num_requests, generator.duration_s
    if num_requests is None and duration_s is None:
        raise UserError(
            f"{where}: say how many requests to generate: add num_requests or duration_s"
        )
    if process.concurrency is not None and num_requests is None:
        raise UserError(
            f"{where}: a closed loop has no arrival times, so duration_s cannot limit "
            "it; give num_requests"
        )
    arrival_s = _enough_arrivals(process, spec.start_s, num_requests, duration_s, seed, where)
    num_input, num_output = _draw_once("lengths", draw_lengths, lengths, len(arrival_s), seed)
    trace = RequestTrace(
        arrival_s=arrival_s,
        num_input=num_input,
        num_output=num_output,
        provenance=f"{provenance}, seed {seed}",
        **_read_clients(process),
    )
    trace = _draw_priorities(trace, spec, seed, where)
    return _apply_limits(trace, spec, num_requests, duration_s, where)


def _enough_arrivals(
    process: ArrivalProcess,
    start_s: float,
    num_requests: int | None,
    duration_s: float | None,
    seed: int,
    where: str,
) -> NDArray[np.float64]:
    """Draw arrivals, twice as many each time, until the requested number or span is covered."""
    drawn = num_requests or 1024
    while drawn <= MOST_REQUESTS:
        arrival_s = _draw_once("arrivals", draw_arrivals, process, drawn, seed)
        first = int(np.searchsorted(arrival_s, start_s))
        if process.concurrency is not None or (
            num_requests is not None and drawn - first >= num_requests
        ):
            return arrival_s if num_requests is None else arrival_s[: first + num_requests]
        if duration_s is not None and arrival_s[-1] >= start_s + duration_s:
            return arrival_s[: int(np.searchsorted(arrival_s, start_s + duration_s))]
        drawn *= 2
    raise UserError(
        f"{where}: more than {MOST_REQUESTS:,} requests would be generated; lower num_requests, "
        "duration_s or the rate"
    )


def _read_clients(process: ArrivalProcess) -> dict[str, Any]:
    """Fields of a trace that say how a process's clients send, each as it is without."""
    names = ("concurrency", "start", "send_s", "judge_ramp")
    return {name: getattr(process, name) for name in names if hasattr(process, name)}


def _draw_once(
    stream: str,
    draw: Callable[[Drawer, int, np.random.Generator], Drawn],
    policy: Drawer,
    count: int,
    seed: int,
) -> Drawn:
    """Draw so many arrivals or lengths: once for all the rates that a search tries."""
    key = (stream, type(policy), repr(policy), count, seed)
    return load_once(key, lambda: draw(policy, count, open_stream(seed, stream)))


def _apply_limits(
    trace: RequestTrace,
    spec: WorkloadSpec,
    num_requests: int | None,
    duration_s: float | None,
    where: str,
) -> RequestTrace:
    """Cut the requested part out of a trace, in the time of the run: from 0 at its
    first request.
    """
    if trace.concurrency is not None and (
        spec.rate_scale != 1.0 or spec.start_s or duration_s is not None
    ):
        raise UserError(
            f"{where}: a closed loop has no arrival times; remove start_s, duration_s and "
            "rate_scale, or set arrivals"
        )
    first = int(np.searchsorted(trace.arrival_s, spec.start_s))
    last = trace.num_requests
    if duration_s is not None:
        last = int(np.searchsorted(trace.arrival_s, spec.start_s + duration_s))
    if num_requests is not None:
        last = min(last, first + num_requests)
    if last <= first:
        end_s = float(trace.arrival_s[-1]) if trace.num_requests else 0.0
        raise UserError(
            f"{where}: no request is left; the source ends {end_s:.6g} s in, "
            f"and start_s is {spec.start_s:g}"
        )
    kept = take_requests(trace, np.arange(first, last))
    num_input, block_tokens = kept.num_input, kept.prefix_block_tokens
    if spec.prompt_scale != 1.0:
        num_input = np.maximum(np.rint(num_input * spec.prompt_scale), 1).astype(np.int64)
        block_tokens = max(1, round(block_tokens * spec.prompt_scale)) if block_tokens else 0
    limited = replace(
        kept,
        arrival_s=(kept.arrival_s - kept.arrival_s[0]) / spec.rate_scale,
        num_input=num_input,
        prefix_block_tokens=block_tokens,
    )
    return check_bounds(limited, where)


def _source_duration_s(spec: WorkloadSpec) -> float | None:
    return None if spec.duration_s is None else spec.duration_s * spec.rate_scale


def _build(family: str, table: Policy, folder: Path, where: str) -> Any:
    """Build a policy; a ``path`` in its table is relative to the folder of the file
    that names it.
    """
    path = table.get("path")
    if isinstance(path, str):
        table = {**table, "path": str(fetch(folder / os.path.expanduser(path)))}
    return plugins.build(family, table, where)


# Arrivals and lengths, checked: ``ask`` raises a ``UserError`` where a user's own breaks a promise.


def draw_arrivals(
    process: ArrivalProcess, num_requests: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw sorted arrival times in seconds, ``[num_requests]``."""

    def explain(arrival_s: object) -> str:
        fits = is_array(arrival_s, (num_requests,), whole=False) and not (
            arrival_s.min(initial=0.0) < 0 or (np.diff(arrival_s) < 0).any()
        )
        wanted = f"numbers of shape ({num_requests},): seconds from 0 on, never falling"
        return "" if fits else wanted

    found = ask(ArrivalProcess.arrival_s, process, num_requests, rng, explain=explain)
    return np.asarray(found, dtype=np.float64)


def draw_lengths(
    distribution: LengthDistribution, num_requests: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw ``(num_input, num_output)``, each ``[num_requests]``."""

    def explain(lengths: object) -> str:
        fits = (
            isinstance(lengths, tuple)
            and len(lengths) == 2
            and all(
                is_array(side, (num_requests,), whole=True) and side.min(initial=1) >= 1
                for side in lengths
            )
        )
        wanted = f"two arrays of whole numbers of shape ({num_requests},), all at least 1"
        return "" if fits else wanted

    method = LengthDistribution.draw
    num_input, num_output = ask(method, distribution, num_requests, rng, explain=explain)
    return np.asarray(num_input, dtype=np.int64), np.asarray(num_output, dtype=np.int64)


# Kinds of text of requests, drawn by shares that follow the clock.


def draw_domains(
    trace: RequestTrace, spec: DomainsSpec, rng: np.random.Generator, where: str
) -> RequestTrace:
    """Draw the kind of text of every request, by its time of arrival.

    Raises:
        UserError: if the source tells kinds of text apart itself, or the mix changes with the time
            and the requests have none (a closed loop).
    """
    mixes = list_mixes(spec)
    if trace.domains:
        raise UserError(
            f"{where} domains: the requests have kinds of text of their own "
            f"({', '.join(trace.domains)}); leave domains out, or the column domain"
        )
    if trace.concurrency is not None and len(mixes) > 1:
        raise UserError(
            f"{where} domains: a closed loop has no arrival times that mixes could follow; "
            "give one mix"
        )
    names = tuple(dict.fromkeys(name for mix in mixes for name in mix.shares))
    share_ND = find_shares(spec, names, trace.arrival_s)
    chance_N = rng.random(trace.num_requests)
    # The last domain takes what rounding leaves.
    domain_N = (chance_N[:, None] >= np.cumsum(share_ND, axis=1)[:, :-1]).sum(axis=1)
    return replace(trace, domains=names, domain=domain_N.astype(np.int64))


def list_mixes(spec: DomainsSpec) -> list[DomainMix]:
    """List the mixes of a spec whose file, if it names one, has been read
    (:mod:`simulator.workload.reading`).
    """
    assert not isinstance(spec.mixes, str)
    return spec.mixes


def find_shares(
    spec: DomainsSpec, names: tuple[str, ...], at_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Find the share of each kind of text at some times, ``[N, D]``; rows sum to 1.

    >>> mixes = [{"shares": {"a": 1}}, {"at_s": 10, "shares": {"b": 1}}]
    >>> spec = DomainsSpec.model_validate({"mixes": mixes, "changes": "linear"})
    >>> find_shares(spec, ("a", "b"), np.array([0.0, 4.0, 99.0])).tolist()
    [[1.0, 0.0], [0.6, 0.4], [0.0, 1.0]]
    """
    mixes = list_mixes(spec)
    table_MD = np.array([[mix.shares.get(name, 0.0) for name in names] for mix in mixes])
    table_MD = table_MD / table_MD.sum(axis=1, keepdims=True)
    times_M = np.array([mix.at_s for mix in mixes])
    now_s = at_s if spec.period_s is None else at_s % spec.period_s
    if spec.changes == "step":
        place_N = np.maximum(np.searchsorted(times_M, now_s, side="right") - 1, 0)
        return np.asarray(table_MD[place_N])
    if spec.period_s is not None:  # the last mix turns into the first one of the next period
        times_M = np.append(times_M, times_M[0] + spec.period_s)
        table_MD = np.vstack([table_MD, table_MD[:1]])
        now_s = np.where(now_s < times_M[0], now_s + spec.period_s, now_s)
    columns = [np.interp(now_s, times_M, table_MD[:, d]) for d in range(len(names))]
    return np.stack(columns, axis=1)
