"""Fits the tables ``collective`` on NCCL's operations and engines' own all-reduces on H100 and
B200, 2 to 8 GPUs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.calibration.collective import Algorithm, CollectiveFit, ProtocolFit
from simulator.validation.kernels.collective import Rows, rows_of
from simulator.validation.traffic import cluster_of

_SOURCE = "NVIDIA aiconfigurator-core 0.12.0, Apache-2.0"
_COMMAND = "moesim calibrate published"
_DIGITS = 3
_SCALE = 0.05
"""Errors (of the logarithm) beyond this count linearly, not squared: the tables hold single
readings that are off by two times."""
_FAMILIES = {"h100-sxm": "hopper", "b200-sxm": "blackwell"}
_ACROSS = {"scale_out_latency_s": 12e-6, "latency_per_doubling_s": 8e-6, "scale_out_fraction": 0.85}
"""Across nodes: two of NCCL's tree steps a doubling, and what its ring reaches of a network card.
Assumed, no table holds it."""
_STEP = 1e-3
_NAMES = ("latency_s", "latency_per_rank_s", "fraction", "copy_fraction")
_BOUNDS = ((1e-6, 2e-4), (1e-9, 2e-5), (0.005, 1.0), (0.01, 100.0))
_HIDDEN = 50.0
"""A share of the port's peak above which a copy of the message costs nothing."""


class _Start(NamedTuple):
    algorithm: Algorithm
    numbers: tuple[float, float, float, float]
    limit: float | None = None
    """``max_bytes_times_ranks``."""


_RINGS = {
    "low_latency": _Start("ring", (5e-6, 1e-6, 0.1, 0.3)),
    "middle": _Start("ring", (8e-6, 1e-6, 0.4, 2.0)),
    "bandwidth": _Start("ring", (2e-5, 3e-6, 0.8, 3.0)),
}
"""NCCL's protocols by what they are for (LL, LL128, Simple): which one a message takes is the
tuner's affair."""
_CUSTOM = {
    "one_shot": _Start("one_shot", (4e-6, 1e-7, 0.6, 10.0)),
    "two_shot": _Start("ring", (8e-6, 5e-7, 0.6, 10.0)),
    "large": _Start("ring", (2e-5, 1e-6, 0.7, 3.0)),
}
"""What engines' kernels do: each rank reads all others' data, or a part of it and hands the sum on;
what is large goes to NCCL."""


_LIMITED = {**_CUSTOM, "one_shot": _CUSTOM["one_shot"]._replace(limit=2.0 * 1024 * 1024)}
"""vLLM's kernel, which SGLang took over: one shot below 512 kB on four ranks and 256 kB on eight
(custom_all_reduce.cuh)."""
_USES_LIMIT = ("vllm custom_all_reduce", "sglang custom_all_reduce_older")


def fit(folder: Path) -> dict[str, dict[str, Any]]:
    """The tables ``collective`` of ``hopper`` and ``blackwell``, by engine and operation."""
    found: dict[
        tuple[str, str, str, bool], list[tuple[Rows, NDArray[np.float64], NDArray[np.str_]]]
    ] = {}
    for name, releases in (("nccl.csv.gz", "nccl_ver"), ("custom_allreduce.csv.gz", "engine_ver")):
        table = pd.read_csv(folder / name)
        measured = table["latency_ms"].to_numpy(dtype=float) * 1e-3
        for rows in rows_of(table):
            if rows.accelerator in _FAMILIES:
                place = (str(rows.accelerator), rows.engine, rows.entry, rows.is_eager)
                release = table[releases].astype(str).to_numpy(dtype=str)[rows.places]
                found.setdefault(place, []).append((rows, measured[rows.places], release))
    tables: dict[str, dict[str, Any]] = {family: {"any": {}} for family in _FAMILIES.values()}
    for (accelerator, engine, entry, is_eager), parts in found.items():
        if is_eager:
            continue
        eager = found.get((accelerator, engine, entry, True), [])
        made = _entry(
            load_accelerator(accelerator, "fit"),
            engine,
            entry,
            _joined(parts),
            _joined(eager) if eager else None,
        )
        tables[_FAMILIES[accelerator]].setdefault(engine, {})[entry] = made
    for made in tables.values():
        own = made["vllm"]["custom_all_reduce"]
        made["any"]["custom_all_reduce"] = {
            **own,
            "source": "Of engines without an entry, as of vLLM: " + own["source"],
        }
    return tables


class _Joined(NamedTuple):
    rows: Rows
    measured_s: NDArray[np.float64]
    releases: NDArray[np.str_]


def _joined(parts: list[tuple[Rows, NDArray[np.float64], NDArray[np.str_]]]) -> _Joined:
    rows = [part[0] for part in parts]
    whole = rows[0]._replace(
        places=np.concatenate([r.places for r in rows]),
        num_ranks=np.concatenate([r.num_ranks for r in rows]),
        num_bytes=np.concatenate([r.num_bytes for r in rows]),
        wrong=np.concatenate([r.wrong for r in rows]),
    )
    return _Joined(
        whole,
        np.concatenate([part[1] for part in parts]),
        np.concatenate([part[2] for part in parts]),
    )


