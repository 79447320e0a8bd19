"""``moesim sparsity``: from which sparsity a pruned matrix takes fewer bytes and less time, by
format and machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from simulator.base.arrays import parse_array
from simulator.base.caches import measured_folder
from simulator.base.errors import UserError, check_known
from simulator.base.machine import name_machine
from simulator.base.partial import whole_file
from simulator.base.plugins import build
from simulator.base.progress import Progress, show_nothing
from simulator.base.reading import read_bytes
from simulator.config.accelerator import AcceleratorSpec, load_accelerator
from simulator.config.calibration import Calibration, CalibrationFile, Fit
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.host import HostRates, load_any_calibration
from simulator.config.sparsity import Block, PublishedSpeed, TwoFour, load_published, stored_bytes
from simulator.cost.break_even import Product, find_break_even, find_speed_up, make_pruning
from simulator.cost.compute import ComputeModel
from simulator.results.sparsity import (
    MeasuredSpeeds,
    PublishedPoint,
    SparseData,
    SparsityResults,
    SpeedCurve,
    StorageCurve,
)
from simulator.work.sparsity import list_storage

MACHINES = ("a100-sxm", "h100-sxm", "b200-sxm", "rtx-4090", "this-machine")
"""One machine of each family whose pruned products were measured."""
REAL_SHAPE, REAL_TOKENS = (1024, 1024), (1, 16, 256)
"""Matrix and tokens that are timed on this machine: few enough to take about a minute."""
SPARSITIES = tuple(round(0.01 * step, 2) for step in range(0, 100))
_MOST_PLACES = 1 << 36
"""Most places of a matrix: those of 64 GiB in a byte each."""
_WHERE = "sparsity"


def compare_sparsity(
    shape: tuple[int, int],
    dtype: str,
    machines: Sequence[str] = MACHINES,
    tokens: Sequence[int] = (16, 1024),
    data: tuple[int, int, int] = (4096, 14336, 4096 * 1434),
    measured: MeasuredSpeeds | None = None,
) -> SparsityResults:
    """Compare pruned matrices with whole ones.

    Args:
        shape: rows and columns of a weight matrix.
        dtype: number format of weights and of data.
        machines: accelerators of ``cluster_configs/accelerators``.
        tokens: tokens of a product.
        data: rows and columns of activations or inputs, and how many of them are not zero.
        measured: speeds that were measured on this machine.

    Raises:
        UserError: if there is no such number format or machine.
    """
    check_known(dtype, BYTES_PER_ELEMENT, "--dtype: unknown number format")
    published = load_published()
    return SparsityResults(
        *shape,
        dtype,
        tuple(_list_storage(shape, BYTES_PER_ELEMENT[dtype])),
        tuple(one for name in machines for one in _list_speeds(name, shape, dtype, tokens)),
        tuple(_compare_point(one) for one in published.speeds),
        published.losses,
        published.reductions,
        _describe_data(data, dtype),
        measured,
    )


def _list_storage(shape: tuple[int, int], value_bytes: float) -> Iterator[StorageCurve]:
    places = shape[0] * shape[1]
    tables = [
        list_storage(*shape, value_bytes, places - round(sparsity * places))
        for sparsity in SPARSITIES
    ]
    for formats in zip(*tables, strict=True):
        density = formats[0].break_even_density
        yield StorageCurve(
            formats[0].name,
            SPARSITIES,
            tuple(one.share for one in formats),
            1 - density if density else None,
        )
    blocks = [Block(kind="block", sparsity=sparsity) for sparsity in SPARSITIES]
    shares = [stored_bytes(one, *shape, value_bytes) / (places * value_bytes) for one in blocks]
    from_share = next((at for at, own in zip(SPARSITIES, shares, strict=True) if own < 1), None)
    yield StorageCurve("16x16 blocks", SPARSITIES, tuple(shares), from_share)
    two_four = stored_bytes(TwoFour(kind="two_four"), *shape, value_bytes)
    yield StorageCurve("2:4", (0.5,), (two_four / (places * value_bytes),), None)


def _open_machine(name: str) -> tuple[AcceleratorSpec, Calibration | HostRates, ComputeModel]:
    accelerator = load_accelerator(name, f"{_WHERE} --machine")
    loaded = load_any_calibration(accelerator.calibration, _WHERE)
    if isinstance(loaded, CalibrationFile):
        calibration: Calibration | HostRates = loaded.choose_engine("vllm")
    else:
        calibration = loaded.choose_tables(1, 1e9)
    policy = build("cost.compute", loaded.compute or {}, _WHERE)
    return accelerator, calibration, policy.prepare(accelerator, calibration)


def _list_speeds(
    name: str, shape: tuple[int, int], dtype: str, tokens: Sequence[int]
) -> Iterator[SpeedCurve]:
    """List the curves of one machine: of each kind of kernels that was measured in the number
    format, or on processors in theirs.
    """
    accelerator, calibration, compute = _open_machine(name)
    for kernels, own_dtype, fit in _list_kernels(calibration, dtype):
        at = (0.5,) if kernels == "two_four" else SPARSITIES
        if isinstance(calibration, HostRates):  # whose tables say nothing beyond their ends
            low, high = fit.domain["sparsity"]
            at = tuple(share for share in at if low <= share <= high)
        for number in tokens:
            product = Product(number, *shape, own_dtype)
            ask = partial(_ask_speed, compute, product, kernels)
            break_even = find_break_even(ask, at[0], at[-1]) if len(at) > 1 else None
            yield SpeedCurve(
                machine=accelerator.title,
                device="cpu" if isinstance(calibration, HostRates) else "gpu",
                kernels=kernels,
                dtype=own_dtype,
                tokens=number,
                kind=fit.kind,
                source=fit.source,
                sparsities=at,
                speed_ups=tuple(map(ask, at)),
                break_even=break_even,
                sparsity_range=fit.domain.get("sparsity"),
                rows_range=fit.domain.get("rows"),
            )


def _ask_speed(compute: ComputeModel, product: Product, kernels: str, sparsity: float) -> float:
    return find_speed_up(compute, product, make_pruning(kernels, sparsity))


def _list_kernels(
    calibration: Calibration | HostRates, dtype: str
) -> Iterator[tuple[str, str, Fit]]:
    """List the kernels for pruned matrices that were measured: in the number format, or on
    processors in theirs.
    """
    if isinstance(calibration, Calibration):
        for kernels in calibration.pruned:
            found = calibration.pruned_matrices(kernels, dtype)
            if found is not None:
                yield kernels, dtype, found
        return
    host = calibration.host
    for kind in dict.fromkeys(entry.pruning for entry in host.pruned):
        entries = [entry for entry in host.pruned if entry.pruning == kind]
        sparsities, rows = [one.sparsity for one in entries], entries[0].rows
        domain = {
            "sparsity": (min(sparsities), max(sparsities)),
            "rows": (float(min(rows)), float(max(rows))),
        }
        fit = entries[0].model_copy(update={"domain": domain})
        yield "csr" if kind == "unstructured" else kind, host.dtype, fit


def _compare_point(point: PublishedSpeed) -> PublishedPoint:
    """Put a prediction beside a published speed that no calibration was fitted on."""
    shown = PublishedPoint(
        point.title,
        point.device,
        point.sparsity,
        point.speed_up,
        point.tokens,
        point.rests,
        point.conditions,
        point.source,
        None if point.machine is None else load_accelerator(point.machine, _WHERE).title,
    )
    if point.rests != "compared":
        return shown
    assert point.machine is not None, "a point that is compared names its machine"
    assert point.kernels is not None, "and its kernels"
    assert point.tokens is not None
    assert point.out_features is not None
    assert point.in_features is not None
    _, calibration, compute = _open_machine(point.machine)
    product = Product(point.tokens, point.out_features, point.in_features, "bf16")
    predicted = _ask_speed(compute, product, point.kernels, point.sparsity)
    fits = {kernels: fit for kernels, _, fit in _list_kernels(calibration, "bf16")}
    low, high = fits[point.kernels].band or (1.0, 1.0)
    return replace(shown, predicted=predicted, low=predicted / high, high=predicted / low)


def _describe_data(data: tuple[int, int, int], dtype: str) -> SparseData:
    """Describe activations or inputs in every format."""
    rows, columns, kept = data
    stored = list_storage(rows, columns, BYTES_PER_ELEMENT[dtype], kept)
    return SparseData(
        rows=rows,
        columns=columns,
        dtype=dtype,
        density=kept / (rows * columns),
        whole_bytes=rows * columns * BYTES_PER_ELEMENT[dtype],
        formats=tuple((one.name, one.num_bytes, one.break_even_density) for one in stored),
    )


def measure_here(
    shape: tuple[int, int], tokens: Sequence[int], tick: Progress = show_nothing
) -> MeasuredSpeeds:
    """Measure the runtime's pruned layers on this machine's processor, or read what was measured
    of the shape and the tokens before.
    """
    from simulator.calibration.host.sparsity import measure_speeds

    file = measured_folder() / f"sparsity-{'x'.join(map(str, (*shape, *tokens)))}.json"
    with suppress(UserError, ValidationError):  # none, or an earlier version's
        kept = TypeAdapter(MeasuredSpeeds).validate_json(read_bytes(file))
        if kept.machine == name_machine():
            return kept
    found = measure_speeds(shape, tokens, tick)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial_file:
        partial_file.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
    return found


def find_data(data: str) -> tuple[int, int, int]:
    """Find the rows and columns of data, and how many values of it are not zero.

    Args:
        data: ``ROWSxCOLUMNS@DENSITY``, or a ``.npy`` file of two dimensions.

    Raises:
        UserError: if it is neither.
    """
    if data.endswith(".npy"):
        return _count_file(Path(data))
    sizes, at, density = data.partition("@")
    shape = find_sizes(sizes, "--data")
    try:
        share = float(density) if at else math.nan
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise UserError(
            f"--data {data}: must be ROWSxCOLUMNS@DENSITY with a density from 0 to 1, such as "
            "4096x14336@0.1, or a .npy file"
        )
    return *shape, round(share * shape[0] * shape[1])


def find_sizes(text: str, option: str) -> tuple[int, int]:
    """Find the rows and columns of ``28672x8192``.

    Raises:
        UserError: if these are not two whole numbers above 0.
    """
    first, _, second = text.partition("x")
    if not (first.isdigit() and second.isdigit() and 0 < int(first) * int(second) <= _MOST_PLACES):
        raise UserError(
            f"{option} {text}: must be ROWSxCOLUMNS, such as 14336x4096, and at most "
            f"{_MOST_PLACES:,} places"
        )
    return int(first), int(second)


def _count_file(path: Path) -> tuple[int, int, int]:
    values = parse_array(read_bytes(path), f"--data {path}")
    if values.ndim != 2 or not values.size:
        raise UserError(f"--data {path}: has the shape {values.shape}, must have rows and columns")
    return values.shape[0], values.shape[1], int(np.count_nonzero(values))
