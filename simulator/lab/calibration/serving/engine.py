"""Fit of the table ``engine`` on serving points: the engine's own time, by engine and release.

Which requests share a step does not depend on how long steps take (a fixed number is in flight), so
each point is simulated once and its TTFT and TPOT are linear in the coefficients. What is reported
of a fit is of points whose whole model or whole GPU was left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.stats import t as student

from simulator.base.arrays import Bools, Floats, Ints
from simulator.base.errors import UserError
from simulator.config.calibration import ANY
from simulator.config.calibration.engine import UNSAID, Unseen, find_engine_key, parse_release
from simulator.lab.validation.kernels import COMMAND, SOURCE, Tables
from simulator.lab.validation.serving import MEASURES, Group, groups
from simulator.lab.validation.serving.answer import prepare
from simulator.lab.validation.serving.deployments import accelerator_of, deployment_of
from simulator.lab.validation.serving.load import sums
from simulator.lab.validation.serving.points import Point
from simulator.parallel.workers import sweep

sources = ("serving_points.csv.gz",)
_COEFFICIENTS = ("step_s", "sequence_s", "first_token_s", "stream_s")
_START = np.array([1e-3, 2e-5, 4e-2, 1e-3])
"""Start of the search: the order of magnitude of what fits of single engines find."""
_LARGEST = np.array([2e-2, 1e-3, 0.4, 1e-2])
"""Bounds of the search: ten times and more of where it begins."""
_PULL = 0.3
"""Strength by which a fit is drawn to the one above it, for each of the coefficients in units of
where the search starts."""
_SCALE = 0.1
"""Errors (of the logarithm) beyond this count linearly: a point may have run in a way that its row
does not say."""
_LEAST_ROWS = 20
"""An engine's release with fewer points is priced as the engine."""
_WEIGHTS = np.array([1.0, 1.5])
"""Weights of errors of TTFT and TPOT in the fit: times per token repeat better."""
_SHORTER = 0.5
"""Seconds of kernels and queues beside those of a point: deployments may have shorter ones than
any that was measured, and differ by more between releases."""
_ALL, _POOLED = "@all", ""
"""Names of pooled fits: of every release of an engine, which stands in no table; of every
calibration."""
_COMPILED, _COMPILED_SEQUENCE_S = "trtllm@0.17.0", 2e-6
"""Release that prepared requests in C++, and its assumed seconds of a sequence."""
_EARLIEST, _EARLIEST_EXPERTS = "trtllm@0.0.0", 2.35**0.5
"""With 2.35 Mixtral-8x7B on two H100 (128 tokens in, 128 out) slows down as published between
releases: from 27,451 tokens/s to 16,052. Which release had which kernels is not known, so the
middle is taken."""
_LOAD = ("isl", "osl", "concurrency")
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

    place: Ints
    """Place in the table."""
    engine: NDArray[np.object_]
    version: NDArray[np.object_]
    model: NDArray[np.object_]
    system: NDArray[np.object_]
    calibration: NDArray[np.object_]
    parts: Floats
    """Terms ``[n, 2, 5]`` of TTFT and TPOT: seconds of kernels, and the factor of each
    coefficient."""
    measured: Floats
    """``[n, 2]`` seconds."""
    file: NDArray[np.object_]
    """File of the model, which tells a prediction that was not fitted on it."""
    is_moe: Bools
    load: Floats
    """``[n, 3]``: :data:`_LOAD`."""

    def where(self, chosen: Bools) -> Points:
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


Bands = dict[Unseen, dict[str, tuple[float, float]]]
"""``band`` of TPOT and ``ttft_band`` by what a deployment has that no fit has seen."""
_KINDS = (np.int64, *[object] * 5, float, float, object, bool, float)
"""Types of the columns of :class:`Points`."""


