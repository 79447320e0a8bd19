"""Decomposition of the time of an output token: every step of a run, by its contents and by phase,
so that the parts add up to the time per output token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.columns import Columns, Picked
from simulator.results.phases import STEP_PHASES

if TYPE_CHECKING:
    from simulator.results.folder import Results

KINDS = ("decode", "mixed", "prefill", "cut")
"""Kinds of steps: with output tokens only, with prompts besides, with prompts only, for which
requests with tokens to come wait; and those that were cut short, since their replica stopped."""
_ROUNDING_S = 1e-9
"""Rounding error of a sum of two times, seconds; no step is as short."""
COLUMNS = {
    "deployment": "name of the deployment",
    "kind": "'decode', 'mixed', 'prefill' or 'cut' steps",
    "num_steps": "steps of the kind",
    "step_time_share": "share of the time of all steps that decode or could",
    **{f"{phase}_s": f"seconds of an output token in such steps: {phase}" for phase in STEP_PHASES},
    "token_s": "seconds of an output token in all",
}
"""Columns of ``token_time.csv``. Seconds are a mean over all output tokens of the deployment except
each request's first."""


def kinds_of(steps: Columns) -> NDArray[np.str_]:
    """Classify each step as one of :data:`KINDS`.

    >>> tokens = {"prefill_tokens": [0, 5, 5, 0], "decode_tokens": [3, 3, 0, 0]}
    >>> kinds_of(pd.DataFrame(tokens)).tolist()
    ['decode', 'mixed', 'prefill', 'cut']
    """
    has_prompts, has_decodes = steps["prefill_tokens"] > 0, steps["decode_tokens"] > 0
    others = np.where(has_prompts, "prefill", "cut")
    return np.where(has_decodes, np.where(has_prompts, "mixed", "decode"), others)


def make(results: Results) -> pd.DataFrame:
    """Decompose the token time of a run."""
    return make_token_time(results.requests, results.steps, results.moves)


