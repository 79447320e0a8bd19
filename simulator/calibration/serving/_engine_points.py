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
from simulator.config.accelerator import load_accelerator
from simulator.parallel.workers import sweep
from simulator.validation.hardware import accelerator_name
from simulator.validation.serving import MEASURES, Group, groups
from simulator.validation.serving.answer import prepare
from simulator.validation.serving.deployments import deployment_of
from simulator.validation.serving.load import sums
from simulator.validation.serving.points import Point

LOAD = ("isl", "osl", "concurrency")
"""What the domain of an entry is of: tokens in, tokens out, requests in flight."""
_STALLED = ("sglang", "")
"""Engine and release of points that are left out: seconds before the first tokens whatever the
load, so one wait of a minute in each run (kernels compiled while the first requests wait), which
says nothing of steps."""


@dataclass(frozen=True)
class Points:
    """Simulated points, one row each."""

    engine: NDArray[np.object_]
    version: NDArray[np.object_]
    model: NDArray[np.object_]
    system: NDArray[np.object_]
    calibration: NDArray[np.object_]
    parts: NDArray[np.float64]
    """``[n, 2, 5]`` for TTFT and TPOT: seconds of kernels, and what each coefficient is multiplied
    with."""
    measured: NDArray[np.float64]
    """``[n, 2]`` seconds."""
    file: NDArray[np.object_]
    """The model's, which says what a prediction was not fitted on."""
    is_moe: NDArray[np.bool_]
    load: NDArray[np.float64]
    """``[n, 3]``: :data:`LOAD`."""

    def where(self, chosen: NDArray[np.bool_]) -> Points:
        """Some of them."""
        return Points(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def simulate(table: pd.DataFrame) -> Points:
    """Every aggregated point of a table that can be simulated."""
    made, _ = groups(table[table["mode"] == "agg"].reset_index(drop=True))
    table = table[table["mode"] == "agg"].reset_index(drop=True)
    rows: list[tuple[Any, ...]] = []
    for group, found in zip(made, sweep(_simulated, made), strict=True):
        for place, point, parts in zip(group.rows, group.points, found, strict=True):
            if parts is None:
                continue
            measured = [
                float(table[measure.column].iloc[place]) * measure.unit_s for measure in MEASURES
            ]
            gpu = accelerator_name(point.system) or ""
            calibration = load_accelerator(gpu, point.system).calibration
            model = point.repository.rsplit("/", 1)[-1].replace("-R1", "-V3")  # one shape
            load = (point.num_input, point.num_output, point.concurrency)
            deployed = deployment_of(point)
            known = (deployed.spec.model, deployed.model.moe is not None, load)
            rows.append(
                (point.engine, point.version, model, gpu, calibration, parts, measured, *known)
            )
    columns = [np.array(column, dtype=object) for column in list(zip(*rows, strict=True))[:5]]
    seconds = [np.array([row[place] for row in rows], dtype=float) for place in (5, 6)]
    files, is_moe, loads = (
        np.array([row[place] for row in rows], dtype=kind)
        for place, kind in ((7, object), (8, bool), (9, float))
    )
    return Points(
        columns[0],
        columns[1],
        columns[2],
        columns[3],
        columns[4],
        seconds[0],
        seconds[1],
        files,
        is_moe,
        loads,
    )


def _simulated(group: Group) -> list[NDArray[np.float64] | None]:
    """``[2, 5]`` of every point of a group; ``None`` where it cannot be simulated or is left
    out.
    """
    found: list[NDArray[np.float64] | None] = []
    known: dict[object, NDArray[np.float64]] = {}
    for one in prepare(group.points):
        if (
            isinstance(one.plan, str)
            or one.table is None
            or (one.point.engine, one.point.version) == _STALLED
        ):
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