def simulate(table: pd.DataFrame, workers: int | None = None) -> Points:
    """Simulate every aggregated point of a table that can be, on so many processes; ``None`` = one
    a core.
    """
    places = np.flatnonzero(table["mode"] == "agg")
    table = table.iloc[places].reset_index(drop=True)
    made, _ = groups(table)
    rows: list[tuple[object, ...]] = []
    for group, found in zip(made, sweep(_simulate_group, made, workers=workers), strict=True):
        for place, point, parts in zip(group.rows, group.points, found, strict=True):
            if parts is None:
                continue
            measured = read_measured(table, place)
            gpu = accelerator_of(point)
            model = point.repository.rsplit("/", 1)[-1].replace("-R1", "-V3")  # one shape
            load = (point.num_input, point.num_output, point.concurrency)
            deployed = deployment_of(point)
            named = point.engine, point.version, model, gpu.name, gpu.calibration
            known = deployed.spec.model, deployed.model.moe is not None, load
            rows.append((places[place], *named, parts, measured, *known))
    columns = zip(zip(*rows, strict=True), _KINDS, strict=True)
    return Points(*(np.array(column, dtype=kind) for column, kind in columns))


def _simulate_group(group: Group) -> list[Floats | None]:
    """Terms ``[2, 5]`` of every point of a group; ``None`` where it cannot be simulated or is left
    out.
    """
    found: list[Floats | None] = []
    known: dict[object, Floats] = {}
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


def _parts(terms: Floats, point: Point) -> Floats:
    before_first = np.array([[1.0, point.concurrency], [0.0, 0.0]])
    return np.concatenate([terms[:, :3], before_first], axis=1)


def fit(tables: Sequence[pd.DataFrame]) -> Tables:
    """Fit the table of every calibration that has serving points."""
    (table,) = tables
    return fit_points(simulate(table))


def fit_points(points: Points) -> Tables:
    """Fit every engine and release, and score the fits on models and GPUs that they had not
    seen.
    """
    ratios = np.stack([leave_out(points, names) for names in (points.model, points.system)])
    unseen = _bands_of_unseen(points)
    fitted = _fit_all(points)
    tables: dict[str, dict[str, dict[str, object]]] = {}
    for calibration in map(str, np.unique(points.calibration)):
        entries = {}
        for key in _entries_of(fitted, calibration):
            values = fitted.get((calibration, key), fitted[_POOLED, key])
            members = _select(points, key)
            here = members & (points.calibration == calibration)
            is_own = (calibration, key) in fitted
            judged = ratios[:, here if here.sum() >= _LEAST_ROWS else members]
            fitted_on = here if is_own else members
            entries[key] = _entry(
                key, calibration if is_own else "all GPUs", values, int(fitted_on.sum()), judged
            )
            engine = key.partition("@")[0]
            together = fitted.get((calibration, engine), fitted[_POOLED, engine])
            known = _hold_both(unseen, points, values, together)
            entries[key] |= _describe(points.where(fitted_on)) | {"unseen": known}
        entries[ANY] |= {
            "left_out": _score_left_out(points, ratios, points.calibration == calibration)
        }
        every = f"trtllm{_ALL}"
        if "trtllm" in entries:
            later = fitted.get((calibration, every), fitted[_POOLED, every])
            entries[_COMPILED] = _assume_compiled(_name_coefficients(later))
            entries[_EARLIEST] = _assume_earliest(entries[_COMPILED])
        tables[calibration] = entries
    return tables


def _assume_compiled(later: Mapping[str, float]) -> dict[str, object]:
    """TensorRT-LLM before 1.0, of which there are no points: later releases prepare each request in
    Python, these did in C++.
    """
    return {
        "kind": "assumed",
        "source": (
            "TensorRT-LLM before release 1.0 prepares the requests of a step in C++ while the step "
            "before runs: a few microseconds each at most, no more than the 7 us fitted to release "
            "1.2. The time of a step is that of later releases"
        ),
        "step_s": later["step_s"],
        "sequence_s": _COMPILED_SEQUENCE_S,
        "layer_s": 0.0,
    }


def _assume_earliest(compiled: Mapping[str, object]) -> dict[str, object]:
    """TensorRT-LLM before 0.17, whose kernels for routed experts were not measured but in one
    published figure.
    """
    ratio = (
        "; experts are slower than in 0.17 by half (in logarithms) of what takes Mixtral-8x7B, "
        "TP2 on H100 fp8, 128 in and 128 out, from 27,451 tokens/s in release 0.17 to the 16,052 "
        "that was published for an earlier one: which release had which kernels is not known"
    )
    return {
        **compiled,
        "source": f"{compiled['source']}{ratio}",
        "expert_ratio": round(_EARLIEST_EXPERTS, 2),
    }