def make_token_time(
    requests: Mapping[str, Columns], steps: Mapping[str, Columns], moves: pd.DataFrame
) -> pd.DataFrame:
    """Decompose the token time: a row for each deployment and kind of step, the columns of
    :data:`COLUMNS`.

    From its first token to its last a request is in, or waits for, the steps of one replica, one
    after another; where that replica stops, those of the next. So the duration of each step, times
    the requests that have their first token and not their last, adds up to the time that all tokens
    except the first took. A request that arrives in the middle of a step counts for the rest of it.

    Args:
        requests: ``REQUEST_COLUMNS`` by deployment; those that finished count.
        steps: ``STEP_COLUMNS`` by deployment.
        moves: ``MOVE_COLUMNS``.
    """
    rows = [
        {"deployment": name, **row}
        for name, own in requests.items()
        for row in _rows(own, steps[name], moves[moves["deployment"] == name])
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(requests: Columns, steps: Columns, moves: pd.DataFrame) -> Iterator[dict[str, object]]:
    steps = Picked(steps, (steps["pool"] != "prefill").to_numpy())
    weight, num_tokens = weigh_steps(requests, steps, moves)
    if not num_tokens:
        return
    kinds, step_s = kinds_of(steps), float(steps["duration_s"].sum())
    for kind in KINDS:
        places = np.flatnonzero(kinds == kind)
        own = {
            column: steps[column].to_numpy()[places]
            for column in ("num_steps", "duration_s", *(f"{phase}_s" for phase in STEP_PHASES))
        }
        parts_s = {
            f"{phase}_s": float((own[f"{phase}_s"] * weight[places]).sum()) / num_tokens
            for phase in STEP_PHASES
        }
        if len(places):
            share = float(own["duration_s"].sum()) / step_s
            yield {
                "kind": kind,
                "num_steps": int(own["num_steps"].sum()),
                "step_time_share": share,
                **parts_s,
                "token_s": sum(parts_s.values()),
            }


def weigh_steps(
    requests: Columns, steps: Columns, moves: pd.DataFrame
) -> tuple[NDArray[np.float64], int]:
    """Weigh the steps of one deployment, those of a prefill pool left out, by the requests that
    have their first token and not their last.

    Returns:
        Requests of each step, and output tokens of all requests except each one's first: the
        seconds of all steps, each times its requests, over these tokens are those of a token.
    """
    has_more = (requests["num_output"] > 1) & (requests["outcome"] == "finished")
    later = Picked(requests, has_more.to_numpy())
    num_tokens = int((later["num_output"] - 1).sum())
    if not num_tokens:
        return np.zeros(len(steps)), 0
    has_moved = later["request"].isin(moves["request"]).to_numpy()
    weight = _count_going(Picked(later, ~has_moved), steps).astype(np.float64)
    if has_moved.any():
        columns = ("request", "replica", "first_token_s", "finish_s")
        moved = pd.DataFrame({column: later[column][has_moved] for column in columns})
        weight = weight + _weigh_stays(_list_stays(moved, moves), steps)
    return weight, num_tokens


def _count_going(requests: Columns, steps: Columns) -> NDArray[np.int64]:
    """Count the requests of each step's replica that have their first token and not their last
    while it runs.
    """
    going = np.zeros(len(steps), dtype=np.int64)
    of_steps, of_requests = (table["replica"].to_numpy() for table in (steps, requests))
    for replica in np.unique(of_requests):
        places = np.flatnonzero(of_steps == replica)
        start_s = steps["start_s"].to_numpy()[places]
        own = of_requests == replica
        begun_s = np.sort(requests["first_token_s"].to_numpy()[own]) - _ROUNDING_S
        ended_s = np.sort(requests["finish_s"].to_numpy()[own])
        going[places] = np.searchsorted(begun_s, start_s, "right")
        going[places] -= np.searchsorted(ended_s, start_s, "right")
    return going


def _list_stays(requests: pd.DataFrame, moves: pd.DataFrame) -> pd.DataFrame:
    """List the replicas of requests from their first token to their last: a row for each replica
    after another, with the columns ``replica``, ``begun_s`` and ``ended_s``.
    """
    last = requests[["request", "replica"]].assign(at_s=requests["finish_s"])
    stays = pd.concat([moves[["request", "replica", "at_s"]], last])
    stays = stays[stays["request"].isin(requests["request"])]
    stays = stays.sort_values(["request", "at_s"], kind="stable", ignore_index=True)
    first_s = stays["request"].map(requests.set_index("request")["first_token_s"])
    begun_s = np.fmax(stays.groupby("request")["at_s"].shift(), first_s)
    stays = stays.assign(begun_s=begun_s, ended_s=stays["at_s"])
    return stays[stays["ended_s"] > stays["begun_s"]]


def _weigh_stays(stays: pd.DataFrame, steps: Columns) -> NDArray[np.float64]:
    """Share of each step that stays at its replica cover, added up over the stays."""
    weight = np.zeros(len(steps))
    replicas = steps["replica"].to_numpy()
    for replica, own in stays.groupby("replica"):
        places = np.flatnonzero((replicas == replica) & (steps["duration_s"].to_numpy() > 0))
        start_s = steps["start_s"].to_numpy()[places]
        duration_s = steps["duration_s"].to_numpy()[places]
        covered_s = _sum_before(own, start_s + duration_s) - _sum_before(own, start_s)
        weight[places] = covered_s / duration_s
    return weight


def _sum_before(stays: pd.DataFrame, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of all stays before each of some times."""
    total = np.zeros(len(times_s))
    for edges_s, sign in ((stays["begun_s"], 1.0), (stays["ended_s"], -1.0)):
        edges = np.sort(edges_s.to_numpy())
        count = np.searchsorted(edges, times_s)
        total += sign * (count * times_s - np.r_[0.0, np.cumsum(edges)][count])
    return total
