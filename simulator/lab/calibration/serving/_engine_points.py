"""Simulated serving points, which the table ``engine`` is fitted on.

Which requests share a step does not depend on how long steps take (a fixed number is in flight), so
each point is simulated once and its TTFT and TPOT are linear in the coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.config.calibration.engine import Unseen, parse_release
from simulator.lab.calibration.serving._measured import read_measured
from simulator.lab.validation.serving import Group, groups
from simulator.lab.validation.serving.answer import prepare
from simulator.lab.validation.serving.deployments import accelerator_of, deployment_of
from simulator.lab.validation.serving.load import sums
from simulator.lab.validation.serving.points import Point
from simulator.parallel.workers import sweep

LOAD = ("isl", "osl", "concurrency")
"""Quantities of an entry's domain: tokens in, tokens out, requests in flight."""
_ONE_SHAPE = {"deepseek-r1": "deepseek-v3"}
"""Models that differ in their weights only are one where models are left out."""
_STALLED = ("sglang", "")
"""Engine and release of points that are left out: seconds before the first tokens whatever the
load, so one wait of a minute in each run (kernels compiled while the first requests wait), which
says nothing of steps."""


@dataclass(frozen=True)
class Points:
    """Simulated points, one row each."""

    place: NDArray[np.int64]
    """Place in the table."""
    engine: NDArray[np.object_]
    version: NDArray[np.object_]
    model: NDArray[np.object_]
    system: NDArray[np.object_]
    calibration: NDArray[np.object_]
    parts: NDArray[np.float64]
    """Terms ``[n, 2, 5]`` of TTFT and TPOT: seconds of kernels, and the factor of each
    coefficient."""
    measured: NDArray[np.float64]
    """``[n, 2]`` seconds."""
    file: NDArray[np.object_]
    """File of the model, which tells a prediction that was not fitted on it."""
    is_moe: NDArray[np.bool_]
    load: NDArray[np.float64]
    """``[n, 3]``: :data:`LOAD`."""

    def where(self, chosen: NDArray[np.bool_]) -> Points:
        """Select some of the points."""
        return Points(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def groups(self) -> dict[Unseen, NDArray[np.object_]]:
        """Groups that are left out as a whole; empty where a point does not say its release."""
        columns = (self.file, self.system, self.engine, self.version)
        named = [name_groups(*row) for row in zip(*columns, strict=True)]
        kinds: tuple[Unseen, ...] = ("model", "gpu", "release")
        return {kind: np.array([one[kind] for one in named], dtype=object) for kind in kinds}


def name_groups(file: str, gpu: str, engine: str, version: str) -> dict[Unseen, str]:
    """Groups of a point, each of which is left out of fits as a whole.

    >>> name_groups("deepseek-r1", "h100-sxm", "vllm", "0.12.0.post1")
    {'model': 'deepseek-v3', 'gpu': 'h100-sxm', 'release': 'vllm 0.12.0'}
    """
    release = ".".join(map(str, parse_release(version)))
    return {
        "model": _ONE_SHAPE.get(file, file),
        "gpu": gpu,
        "release": f"{engine} {release}" if release else "",
    }


_KINDS = (np.int64, *[object] * 5, float, float, object, bool, float)
"""Types of the columns of :class:`Points`."""


def simulate(table: pd.DataFrame, workers: int | None = None) -> Points:
    """Simulate every aggregated point of a table that can be, on so many processes; ``None`` = one
    a core.
    """
    places = np.flatnonzero(table["mode"] == "agg")
    table = table.iloc[places].reset_index(drop=True)
    made, _ = groups(table)
    rows: list[tuple[Any, ...]] = []
    for group, found in zip(made, sweep(_simulate_group, made, workers=workers), strict=True):
        for place, point, parts in zip(group.rows, group.points, found, strict=True):
            if parts is None:
                continue
            measured = read_measured(table, place)
            gpu = accelerator_of(point)
            model = point.repository.rsplit("/", 1)[-1].replace("-R1", "-V3")  # one shape
            load = (point.num_input, point.num_output, point.concurrency)
            deployed = deployment_of(point)
            known = (deployed.spec.model, deployed.model.moe is not None, load)
            rows.append(
                (
                    places[place],
                    point.engine,
                    point.version,
                    model,
                    gpu.name,
                    gpu.calibration,
                    parts,
                    measured,
                    *known,
                )
            )
    columns = zip(zip(*rows, strict=True), _KINDS, strict=True)
    return Points(*(np.array(column, dtype=kind) for column, kind in columns))


def _simulate_group(group: Group) -> list[NDArray[np.float64] | None]:
    """Terms ``[2, 5]`` of every point of a group; ``None`` where it cannot be simulated or is left
    out.
    """
    found: list[NDArray[np.float64] | None] = []
    known: dict[object, NDArray[np.float64]] = {}
    try:
        prepared = list(prepare(group.points))
    except UserError:
        return [None] * len(group.points)
    for one in prepared:
        if (one.point.engine, one.point.version) == _STALLED:
            found.append(None)
            continue
        load = (one.point._replace(repository="", is_drafted=False), str(one.found.spec.scheduling))
        try:
            if load not in known:
                known[load] = _parts(sums(one.plan, one.table, one.point), one.point)
            found.append(known[load])
        except UserError:
            found.append(None)
    return found


def _parts(terms: NDArray[np.float64], point: Point) -> NDArray[np.float64]:
    before_first = np.array([[1.0, point.concurrency], [0.0, 0.0]])
    return np.concatenate([terms[:, :3], before_first], axis=1)
