"""Fits of exchanges on DeepEP kernels of H100 and B200, as three engines ship them, and on NVLink
one-sided kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.calibration.exchange import ExchangeFit
from simulator.validation.kernels import SOURCE
from simulator.validation.kernels import _fitting as fitting
from simulator.validation.kernels._alltoall_moves import Moves
from simulator.validation.kernels._alltoall_tables import Part, parts_of
from simulator.validation.kernels._fitting import Chosen, Floats, Tables, Values


class _Kernels(NamedTuple):
    """One library's kernels as one engine calls them."""

    what: str
    dispatch: tuple[str, ...]
    """Coefficients that are fitted, beside those across nodes where rows cross any."""
    combine: tuple[str, ...]
    num_sms: int = 0
    overlap: float = 1.0


_LATENCY = ("latency_s", "latency_per_expert_s", "scale_up_fraction")
_NORMAL = ("latency_s", "latency_per_byte_s", "scale_up_fraction", "copy_byte_s")
_EAGER = ("floor_s", "latency_s", "scale_up_fraction")
_BACK = ("latency_s", "latency_per_byte_s", "scale_up_fraction")
"""Low-latency kernels that add up what comes back take longer to start for long vectors."""
_BY_BYTE = ("latency_s", "latency_per_byte_s")
_BY_TOKEN = ("token_s", "token_byte_s")
"""vLLM's normal kernels take as long for a token of six experts as for one of eight, on as many
ranks."""
_LAUNCHED = "launched from Python"
_TRTLLM = f"as TensorRT-LLM calls them, {_LAUNCHED}"
_VLLM = f"as vLLM calls them, {_LAUNCHED}"
_KERNELS = {
    "low_latency": _Kernels(
        "DeepEP low-latency kernels (SGLang)", (*_LATENCY, "token_s"), (*_LATENCY, "copy_byte_s")
    ),
    "normal": _Kernels(
        "DeepEP normal kernels (SGLang)",
        (*_NORMAL, "token_s", "copy_s"),
        (*_NORMAL, "token_byte_s"),
        *(20, 3.0),
    ),
    "trtllm_deepep_ht": _Kernels(
        "DeepEP normal kernels as TensorRT-LLM calls them",
        (*_BY_BYTE, "token_s", "copy_s", "copy_byte_s"),
        (*_BY_BYTE, "token_s", "copy_byte_s"),
        *(20, 3.0),
    ),
    "trtllm_deepep_ll": _Kernels(f"DeepEP low-latency kernels {_TRTLLM}", _EAGER, _BACK),
    **{
        f"trtllm_deepep_ll_{dtype}": _Kernels(
            f"DeepEP low-latency kernels that bring results back in {dtype}, {_TRTLLM}", (), _BACK
        )
        for dtype in ("fp8", "fp4")
    },
    "deepep_ht": _Kernels(
        f"DeepEP normal kernels {_VLLM}",
        ("floor_s", "latency_s", *_BY_TOKEN),
        (*_BY_BYTE, *_BY_TOKEN),
        *(20, 3.0),
    ),
    "deepep_ll": _Kernels(f"DeepEP low-latency kernels {_VLLM}", _EAGER, ("floor_s", *_BACK)),
    "deepep_v2_context": _Kernels(
        f"DeepEP v2 kernels for prompts {_VLLM}",
        ("floor_s", "latency_s", "token_byte_s"),
        ("floor_s", "latency_s", "copy_byte_s"),
        *(64, 3.0),
    ),
    "deepep_v2_generation": _Kernels(
        f"DeepEP v2 kernels for decode {_VLLM}", ("floor_s",), ("floor_s",), *(64, 3.0)
    ),
    "one_sided": _Kernels("NVLink one-sided kernels", _EAGER[1:], _EAGER[1:]),
}
"""Kernels that are fitted."""
_BLOG = "NVIDIA/TensorRT-LLM tech blog 18 (NVLinkOneSided, GB200 NVL72)"
_FAMILIES = {"h100-sxm": "hopper", "b200-sxm": "blackwell", "gb200": "blackwell"}
"""Calibration of each accelerator that was timed."""
_SCALE, _NOTIFY_SCALE = 0.05, 0.1
"""Errors of the logarithm beyond which errors of the transfer, and of telling how much will come,
count linearly."""
_STEP = 1e-3
"""Relative step of the numeric derivative: seconds have a kink where wires take longer than
copying."""
_NOTHING = 2.0
"""A coefficient within this factor of its lower bound is none."""
_FEWEST_ROWS = 2
"""Rows for each coefficient that a fit without a shape must have more than."""

