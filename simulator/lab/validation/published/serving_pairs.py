"""Pairs among serving points: experts spread whole over ranks against experts split like dense
blocks, and mixtures of experts against dense models on the same GPUs.

Points are answered by the ``serving`` suite; here only pairs of them are compared. A pair of
expert splits is alike in all but how its experts are divided. Where one of the two does not say its
release, both must be of one sweep: their ids are the same up to the load. Whatever else such runs
differ in is not known, so they are counted on their own. A mixture and a dense model are
compared by the most tokens per second that a GPU gives at any split and at any of the loads that
both were measured at, on the same GPU and engine, in the same precision, for the same lengths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd

from simulator.base.arrays import Floats
from simulator.base.frozen import Frozen
from simulator.base.progress import Progress, count_part
from simulator.config.model import load_model
from simulator.lab.results.scores import is_answered
from simulator.lab.validation import OK, serving
from simulator.lab.validation.published import BY_LOAD, RELEASE_UNSAID, SAME_RELEASE, Reply
from simulator.lab.validation.published._rows import Row, make_row, make_rows, ratio
from simulator.lab.validation.serving.deployments import find_model
from simulator.lab.validation.serving.points import Point, UnreadableError, read_point
from simulator.lab.validation.splits import FEWEST_LOADS, load_trend
from simulator.lab.validation.tables import Table

_LOAD = re.compile(r"_c\d+(?=_|$).*")
_TTFT, _TPOT = "silicon_ttft_ms", "silicon_tpot_ms"
_ALIKE = ["system", "engine", "bits", "num_input", "num_output", "campaign"]
"""Columns in which a mixture and a dense model that are compared are the same."""


class _Side(NamedTuple):
    """One point of a pair."""

    place: int
    release: str
    sweep: str


class ServingPairs(Frozen):
    """The columns of the ``serving`` suite."""

    columns: ClassVar[tuple[str, ...]] = serving.COLUMNS

    def replies(self, read: Table, tick: Progress) -> list[Reply]:
        points = read_points(read.values)
        splits = split_pairs(points)[["spread", "split"]].to_numpy().ravel().tolist()
        sides = (place for pair in _model_pairs(points) for side in pair for place in side)
        wanted = sorted({*splits, *sides})
        replies = [Reply.refuse_row("a pair of its kind is not in the table")] * len(read.values)
        if not wanted:
            return replies
        chosen, what = read.values.iloc[wanted].reset_index(drop=True), "pairs of serving points"
        answers = serving.answer(chosen, count_part(tick, what, len(chosen)))
        for row, place in enumerate(wanted):
            convert = partial(_tokens_per_s, points.loc[place, "point"])
            unit = "output tokens a second of a GPU"
            replies[place] = Reply.from_answers(answers, row, convert, unit)
        return replies

    def scores(self, read: Table, replies: list[Reply]) -> pd.DataFrame:
        table = read.values
        if not {_TTFT, _TPOT} <= set(table.columns):
            return make_rows([])
        points, rows = read_points(table), pd.DataFrame(replies).drop(columns="parts")
        seconds = table[[_TTFT, _TPOT]].to_numpy(float) / 1e3
        places = zip(points.index.to_list(), points["point"], strict=True)
        measured = {place: _tokens_per_s(point, seconds[place]) for place, point in places}
        rows["measured"] = pd.Series(measured, dtype=float)
        return make_rows([*_split_ratios(points, rows), *_model_ratios(points, rows)])


def read_points(table: pd.DataFrame) -> pd.DataFrame:
    """Aggregated points of known models, by their place in a table of serving points."""
    found = {}
    for place, row in enumerate(table.to_dict("records")):
        try:
            point = read_point({str(name): value for name, value in row.items()})
        except UnreadableError:
            continue
        known = find_model(point.repository)
        if point.prefill is None and known is not None:
            is_moe = load_model(known.model, known.model).moe is not None
            own = {"point": point, "id": str(row["id"]), "model": known.model, "is_moe": is_moe}
            told = {"bits": _bits(point), "setting": _setting(point)}
            found[place] = own | told | point._asdict()
    columns = ["point", "id", "model", "is_moe", "bits", "setting", *Point._fields]
    return pd.DataFrame(found.values(), index=list(found), columns=columns)


def _bits(point: Point) -> str:
    if "fp4" in point.gemm_format:
        return "4 bits"
    return "8 bits" if "8" in point.gemm_format else point.gemm_format


def _tokens_per_s(point: Point, latencies_s: Floats) -> float:
    """Output tokens per second of a GPU, from TTFT and TPOT at a fixed number of requests in
    flight.
    """
    ttft_s, tpot_s = latencies_s
    seconds = ttft_s + (point.num_output - 1) * tpot_s
    if not seconds > 0:
        return float("nan")
    return float(point.concurrency * point.num_output / seconds / point.decode.num_ranks)


def _model_pairs(points: pd.DataFrame) -> Iterator[tuple[list[int], list[int]]]:
    """Places of one mixture of experts and of one dense model at the loads that both have."""
    for _, own in points.groupby(_ALIKE, sort=False):
        for _, mixture in own[own["is_moe"]].groupby("model", sort=False):
            for _, dense in own[~own["is_moe"].astype(bool)].groupby("model", sort=False):
                common = set(mixture["concurrency"]) & set(dense["concurrency"])
                if common:
                    above, below = (
                        side.index[side["concurrency"].isin(common)].tolist()
                        for side in (mixture, dense)
                    )
                    yield above, below


def _model_ratios(points: pd.DataFrame, rows: pd.DataFrame) -> Iterator[Row]:
    models, settings = points["model"].to_dict(), points["setting"].to_dict()
    for pair in _model_pairs(points):
        above, below = (_best(rows.loc[side]) for side in pair)
        if above is not None and below is not None:
            names = " : ".join(models[side[0]] for side in pair)
            text = f"{names}, {settings[pair[0][0]]}"
            yield ratio("serving MoE : dense", text, above, below)


def _split_ratios(points: pd.DataFrame, rows: pd.DataFrame) -> Iterator[Row]:
    is_measured = np.isfinite(rows["measured"].to_numpy())
    pairs = split_pairs(points)
    pairs = pairs[is_measured[pairs["spread"]] & is_measured[pairs["split"]]].reset_index(drop=True)
    found = []
    for _, pair in pairs.iterrows():
        own = points.loc[int(pair["spread"])]
        load = f"c{own['concurrency']}, {own['model']} on {pair['ranks']}"
        text = f"EP : TP, {own['setting']} {load}"
        above, below = (rows.iloc[int(pair[side])] for side in ("spread", "split"))
        found.append(ratio(str(pair["group"]), text, above, below))
    yield from found
    yield from trends(pairs.join(make_rows(found).drop(columns="group")))


def _setting(point: Point) -> str:
    text = f"{point.system} {point.engine} {point.version} {point.num_input}/{point.num_output}"
    return text.replace("  ", " ")


def _best(chosen: pd.DataFrame) -> pd.Series | None:
    """The most that was measured, and the most that is predicted; ``None`` where no point is
    answered.
    """
    chosen = chosen[np.isfinite(chosen["measured"]) & is_answered(chosen["status"])]
    if chosen.empty:
        return None
    best: pd.Series = chosen.iloc[int(chosen["predicted"].argmax())].copy()
    best["measured"] = chosen["measured"].max()
    best["status"] = next((text for text in chosen["status"] if text != OK), OK)
    return best


def split_pairs(points: pd.DataFrame) -> pd.DataFrame:
    """Every pair of points of one mixture of experts: the places ``spread`` and ``split``,
    ``group``, ``load`` (requests in flight), ``ranks``, ``sweep``, and ``series``: pairs that
    differ in load only.

    Args:
        points: ``point``, ``id`` and ``is_moe``, by place.
    """
    moe = points[points["is_moe"].astype(bool)]
    sides: dict[Point, tuple[list[_Side], list[_Side]]] = {}
    for place, point, name in zip(moe.index.tolist(), moe["point"], moe["id"], strict=True):
        ep, ranks = point.decode.ep, point.decode.num_ranks
        if ranks > 1 and ep in (1, ranks):
            plain = point._replace(version="", decode=point.decode._replace(ep=1))
            side = _Side(place, point.version, sweep_of(name))
            sides.setdefault(plain, ([], []))[ep == 1].append(side)
    found = []
    for plain, (spread, split) in sides.items():
        load, ranks = plain.concurrency, plain.decode.num_ranks
        unloaded = plain._replace(concurrency=0, decode=plain.decode._replace(batch=None))
        for one, other in product(spread, split):
            is_same = one.release == other.release
            is_unsaid = "" in (one.release, other.release) and one.sweep == other.sweep != ""
            if is_same or is_unsaid:
                group = SAME_RELEASE if is_same else RELEASE_UNSAID
                series = one.sweep, other.sweep, unloaded
                found.append((one.place, other.place, group, load, ranks, other.sweep, series))
    columns = ["spread", "split", "group", "load", "ranks", "sweep", "series"]
    pairs = pd.DataFrame(found, columns=columns)
    pairs["series"] = pd.factorize(pairs["series"])[0]
    return pairs.astype({"spread": int, "split": int})


def sweep_of(name: str) -> str:
    """An id up to its load.

    >>> sweep_of("dsr1_b200_sglang_fp8_agg_1024x1024_c4_cfg81"), sweep_of("mine")
    ('dsr1_b200_sglang_fp8_agg_1024x1024', '')
    """
    return _LOAD.sub("", name) if _LOAD.search(name) else ""


def trends(pairs: pd.DataFrame) -> Iterator[Row]:
    """Trend of each series of at least three loads: how many times larger the ratio is at its
    largest load than at its smallest.

    By the slope of the ratio's logarithm over the load's, so that the direction rests on all
    points.

    Args:
        pairs: what :func:`split_pairs` gives, with the scores of the ratio of each.
    """
    answered = pairs[np.isfinite(pairs["predicted"])]
    for (group, _), own in answered.groupby(["group", "series"], sort=False):
        if own["load"].nunique() < FEWEST_LOADS:
            continue
        measured, predicted = load_trend(own["load"], own[["measured", "predicted"]])
        least, most = (own.loc[place] for place in (own["load"].idxmin(), own["load"].idxmax()))
        wide = float(np.hypot(*(np.log(row["high"] / row["predicted"]) for row in (least, most))))
        loads = f"c{most['load']} over c{least['load']}"
        subject = f"EP : TP, {loads}, {least['sweep']} on {least['ranks']}"
        yield make_row(f"{group}{BY_LOAD}", subject, (measured, predicted), wide, least["status"])