def leave_out(points: Points, names: NDArray[np.object_], is_pooled: bool = False) -> Floats:
    """Predicted over measured seconds ``[n, 2]``, without the points of the same name in the fit;
    not a number for points without a name.

    Args:
        is_pooled: as of :func:`predict`.
    """
    ratios = np.full((len(names), 2), np.nan)
    for name in sorted(set(names) - {""}):
        out = names == name
        if not out.all():
            fitted = _fit_all(points.where(~out))
            ratios[out] = predict(points.where(out), fitted, is_pooled) / points.measured[out]
    return ratios


def _bands_of_unseen(points: Points) -> Bands:
    """Bands of a model, a GPU and a release that has no points; few groups say more together than
    one engine's do alone.

    A release is priced as the nearest one that was measured, since whole releases that were left
    out are nearer to that than to all releases together: median error of TTFT 22 against 33 %, of
    TPOT 9 against 12 %, of the 894 points that differ. Its band has the errors of both.
    """
    found: Bands = {}
    for kind, names in points.groups().items():
        errors = [leave_out(points, names)]
        if kind == "release":
            errors.append(leave_out(points, names, is_pooled=True))
        every = np.tile(names, len(errors))
        ttft, tpot = (
            band_of_unseen(ratios, every, _LEAST_ROWS) for ratios in np.concatenate(errors).T
        )
        if ttft and tpot:
            found[kind] = {"band": tpot, "ttft_band": ttft}
    return found


def _hold_both(
    unseen: Bands,
    points: Points,
    values: Floats,
    together: Floats,
) -> Bands:
    """Widen the bands of a release without points, which is priced as the nearest one, so that they
    hold the answers of all releases together, too, for what every point served.

    Args:
        values: coefficients of the nearest release.
        together: coefficients of all releases together.
    """
    if "release" not in unseen:
        return unseen
    short = replace(points, parts=points.parts * np.r_[_SHORTER, np.ones(len(values))])
    ratios = _add_up(short, together) / _add_up(short, values)
    low, high = np.minimum(ratios.min(axis=0), 1), np.maximum(ratios.max(axis=0), 1)
    held = {
        name: (min(band[0], float(low[place])), max(band[1], float(high[place])))
        for place, name in enumerate(("ttft_band", "band"))
        for band in (unseen["release"][name],)
    }
    return unseen | {"release": held}


def _add_up(points: Points, values: Floats) -> Floats:
    """Seconds ``[n, 2]`` to the first token, and a token, by one entry's coefficients or by those
    of each point.
    """
    whole = np.broadcast_to(values, (len(points.parts), values.shape[-1]))
    whole = np.concatenate([np.ones((len(whole), 1)), whole], axis=1)
    return np.asarray(np.einsum("nmk,nk->nm", points.parts, whole))


Fitted = dict[tuple[str, str], Floats]
"""Coefficients by calibration, or all of them together, and by engine and release."""


def _entries_of(fitted: Fitted, calibration: str) -> tuple[str, ...]:
    """Names of a calibration's entries: releases that were measured on its GPUs, or all where
    nothing was measured on them.

    Of TensorRT-LLM also those of other GPUs that are older than these: what is older still has
    assumed entries, which would answer for them. Other engines' older releases are better told by
    the engine's own entry than by another GPU's.
    """
    keys = dict.fromkeys(key for _, key in fitted if not key.endswith(_ALL))
    own = {key for place, key in fitted if place == calibration}
    return tuple(
        key for key in keys if "@" not in key or not own or key in own or _is_borrowed(key, own)
    )


def _is_borrowed(key: str, own: set[str]) -> bool:
    engine, _, release = key.partition("@")
    if engine != _COMPILED.partition("@")[0]:
        return False
    releases = [
        parse_release(one.partition("@")[2])
        for one in own
        if one.startswith(f"{engine}@") and not one.endswith(_ALL)
    ]
    return bool(releases) and parse_release(release) < min(releases)