_COEFFICIENTS = {
    "latency_s": (2e-5, 1e-6, 1e-3),
    "latency_per_byte_s": (5e-10, 1e-13, 1e-8),
    "latency_per_expert_s": (1e-8, 1e-11, 1e-6),
    "scale_out_latency_s": (3e-5, 1e-6, 1e-3),
    "latency_per_doubling_s": (4e-6, 1e-8, 1e-4),
    "token_s": (3e-7, 1e-10, 1e-4),
    "token_byte_s": (3e-11, 1e-13, 1e-8),
    "copy_s": (6e-8, 1e-10, 1e-4),
    "copy_byte_s": (3e-11, 1e-13, 1e-8),
    "forward_byte_s": (5e-11, 1e-13, 1e-8),
    "crossing_byte_s": (5e-11, 1e-13, 1e-8),
    "floor_s": (5e-5, 1e-6, 1e-3),
    "scale_up_fraction": (0.6, 0.1, 1.0),
    "scale_out_fraction": (0.9, 0.3, 1.0),
}
"""Start of the search for a coefficient, and its least and largest value."""
_FORWARDED = ("forward_byte_s", "crossing_byte_s")
_ACROSS = ("scale_out_latency_s", "latency_per_doubling_s", "scale_out_fraction", *_FORWARDED)
_ASSUMED_ACROSS = {
    "scale_out_latency_s": 5e-5,
    "latency_per_doubling_s": 1e-5,
    "scale_out_fraction": 0.9,
}
"""Across nodes where no kernels of the library were timed on several: near what a combine of
Hopper's normal kernels takes."""
_TELL = {"notify_s": 1e-5, "notify_per_doubling_s": 2e-5}
"""Start of the search for what both operations take to tell how much will come."""
_NOTIFY = {
    "dispatch": _TELL | {"notify_fraction": 0.001},
    "combine": _TELL | {"notify_token_s": 2e-7},
}
"""Coefficients of telling how much will come, by operation, at which the search begins. Before a
combine a kernel walks over the tokens."""
_NOTIFY_FIELDS = (*_TELL, "notify_token_s", "notify_fraction", "notify_band")
_FAR = 100.0
"""Factor either way from there that is searched."""


class _Timed(NamedTuple):
    """Rows of one or several tables that one fit is made of."""

    accelerator: AcceleratorSpec
    moves: Moves
    measured_s: Floats
    held_out: NDArray[np.str_]
    is_congested: Chosen

    @classmethod
    def join(cls, accelerator: str, parts: Sequence[tuple[Part, Floats]]) -> _Timed:
        """Rows of parts and their measured seconds."""
        return cls(
            load_accelerator(accelerator, "fit"),
            Moves.join([part.moves for part, _ in parts]),
            np.concatenate([seconds for _, seconds in parts]),
            np.concatenate([part.held_out for part, _ in parts]),
            np.concatenate([part.is_congested for part, _ in parts]),
        )

    @property
    def nodes(self) -> Floats:
        """Nodes ``[n]`` that the ranks lie in."""
        return np.asarray(self.moves.load.num_nodes, dtype=float)

    @property
    def is_usable(self) -> Chosen:
        """Rows that the fit may use; the others only count in the errors."""
        is_well = (self.moves.wrong == "") & np.isfinite(self.measured_s)
        return np.asarray(is_well & ~self.is_congested)

    def take(self, rows: Chosen) -> _Timed:
        """Select some of the rows."""
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in self._fields[2:]}
        return self._replace(moves=self.moves.take(rows), **columns)