def _entry(
    accelerator: AcceleratorSpec, engine: str, entry: str, data: _Joined, eager: _Joined | None
) -> dict[str, Any]:
    start = (
        _LIMITED
        if f"{engine} {entry}" in _USES_LIMIT
        else _CUSTOM
        if entry.startswith("custom")
        else _RINGS
    )
    cluster = cluster_of(accelerator.name)
    if cluster is None:
        raise ValueError(f"no cluster of {accelerator.name}")
    port = cluster.scale_up.bytes_per_s
    rows = data.rows
    predicted = np.empty(len(data.measured_s))
    ranks = np.unique(rows.num_ranks)
    for left_out in ranks:
        held = rows.num_ranks == left_out
        predicted[held] = rows.seconds(
            _search(start, accelerator, port, data, ~held), accelerator, port
        )[held]
    error = predicted / data.measured_s - 1
    fitted = _search(start, accelerator, port, data, np.ones(len(predicted), dtype=bool))
    within = rows.seconds(fitted, accelerator, port) / data.measured_s - 1
    # Leaving out a number of GPUs asks for what lies outside the domain, where bands are widened:
    # inside, residuals tell.
    launched = {} if eager is None else _eager(fitted, accelerator, port, eager)
    ratios = 1.0 / (1.0 + within)
    if eager is not None:
        eagerly_s = eager.rows._replace(is_eager=True).seconds(
            fitted.model_copy(update=launched), accelerator, port
        )
        ratios = np.concatenate([ratios, eager.measured_s / eagerly_s])
    low, high = np.quantile(ratios, [0.1, 0.9])
    library = f"{engine}'s own all-reduce" if entry.startswith("custom") else f"NCCL {entry}"
    made: dict[str, Any] = {
        "kind": "fitted",
        "source": (
            f"{len(predicted):,} timings of {library}, {', '.join(sorted(set(data.releases)))}, "
            f"{accelerator.title}, {_SOURCE}; errors with each number of GPUs left out (within the "
            f"fit: median {np.median(np.abs(within)):.3f}, 90th percentile "
            f"{np.quantile(np.abs(within), 0.9):.3f}, likewise the band); across nodes assumed"
        ),
        "accelerator": accelerator.name,
        "command": _COMMAND,
        "num_rows": len(predicted),
        "median_error": _rounded(float(np.median(np.abs(error)))),
        "p90_error": _rounded(float(np.quantile(np.abs(error), 0.9))),
        "bias": _rounded(float(np.median(error))),
        "band": [_rounded(float(low)), _rounded(float(high))],
    }
    if not entry.startswith("custom"):
        made |= _ACROSS
    made |= launched
    made["protocols"] = {
        name: {key: value for key, value in way.model_dump().items() if value is not None}
        for name, way in fitted.protocols.items()
    }
    made["domain"] = {
        "ranks": [int(ranks.min()), int(ranks.max())],
        "bytes": [int(rows.num_bytes.min()), int(rows.num_bytes.max())],
    }
    return made


def _search(
    start: dict[str, _Start],
    accelerator: AcceleratorSpec,
    port: float,
    data: _Joined,
    used: NDArray[np.bool_],
) -> CollectiveFit:
    """The protocols that fit the ``used`` rows best, rounded."""
    part = data.rows._replace(
        num_ranks=data.rows.num_ranks[used], num_bytes=data.rows.num_bytes[used]
    )
    measured = np.log(data.measured_s[used])
    lowest, highest = np.log(np.array(_BOUNDS * len(start)).T)
    firsts = [
        np.log(np.concatenate([way.numbers for way in start.values()])) + shift
        for shift in _shifts(len(start))
    ]

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log(part.seconds(_built(start, np.exp(logs)), accelerator, port)) - measured

    steps = np.full(len(lowest), _STEP)
    found = [
        least_squares(
            errors, first, bounds=(lowest, highest), loss="soft_l1", f_scale=_SCALE, diff_step=steps
        )
        for first in firsts
    ]
    best = min(found, key=lambda result: float(result.cost))
    return _built(
        start, np.array([_rounded(value) for value in np.exp(best.x).tolist()]), hide=True
    )


def _shifts(num_protocols: int) -> list[NDArray[np.float64]]:
    """Where else to begin: all protocols start later, or the second one does. A minimum of several
    lines has several optima.
    """
    later, second = np.zeros((num_protocols, len(_NAMES))), np.zeros((num_protocols, len(_NAMES)))
    later[:, 0], second[1, :2] = np.log(2.0), np.log(3.0)
    return [np.zeros(later.size), later.ravel(), second.ravel(), (later + second).ravel()]


def _built(
    start: dict[str, _Start], numbers: NDArray[np.float64], *, hide: bool = False
) -> CollectiveFit:
    protocols = {}
    for (name, way), values in zip(
        start.items(), numbers.reshape(-1, len(_NAMES)).tolist(), strict=True
    ):
        fields: dict[str, Any] = dict(zip(_NAMES, values, strict=True))
        if hide and fields["copy_fraction"] > _HIDDEN:
            fields["copy_fraction"] = None
        protocols[name] = ProtocolFit.model_construct(
            algorithm=way.algorithm, max_bytes_times_ranks=way.limit, **fields
        )
    return CollectiveFit.model_construct(
        kind="fitted", source="", protocols=protocols, eager_s=0.0, eager_more_s=0.0
    )


def _eager(
    fitted: CollectiveFit, accelerator: AcceleratorSpec, port: float, eager: _Joined
) -> dict[str, float]:
    """What launching from Python adds."""
    rows = eager.rows._replace(is_eager=True)

    def with_launch(logs: NDArray[np.float64]) -> CollectiveFit:
        shortest, more = np.exp(logs).tolist()
        return fitted.model_copy(update={"eager_s": shortest, "eager_more_s": more})

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log(rows.seconds(with_launch(logs), accelerator, port) / eager.measured_s)

    best = least_squares(
        errors, np.log([2e-5, 5e-6]), loss="soft_l1", f_scale=_SCALE, diff_step=np.full(2, _STEP)
    )
    shortest, more = np.exp(best.x).tolist()
    return {"eager_s": _rounded(shortest), "eager_more_s": _rounded(more)}


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")
