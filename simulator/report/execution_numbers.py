"""Numbers of the page of ``moesim execute``, for its sentences and its figures alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from simulator.report import style
from simulator.results.executed import KINDS, Executed
from simulator.results.phases import STEP_PHASES

TITLES = {kind: words.capitalize() for kind, words in KINDS.items()}
"""Kinds of step as headings."""
LOW, HIGH = 0.1, 0.9
"""The quantiles between which a spread is shown."""


def tidy(executed: Executed) -> Executed:
    """Make names of deployments texts, and numbers numbers.

    A name such as ``1`` is read from a file as a number, and a table to which a deployment adds
    nothing may hold its numbers as objects.
    """
    names = ("summary", "steps", "ranks", "spans", "faults")
    tables = {name: getattr(executed, name) for name in names}
    return replace(
        executed,
        **{
            name: table.infer_objects().assign(
                deployment=[str(deployment) for deployment in table["deployment"]]
            )
            for name, table in tables.items()
        },
    )


def kinds(executed: Executed) -> list[str]:
    """The kinds of step that were run, in their order."""
    return [str(kind) for kind in dict.fromkeys(executed.summary["kind"])]


def row(executed: Executed, deployment: str, kind: str) -> pd.Series | None:
    """The summary's row; None where this deployment ran no such steps."""
    found = executed.summary[
        (executed.summary["deployment"] == deployment) & (executed.summary["kind"] == kind)
    ]
    return None if found.empty else found.iloc[0]


def steps(executed: Executed, deployment: str, kind: str, source: str = "measured") -> pd.DataFrame:
    """The steps of one deployment and kind."""
    every = executed.steps
    return every[
        (every["deployment"] == deployment) & (every["kind"] == kind) & (every["source"] == source)
    ]


def spread_s(executed: Executed, deployment: str, kind: str) -> tuple[float, float]:
    """10th and 90th percentile of the durations of measured steps; NaN without any.

    Steps in which shards were lost are left out: new shards run their first one then.
    """
    broken = [one["step"] for one in list_losses(executed) if one["deployment"] == deployment]
    own = steps(executed, deployment, kind)
    duration_s = own.loc[~own["number"].isin(broken), "duration_s"].to_numpy(float)
    if len(duration_s) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(duration_s, [LOW, HIGH])
    return float(low), float(high)


def list_losses(executed: Executed) -> list[dict[str, Any]]:
    """List the shards that were lost, as rows of ``FAULT_COLUMNS``: those that were replaced, and
    those that a deployment's failures took, with the seconds until the others went on.
    """
    found = executed.faults.astype({"step": int, "recovery_s": float}).to_dict("records")
    losses = [{str(key): value for key, value in row.items()} for row in found]
    for name in executed.deployments:
        hang: dict[str, Any] | None = None
        for change in style.facts(executed, name).get("changes") or []:
            if change["kind"] == "hangs":
                hang = change
            elif change["kind"] in ("shrinks", "starts") and hang is not None:
                goes_on = f"{change['num_gpus']:,} ranks went on"
                losses.append(
                    {
                        "deployment": name,
                        "step": int(hang["step"]),
                        "ranks": " ".join(map(str, hang["ranks"])),
                        "what": goes_on if change["kind"] == "shrinks" else "all started anew",
                        "recovery_s": hang["seconds"] + change["seconds"],
                    }
                )
    return losses


def phase_medians_s(
    executed: Executed, deployment: str, kind: str, source: str
) -> dict[str, float]:
    """Median over steps of each phase; empty without steps."""
    found = steps(executed, deployment, kind, source)
    return (
        {} if found.empty else {phase: float(found[f"{phase}_s"].median()) for phase in STEP_PHASES}
    )


def imbalance(ranks: pd.DataFrame) -> pd.Series:
    """Pairs of the busiest rank over the mean rank's, by layer, mean over steps; layers without
    pairs are left out.

    Args:
        ranks: ``RANK_COLUMNS`` of one deployment and kind.
    """
    pairs = ranks.groupby(["layer", "number"])["num_pairs"]
    mean = pairs.mean()
    ratio = (pairs.max()[mean > 0] / mean[mean > 0]).astype(float)
    return ratio.groupby("layer").mean()


def kind_of_step(executed: Executed, number: int) -> str:
    """The kind of a step by its number, also of one that warmed up and is in no table."""
    last = executed.steps.groupby("kind", sort=False)["number"].max()
    return next(
        (str(kind) for kind, largest in last.sort_values().items() if number <= largest),
        str(last.idxmax()),
    )