def fit_tables(tables: Sequence[pd.DataFrame]) -> Tables:
    """Fit ``hopper`` and ``blackwell``, by kernels and operation."""
    transfers: dict[tuple[str, str, str], list[tuple[Part, Floats]]] = {}
    notifies: dict[tuple[str, str, str], list[tuple[Part, Floats]]] = {}
    for table in tables:
        for part in parts_of(table):
            accelerator = part.accelerator or ""
            is_known = accelerator in _FAMILIES and part.kernels in _KERNELS
            if is_known and part.measured in table.columns:
                into = notifies if part.is_notify else transfers
                key = (accelerator, part.kernels, part.operation)
                into.setdefault(key, []).append((part, part.measured_s(table)))
    found: Tables = {}
    for key in sorted(transfers, key=lambda key: list(_FAMILIES).index(key[0])):
        accelerator, kernels, operation = key
        told = _Timed.join(accelerator, notifies[key]) if key in notifies else None
        timed = _Timed.join(accelerator, transfers[key])
        made = _fit_entry(_KERNELS[kernels], operation, timed, told)
        if made["domain"]["nodes"][1] == 1:
            made = _across_as(made, found.get("hopper", {}).get(kernels, {}).get(operation, {}))
        family = found.setdefault(_FAMILIES[accelerator], {})
        family.setdefault(kernels, {})[operation] = made
    if one_sided := found.get("blackwell", {}).get("one_sided"):
        found.setdefault("hopper", {})["one_sided"] = {
            operation: _assume_one_sided(entry) for operation, entry in one_sided.items()
        }
    return found


def _fit_entry(
    kernels: _Kernels, operation: str, timed: _Timed, told: _Timed | None
) -> dict[str, Any]:
    names = kernels.dispatch if operation == "dispatch" else kernels.combine
    if timed.nodes.max() > 1:
        hides = kernels.overlap > 1
        names = (*names, *(name for name in _ACROSS if hides or name not in _FORWARDED))
    usable = timed.is_usable

    def predict(seen: Chosen, held: Chosen) -> Floats:
        if (usable & seen).sum() <= _FEWEST_ROWS * len(names):
            return np.full(int(held.sum()), np.nan)
        fit = _solve(kernels, names, timed.take(usable & seen))
        return timed.moves.take(held).transfer_s(fit, timed.accelerator)

    predicted, measured = fitting.leave_out(timed.held_out, predict), timed.measured_s
    known = np.isfinite(predicted) & np.isfinite(measured) & (measured > 0)
    fitted = _solve(kernels, names, timed.take(usable))
    coefficients = {name: getattr(fitted, name) for name in names if getattr(fitted, name) > 0}
    load = timed.moves.load
    domain = {
        "tokens": load.tokens,
        "vector_bytes": load.vector_bytes,
        "experts": load.num_experts,
        "nodes": timed.nodes,
        "ranks": timed.moves.num_ranks,
    }
    return fitting.entry(
        _describe(kernels, timed),
        timed.accelerator,
        fitting.residuals(measured[known], predicted[known], timed.held_out[known]),
        num_sms=kernels.num_sms,
        overlap=kernels.overlap,
        **coefficients,
        **({} if "latency_s" in coefficients else {"latency_s": 0.0}),
        **({} if "scale_up_fraction" in coefficients else {"scale_up_fraction": 1.0}),
        **({} if told is None else _fit_notify(fitted, _NOTIFY[operation], told)),
        domain=fitting.domain_of(domain),
    )


def _describe(kernels: _Kernels, timed: _Timed) -> str:
    """Source of an entry."""
    source = _BLOG if kernels.what.startswith("NVLink") else SOURCE
    title = timed.accelerator.title
    text = f"{len(timed.measured_s):,} timings of {kernels.what}, {title}, {source}"
    across, dropped = int((timed.nodes > 1).sum()), int((~timed.is_usable).sum())
    if across:
        text += f"; {across:,} of them across nodes, where the tables hold one model's shape"
    if dropped:
        text += (
            f"; {dropped} of them, on a network that carried a third of what it does else, "
            "count in the errors and not in the fit"
        )
    return text