def predict(points: Points, fitted: Fitted, is_pooled: bool = False) -> Floats:
    """Seconds ``[n, 2]`` to the first token, and a token.

    Args:
        is_pooled: whether all releases are priced as one that is not said.
    """
    keys = {
        calibration: _entries_of(fitted, calibration)
        for calibration in map(str, np.unique(points.calibration))
    }
    values = []
    for calibration, engine, version in zip(
        points.calibration, points.engine, points.version, strict=True
    ):
        release = UNSAID if is_pooled else version or UNSAID
        key = find_engine_key(keys[calibration], f"{engine}@{release}") or ANY
        values.append(fitted.get((calibration, key), fitted[_POOLED, key]))
    return _add_up(points, np.array(values))


def _select(points: Points, key: str) -> Bools:
    """Points of an entry: of a release, of an engine whose release is not said, of everything.

    Where too few of an engine's points do not say their release, all of the engine's are taken for
    it.
    """
    engine, _, release = key.partition("@")
    if key == ANY:
        return np.ones(len(points.engine), dtype=bool)
    wanted = parse_release(release)
    of_engine = np.asarray(points.engine == engine)
    if key.endswith(_ALL):
        return of_engine
    found = of_engine & np.array(
        [parse_release(version) == wanted for version in points.version], dtype=bool
    )
    return found if wanted or found.sum() >= _LEAST_ROWS else of_engine


def _fit_all(points: Points) -> Fitted:
    """Fit the coefficients of any engine, of each engine, and of each release with enough points;
    for one calibration where it has enough itself.

    Each fit is drawn to one on more points, so that what its own do not tell stays as it is there:
    an engine's to all engines', a release's to its engine's, one calibration's to that of all.
    """
    found: Fitted = {}
    for key in _names_of_fits(points):
        members = _select(points, key)
        above = ANY if key.endswith(_ALL) else key.partition("@")[0] + _ALL
        for calibration in (_POOLED, *map(str, np.unique(points.calibration[members]))):
            is_here = points.calibration == calibration
            own = members & (is_here | (calibration == _POOLED))
            if own.sum() < _LEAST_ROWS:
                continue
            higher = ((_POOLED, key),) if key == ANY else ((calibration, above), (_POOLED, above))
            prior = next((found[place] for place in higher if place in found), _START)
            found[calibration, key] = _solve(points.where(own), prior)
        found.setdefault((_POOLED, key), found.get((_POOLED, above), _START))
    return found


def _names_of_fits(points: Points) -> list[str]:
    keys = [ANY]
    for engine in map(str, np.unique(points.engine)):
        keys += [engine + _ALL, engine]
        releases = [parse_release(version) for version in points.version[points.engine == engine]]
        enough = sorted(
            {release for release in releases if release and releases.count(release) >= _LEAST_ROWS}
        )
        keys += [f"{engine}@{'.'.join(map(str, release))}" for release in enough]
    return keys


def _solve(points: Points, prior: Floats) -> Floats:
    """Least squares on the logarithms of both latencies; models and GPUs with many points do not
    drown the others.
    """
    names = np.array([f"{m} {s}" for m, s in zip(points.model, points.system, strict=True)])
    _, place, counts = np.unique(names, return_inverse=True, return_counts=True)
    weight = counts[place][:, None] ** -0.25 * _WEIGHTS
    log_measured = np.log(points.measured)
    centre = prior / _START

    def weigh_errors(values: Floats) -> Floats:
        whole = np.concatenate([[1.0], values * _START])
        errors = ((np.log(points.parts @ whole) - log_measured) * weight).ravel()
        return np.concatenate([errors, _PULL * (values - centre)])

    found = least_squares(
        weigh_errors,
        np.maximum(centre, 1e-3),
        bounds=(0.0, _LARGEST / _START),
        loss="soft_l1",
        f_scale=_SCALE,
    )
    return np.asarray(found.x * _START)


def _entry(
    key: str, where: str, values: Floats, num_rows: int, ratios: Floats
) -> dict[str, object]:
    what = "all engines" if key == ANY else key.replace("@", " ")
    return {
        "kind": "fitted",
        "source": (
            f"{num_rows} serving points of {what} on {where}, time to first token and time per "
            f"token, {SOURCE}; cross-validated by leaving out each model and each GPU"
        ),
        "command": COMMAND,
        "num_rows": num_rows,
        **residuals(ratios.reshape(-1, 2)),
        **_name_coefficients(values),
        "layer_s": 0.0,
    }


