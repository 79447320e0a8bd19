"""Fits the tables ``exchange`` on DeepEP kernels of H100 and B200, as three engines ship them, and
on NVLink one-sided kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.calibration.fits._exchange_kernels import KERNELS, Kernels
from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.calibration.exchange import ExchangeFit
from simulator.validation.kernels.alltoall import Part, parts_of

_SOURCE = "NVIDIA aiconfigurator-core 0.12.0, Apache-2.0"
_BLOG = "NVIDIA/TensorRT-LLM tech blog 18 (NVLinkOneSided, GB200 NVL72)"
_COMMAND = "moesim calibrate published"
_DIGITS = 3
_SCALE = 0.05
"""Errors (of the logarithm) beyond this count linearly, not squared."""
_STEP = 1e-3
_NOTHING = 2.0
"""A coefficient within this factor of its lower bound is none."""

_BOUNDS = {
    "latency_s": (1e-6, 1e-3),
    "latency_per_byte_s": (1e-13, 1e-8),
    "latency_per_expert_s": (1e-11, 1e-6),
    "scale_out_latency_s": (1e-6, 1e-3),
    "latency_per_doubling_s": (1e-8, 1e-4),
    "token_s": (1e-10, 1e-4),
    "token_byte_s": (1e-13, 1e-8),
    "copy_s": (1e-10, 1e-4),
    "copy_byte_s": (1e-13, 1e-8),
    "forward_byte_s": (1e-13, 1e-8),
    "crossing_byte_s": (1e-13, 1e-8),
    "floor_s": (1e-6, 1e-3),
    "scale_up_fraction": (0.1, 1.0),
    "scale_out_fraction": (0.3, 1.0),
}
_START = {
    "latency_s": 2e-5,
    "latency_per_byte_s": 5e-10,
    "latency_per_expert_s": 1e-8,
    "scale_out_latency_s": 3e-5,
    "latency_per_doubling_s": 4e-6,
    "token_s": 3e-7,
    "token_byte_s": 3e-11,
    "copy_s": 6e-8,
    "copy_byte_s": 3e-11,
    "forward_byte_s": 5e-11,
    "crossing_byte_s": 5e-11,
    "floor_s": 5e-5,
    "scale_up_fraction": 0.6,
    "scale_out_fraction": 0.9,
}
_FORWARDED = ("forward_byte_s", "crossing_byte_s")
_ACROSS = ("scale_out_latency_s", "latency_per_doubling_s", "scale_out_fraction", *_FORWARDED)
_TELL = {"notify_s": 1e-5, "notify_per_doubling_s": 2e-5}
_NOTIFY = {
    "dispatch": _TELL | {"notify_fraction": 0.001},
    "combine": _TELL | {"notify_token_s": 2e-7},
}
"""Coefficients of telling how much will come, by operation, at which the search begins. Before a
combine a kernel walks over the tokens."""


_FAMILIES = {"h100-sxm": "hopper", "b200-sxm": "blackwell", "gb200": "blackwell"}
_TABLES = (
    "deepep_low_latency.csv.gz",
    "deepep_normal.csv.gz",
    "moe_alltoall.csv.gz",
    "published/alltoall.csv",
)


class _Rows(NamedTuple):
    """What one fit is made of: parts of one or several tables, and what was measured."""

    parts: list[Part]
    measured_s: NDArray[np.float64]
    held_out: NDArray[np.str_]
    """The shape, or the number of nodes, that each row is left out with."""
    usable: NDArray[np.bool_]
    """Rows that the fit may use; the others only count in the errors."""


def fit(folder: Path) -> dict[str, dict[str, Any]]:
    """The tables ``exchange`` of ``hopper`` and ``blackwell``, by kernels and operation."""
    found: dict[tuple[str, str, str], list[Part]] = {}
    told: dict[tuple[str, str, str], list[Part]] = {}
    for name in _TABLES:
        table = pd.read_csv(folder / name)
        for part in parts_of(table):
            if (
                part.accelerator not in _FAMILIES
                or part.kernels not in KERNELS
                or part.measured not in table.columns
            ):
                continue
            place = (part.accelerator, part.kernels, part.operation)
            measured = (
                pd.to_numeric(table[part.measured], errors="coerce").to_numpy(dtype=float)[
                    part.places
                ]
                * 1e-6
            )
            (told if part.is_notify else found).setdefault(place, []).append(
                part._replace(measured_s=measured)
            )
    tables: dict[str, dict[str, Any]] = {"hopper": {}, "blackwell": {}}
    for accelerator, kernels, operation in sorted(
        found, key=lambda place: list(_FAMILIES).index(place[0])
    ):
        place = (accelerator, kernels, operation)
        entry = _entry(
            load_accelerator(accelerator, "fit"),
            kernels,
            operation,
            _rows(found[place]),
            told.get(place, []),
        )
        family = tables[_FAMILIES[accelerator]]
        hopper = tables["hopper"].get(kernels, {}).get(operation)
        if "nodes" not in entry["domain"] or entry["domain"]["nodes"][1] == 1:
            entry = _across_as_hopper(entry, hopper)
        family.setdefault(kernels, {})[operation] = entry
    tables["hopper"]["one_sided"] = {
        operation: _assumed_one_sided(entry)
        for operation, entry in tables["blackwell"]["one_sided"].items()
    }
    return tables


def _rows(parts: list[Part]) -> _Rows:
    measured = np.concatenate([part.measured_s for part in parts])
    return _Rows(
        parts,
        measured,
        np.concatenate([part.held_out for part in parts]),
        np.concatenate([(part.moves.wrong == "") & ~part.is_congested for part in parts])
        & np.isfinite(measured),
    )


def _entry(
    accelerator: AcceleratorSpec, kernels: str, operation: str, rows: _Rows, told: list[Part]
) -> dict[str, Any]:
    job = KERNELS[kernels]
    names = job.dispatch if operation == "dispatch" else job.combine
    nodes = np.concatenate(
        [np.asarray(part.moves.load.num_nodes, dtype=float) for part in rows.parts]
    )
    if nodes.max() > 1:
        names = (*names, *(name for name in _ACROSS if name not in _FORWARDED or job.overlap > 1))
    predicted = np.full(len(rows.measured_s), np.nan)
    for left_out in np.unique(rows.held_out):
        held = rows.held_out == left_out
        if (rows.usable & ~held).sum() > 2 * len(names):
            predicted[held] = _predict(
                _search(accelerator, job, names, rows, rows.usable & ~held), accelerator, rows
            )[held]
    known = np.isfinite(predicted) & np.isfinite(rows.measured_s) & (rows.measured_s > 0)
    error = predicted[known] / rows.measured_s[known] - 1
    low, high = np.quantile(rows.measured_s[known] / predicted[known], [0.1, 0.9])
    fitted = _search(accelerator, job, names, rows, rows.usable)
    coefficients = {name: getattr(fitted, name) for name in names if getattr(fitted, name) > 0}
    return {
        "kind": "fitted",
        "source": _what(job, accelerator, rows, nodes),
        "accelerator": accelerator.name,
        "command": _COMMAND,
        "num_rows": int(known.sum()),
        "median_error": _rounded(float(np.median(np.abs(error)))),
        "p90_error": _rounded(float(np.quantile(np.abs(error), 0.9))),
        "bias": _rounded(float(np.median(error))),
        "band": [_rounded(float(low)), _rounded(float(high))],
        "num_sms": job.num_sms,
        "overlap": job.overlap,
        **coefficients,
        **{name: 0.0 for name in ("latency_s",) if name not in coefficients},
        **({"scale_up_fraction": 1.0} if "scale_up_fraction" not in coefficients else {}),
        **_notify(accelerator, fitted, _NOTIFY[operation], told),
        "domain": _domain(rows, nodes),
    }


def _what(
    job: Kernels, accelerator: AcceleratorSpec, rows: _Rows, nodes: NDArray[np.float64]
) -> str:
    source = _BLOG if job.what.startswith("NVLink") else _SOURCE
    text = f"{len(rows.measured_s):,} timings of {job.what}, {accelerator.title}, {source}"
    dropped = int((~rows.usable).sum())
    if nodes.max() > 1:
        text += (
            f"; {int((nodes > 1).sum()):,} of them across nodes, where the tables "
            "hold one model's shape"
        )
    if dropped:
        text += (
            f"; {dropped} of them, on a network that carried a third of what it does else, "
            "count in the errors and not in the fit"
        )
    return text


def _domain(rows: _Rows, nodes: NDArray[np.float64]) -> dict[str, list[int]]:
    """Measured ranges, over rows that the fit used."""
    ranges: dict[str, Any] = {
        "tokens": [part.moves.load.tokens for part in rows.parts],
        "vector_bytes": [part.moves.load.vector_bytes for part in rows.parts],
        "experts": [part.moves.load.num_experts for part in rows.parts],
        "nodes": [nodes],
        "ranks": [part.num_ranks for part in rows.parts],
    }
    joined = {
        name: np.concatenate([np.asarray(values, dtype=float) for values in found])
        for name, found in ranges.items()
    }
    return {name: [int(values.min()), int(values.max())] for name, values in joined.items()}


def _search(
    accelerator: AcceleratorSpec,
    job: Kernels,
    names: tuple[str, ...],
    rows: _Rows,
    used: NDArray[np.bool_],
) -> ExchangeFit:
    """The coefficients that fit the ``used`` rows best, rounded."""
    measured = np.log(rows.measured_s[used])
    lowest, highest = np.log(np.array([_BOUNDS[name] for name in names]).T)

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        built = _built(job, dict(zip(names, np.exp(logs).tolist(), strict=True)))
        return np.log(_predict(built, accelerator, rows)[used]) - measured

    first = dict(_START)
    if "floor_s" in names:  # else a floor that hides every latency would leave nothing to search by
        first["floor_s"], first["latency_s"] = np.exp(np.quantile(measured, [0.2, 0.3])).tolist()
        first["scale_up_fraction"] = 0.3
    start = np.clip(np.log([first[name] for name in names]), lowest, highest)
    best = least_squares(
        errors,
        start,
        bounds=(lowest, highest),
        loss="soft_l1",
        f_scale=_SCALE,
        diff_step=np.full(len(names), _STEP),
    )
    values = dict(zip(names, np.exp(best.x).tolist(), strict=True))
    return _built(
        job,
        {
            n: 0.0 if v < _NOTHING * _BOUNDS[n][0] and "fraction" not in n else _rounded(v)
            for n, v in values.items()
        },
    )


def _built(job: Kernels, values: Mapping[str, float]) -> ExchangeFit:
    base: dict[str, Any] = {
        "latency_s": 0.0,
        "scale_out_latency_s": 0.0,
        "latency_per_doubling_s": 0.0,
        "num_sms": job.num_sms,
    }
    shares = {"scale_up_fraction": 1.0, "scale_out_fraction": 1.0, "overlap": job.overlap}
    return ExchangeFit.model_construct(kind="fitted", source="", **{**base, **shares, **values})


def _predict(fit: ExchangeFit, accelerator: AcceleratorSpec, rows: _Rows) -> NDArray[np.float64]:
    return np.concatenate([part.moves.transfer_s(fit, accelerator) for part in rows.parts])


def _notify(
    accelerator: AcceleratorSpec, fitted: ExchangeFit, start: dict[str, float], told: list[Part]
) -> dict[str, Any]:
    """Telling how much comes: linear in the doublings of nodes, and in tokens over multiprocessors
    or in what is carried.
    """
    if not told:
        return {}
    nodes = np.concatenate([np.asarray(part.moves.load.num_nodes, dtype=float) for part in told])
    measured = np.concatenate([part.measured_s for part in told])
    across = (nodes > 1) & (measured > 0)
    used = across & ~np.concatenate([part.is_congested for part in told])
    if not used.any():
        return {}
    found = _notify_search(accelerator, fitted, start, told, measured, used)
    predicted = np.full(len(nodes), np.nan)
    for left_out in np.unique(nodes[used]):
        held = across & (nodes == left_out)
        predicted[held] = _told_s(
            _notify_search(accelerator, fitted, start, told, measured, used & ~held),
            accelerator,
            told,
        )[held]
    low, high = np.quantile(measured[across] / predicted[across], [0.1, 0.9])
    return {
        **{name: getattr(found, name) for name in start if getattr(found, name) > 0},
        "notify_band": [_rounded(float(low)), _rounded(float(high))],
    }


def _notify_search(
    accelerator: AcceleratorSpec,
    fitted: ExchangeFit,
    start: dict[str, float],
    told: list[Part],
    measured: NDArray[np.float64],
    used: NDArray[np.bool_],
) -> ExchangeFit:
    first = np.log(list(start.values()))

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        built = fitted.model_copy(update=dict(zip(start, np.exp(logs).tolist(), strict=True)))
        return np.log(_told_s(built, accelerator, told)[used] / measured[used])

    far = np.log(100.0)
    best = least_squares(
        errors, first, bounds=(first - far, first + far), loss="soft_l1", f_scale=0.1
    )
    return fitted.model_copy(
        update={
            name: _rounded(value)
            for name, value in zip(start, np.exp(best.x).tolist(), strict=True)
        }
    )


def _told_s(
    fit: ExchangeFit, accelerator: AcceleratorSpec, told: list[Part]
) -> NDArray[np.float64]:
    return np.concatenate([part.moves.notify_s(fit, accelerator) for part in told])


def _across_as_hopper(entry: dict[str, Any], hopper: dict[str, Any] | None) -> dict[str, Any]:
    """Across nodes the network cards decide, which are the same: as fitted on Hopper, where it
    was.
    """
    known = (
        {name: hopper[name] for name in (*_ACROSS, *_ALL_NOTIFY) if name in hopper}
        if hopper
        else {}
    )
    missing = {name: value for name, value in _ASSUMED_ACROSS.items() if name not in known}
    entry = {**entry, **missing, **known}
    entry["source"] += "; across nodes assumed, " + (
        "as fitted on H100, whose network cards are the same" if known else "see normal"
    )
    return entry


_ALL_NOTIFY = (
    "notify_s",
    "notify_per_doubling_s",
    "notify_token_s",
    "notify_fraction",
    "notify_band",
)
_ASSUMED_ACROSS = {
    "scale_out_latency_s": 5e-5,
    "latency_per_doubling_s": 1e-5,
    "scale_out_fraction": 0.9,
}


def _assumed_one_sided(entry: dict[str, Any]) -> dict[str, Any]:
    kept = {
        name: value
        for name, value in entry.items()
        if name not in ("accelerator", "command", "num_rows", "domain", "band", "bias")
    }
    for name in ("median_error", "p90_error"):
        kept.pop(name)
    return {**kept, "kind": "assumed", "source": "As on GB200: " + entry["source"]}


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")