def _solve(kernels: _Kernels, names: tuple[str, ...], timed: _Timed) -> ExchangeFit:
    """Fit the named coefficients to the rows."""
    start = {name: _COEFFICIENTS[name][0] for name in names}
    if "floor_s" in names:  # else a floor that hides every latency would leave nothing to search by
        low, high = np.exp(np.quantile(np.log(timed.measured_s), [0.2, 0.3])).tolist()
        usual = {"floor_s": low, "latency_s": high, "scale_up_fraction": 0.3}
        start |= {name: value for name, value in usual.items() if name in names}

    def build(values: Values) -> ExchangeFit:
        base = {"latency_s": 0.0, "scale_out_latency_s": 0.0, "latency_per_doubling_s": 0.0}
        shares = {"scale_up_fraction": 1.0, "scale_out_fraction": 1.0}
        given: dict[str, Any] = {"num_sms": kernels.num_sms, "overlap": kernels.overlap}
        return ExchangeFit.model_construct(
            kind="fitted", source="", **given | base | shares | values
        )

    found = fitting.search(
        lambda values: timed.moves.transfer_s(build(values), timed.accelerator),
        timed.measured_s,
        start,
        {name: _COEFFICIENTS[name][1:] for name in names},
        _SCALE,
        diff_step=_STEP,
    ).values
    nothing = {
        name: 0.0
        for name, value in found.items()
        if "fraction" not in name and value < _NOTHING * _COEFFICIENTS[name][1]
    }
    return build(found | nothing)


def _fit_notify(fitted: ExchangeFit, start: Values, told: _Timed) -> dict[str, Any]:
    """Coefficients of telling how much will come: linear in the doublings of nodes, and in tokens
    over multiprocessors or in what is carried.
    """
    told = told.take((told.nodes > 1) & (told.measured_s > 0))
    if not (~told.is_congested).any():
        return {}

    def solve(rows: Chosen) -> Values:
        some = told.take(rows & ~told.is_congested)
        return fitting.search(
            lambda values: some.moves.notify_s(fitted.model_copy(update=values), some.accelerator),
            some.measured_s,
            start,
            {name: (value / _FAR, value * _FAR) for name, value in start.items()},
            _NOTIFY_SCALE,
        ).values

    def predict(seen: Chosen, held: Chosen) -> Floats:
        fit = fitted.model_copy(update=solve(seen))
        return told.moves.take(held).notify_s(fit, told.accelerator)

    predicted = fitting.leave_out(told.nodes, predict)
    found = solve(np.ones(len(predicted), dtype=bool))
    return {**found, "notify_band": fitting.band_of(told.measured_s / predicted)}


def _across_as(entry: dict[str, Any], hopper: dict[str, Any]) -> dict[str, Any]:
    """Complete an entry across nodes, where network cards decide, which are the same: as fitted on
    Hopper, where it was.
    """
    known = {name: hopper[name] for name in (*_ACROSS, *_NOTIFY_FIELDS) if name in hopper}
    missing = {name: value for name, value in _ASSUMED_ACROSS.items() if name not in known}
    why = "as fitted on H100, whose network cards are the same" if known else "see normal"
    source = f"{entry['source']}; across nodes assumed, {why}"
    return {**entry, **missing, **known, "source": source}


def _assume_one_sided(entry: dict[str, Any]) -> dict[str, Any]:
    """Entry of a GPU whose one-sided kernels nobody timed."""
    errors = ("num_rows", "median_error", "p90_error", "bias", "band", "covered")
    about = ("accelerator", "command", *errors, "domain")
    kept = {name: value for name, value in entry.items() if name not in about}
    return {**kept, "kind": "assumed", "source": "As on GB200: " + entry["source"]}