def _name_coefficients(values: Floats) -> dict[str, float]:
    """Coefficients by name."""
    return dict(zip(_COEFFICIENTS, values.tolist(), strict=True))


def _describe(points: Points) -> dict[str, object]:
    """Models, GPUs, releases and loads that the points of an entry were measured on."""
    low, high = points.load.min(axis=0), points.load.max(axis=0)
    return {
        "models": sorted(map(str, np.unique(points.file))),
        "gpus": sorted(map(str, np.unique(points.system))),
        "releases": [
            ".".join(map(str, release))
            for release in sorted({parse_release(version) for version in points.version} - {()})
        ],
        "domain": {name: (int(low[i]), int(high[i])) for i, name in enumerate(_LOAD)},
    }


def _score_left_out(
    points: Points, ratios: Floats, here: Bools
) -> dict[str, tuple[int, float, float]]:
    """Points, median error and 90th percentile of fits without their model, and without their GPU,
    by what is asked of them.
    """
    asked = {
        "tpot MoE": (1, here & points.is_moe),
        "tpot dense": (1, here & ~points.is_moe),
        "ttft": (0, here),
    }
    found = {}
    for name, (measure, own) in asked.items():
        off = np.abs(ratios[:, own, measure] - 1)
        if off.size:
            found[name] = (
                int(own.sum()),
                float(np.nanmedian(off)),
                float(np.nanquantile(off, 0.9)),
            )
    return found


# Measured times to first token and times per token of serving points, and errors of predictions
# as calibrations state them.


_FEWEST_GROUPS = 2


def read_measured(table: pd.DataFrame, place: int) -> tuple[float, float]:
    """Seconds to the first token, and of a token, of one point."""
    ttft, tpot = (float(table[m.column].iloc[place]) * m.unit_s for m in MEASURES)
    return ttft, tpot


def residuals(ratios_N2: Floats) -> dict[str, object]:
    """Errors and 80 % bands of predictions by fits that had not seen the points.

    Args:
        ratios_N2: predicted over measured time to first token, and time per token.
    """
    ttft, tpot = (_errors(ratios) for ratios in ratios_N2.T)
    del ttft["bias"]
    return tpot | {f"ttft_{name}": value for name, value in ttft.items()}


def band_of_unseen(
    ratios: Floats, groups: ArrayLike, least_rows: int
) -> tuple[float, float] | None:
    """80 % band of measured over predicted for a group that the fit has not seen, from groups that
    were left out of it; ``None`` where there are fewer than two.

    A new group's middle is as far from the mean of the middles as they are from each other
    (Student's t, since groups are few), and its points are as far from its middle as theirs. Both
    add up by their squares (the prediction interval of a random-effects model).

    Args:
        ratios: predicted over measured, not a number where nothing was predicted.
        least_rows: fewest points of a group that counts.
    """
    names = np.asarray(groups)
    logs = [
        own
        for name in np.unique(names)
        if len(own := -np.log(ratios[(names == name) & np.isfinite(ratios)])) >= least_rows
    ]
    if len(logs) < _FEWEST_GROUPS:
        return None
    tails = np.array([np.quantile(own, [0.1, 0.5, 0.9]) for own in logs])
    middles = tails[:, 1]
    below, above = np.abs(tails[:, [0, 2]] - tails[:, [1]]).mean(axis=0).tolist()
    between = student.ppf(0.9, len(logs) - 1) * middles.std(ddof=1) * np.sqrt(1 + 1 / len(logs))
    low, high = (
        middles.mean() + side * np.hypot(between, inside)
        for side, inside in ((-1, below), (1, above))
    )
    return float(np.exp(low)), float(np.exp(high))


def _errors(ratios: Floats) -> dict[str, object]:
    """Errors of predictions, and the 10th and 90th percentile of measured over predicted."""
    off = np.abs(ratios - 1)
    low, high = np.nanquantile(1 / ratios, [0.1, 0.9]).tolist()
    return {
        "median_error": float(np.nanmedian(off)),
        "p90_error": float(np.nanquantile(off, 0.9)),
        "bias": float(np.nanmedian(ratios - 1)),
        "band": (low, high),
    }
