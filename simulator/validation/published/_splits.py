"""Experts spread whole over ranks against experts split like dense blocks: pairs of serving points,
and what load does to them.

A pair is alike in all but how its experts are divided. Where one of the two does not say its
release, both must be of one sweep: their ids are the same up to the load. Whatever else such runs
differ in is not known, so they are counted on their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from simulator.validation.published import BY_LOAD, RELEASE_UNSAID, SAME_RELEASE
from simulator.validation.published._scores import Row, make_row
from simulator.validation.splits import FEWEST_LOADS, load_trend

_LOAD = re.compile(r"_c\d+(?=_|$).*")


def split_pairs(points: pd.DataFrame) -> pd.DataFrame:
    """Every pair of points of one mixture of experts: the places ``spread`` and ``split``,
    ``group``, ``load`` (requests in flight), ``ranks``, ``sweep``, and ``series``: pairs that
    differ in load only.

    Args:
        points: ``point``, ``id`` and ``is_moe``, by place.
    """
    moe = points[points["is_moe"].astype(bool)]
    sides = pd.DataFrame(
        [
            (place, point._replace(version="", decode=point.decode._replace(ep=1)), point.decode.ep)
            for place, point in moe["point"].items()
            if point.decode.num_ranks > 1 and point.decode.ep in (1, point.decode.num_ranks)
        ],
        columns=["place", "plain", "ep"],
    )
    sides["alike"] = pd.factorize(sides["plain"])[0]
    sides = sides.join(moe["id"].map(sweep_of).rename("sweep"), on="place")
    sides = sides.join(moe["point"].map(lambda point: point.version).rename("version"), on="place")
    both = sides[sides["ep"] > 1].merge(sides[sides["ep"] == 1], on="alike", suffixes=("_a", "_b"))
    both = both.sort_values(["alike", "place_a", "place_b"], ignore_index=True)
    is_same = both["version_a"] == both["version_b"]
    is_one_sweep = (both["sweep_a"] == both["sweep_b"]) & (both["sweep_a"] != "")
    is_unsaid = is_one_sweep & ((both["version_a"] == "") | (both["version_b"] == ""))
    unloaded = [
        plain._replace(concurrency=0, decode=plain.decode._replace(batch=None))
        for plain in both["plain_a"]
    ]
    series = list(zip(both["sweep_a"], both["sweep_b"], unloaded, strict=True))
    found = pd.DataFrame(
        {
            "spread": both["place_a"],
            "split": both["place_b"],
            "group": np.where(is_same, SAME_RELEASE, RELEASE_UNSAID),
            "load": [plain.concurrency for plain in both["plain_a"]],
            "ranks": [plain.decode.num_ranks for plain in both["plain_a"]],
            "sweep": both["sweep_b"],
            "series": pd.factorize(pd.Series(series, dtype=object))[0],
        }
    )
    return found[is_same | is_unsaid].reset_index(drop=True)


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
