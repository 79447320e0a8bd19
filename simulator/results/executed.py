"""Results folder of ``moesim execute``: measurements and predictions of the same steps of the same
plans.

| file | holds |
|---|---|
| ``run.json`` | resolved scenario, seed, versions, machine, and per deployment its facts and the
steps whose timelines are kept (:class:`ShownTimeline`) |
| ``summary.csv`` | ``SUMMARY_COLUMNS``, a row a deployment and kind of step |
| ``steps.parquet`` | ``STEP_COLUMNS``, a row a measured or predicted step |
| ``ranks.parquet`` | ``RANK_COLUMNS``: what each rank computed |
| ``spans.parquet`` | ``SPAN_COLUMNS``, the timeline of a step of each kind at the median of their
times, measured and predicted |
| ``faults.csv`` | what went wrong, and how long it took to go on |
| ``timeline.json`` | the spans in Chrome's trace format; opens in Perfetto |
| ``report.html`` | the report |
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from simulator.base.findings import Finding
from simulator.base.formats import count, parameters
from simulator.results.phases import STEP_PHASES
from simulator.results.results_folder import Content, ResultsFolder, Verdict, make_verdict
from simulator.results.run_sentences import find_rebalances
from simulator.results.sampled_steps import chrome_trace, sampled_step
from simulator.results.tables import ExpertsMoved, ReplicasChanged
from simulator.work.uniform_load import UniformImbalance

KINDS = {"prompt": "prompts", "decode": "decode"}
"""Kinds of step, with their names for people."""
SOURCES = ("measured", "predicted")
BUSY = 0.1
"""Share of a machine's cores above which their use by other programs is mentioned: measured steps
vary by as much by themselves."""
OFF_PACE = 0.05
"""Share by which a machine's times may differ from its calibration's before that is mentioned:
calibrations in a row differ by as much."""
STEP_COLUMNS = {
    "deployment": "name of the deployment",
    "kind": "'prompt' or 'decode'",
    "source": "'measured' or 'predicted'",
    "number": "number of the step",
    "tokens": "new tokens over all ranks",
    "duration_s": "from telling the ranks to start until all are done",
    **{f"{phase}_s": f"part of the step, mean over ranks: {phase}" for phase in STEP_PHASES},
}
RANK_COLUMNS = {
    "deployment": "name of the deployment",
    "kind": "'prompt' or 'decode'",
    "number": "number of the step",
    "rank": "rank",
    "layer": "index among the MoE layers",
    "num_pairs": "token-expert pairs that the rank computed",
    "num_rows": "hidden vectors that it sent to other ranks",
}
SUMMARY_COLUMNS = {
    "deployment": "name of the deployment",
    "kind": "'prompt' or 'decode'",
    "tokens_per_s": "measured: new tokens of a step over its median duration",
    "predicted_tokens_per_s": "the same, predicted",
    "step_s": "median duration of a measured step",
    "predicted_step_s": "the same, predicted",
    "error": "predicted over measured duration, less one",
    "idle_error": (
        "the same, had the ranks had the cores that other programs took beyond what they took "
        "while the machine was calibrated: the error on an idle machine is likely between the two"
    ),
    "others_share": "share of the cores that other programs took during the measured steps",
    "calibrated_others_share": "share that they took while the machine was calibrated",
    "largest_difference": (
        "largest difference between a hidden value of the distributed run and of the "
        "one-process reference"
    ),
    "num_parameters": "parameters of the model; of a pruned one, those that are left",
    "num_active_parameters": "parameters that a token uses",
}


@dataclass(frozen=True)
class ShownTimeline:
    """Step of one kind whose timeline is kept; under ``shown_steps`` of the deployment in
    ``run.json``.
    """

    number: int
    """Number of the step at the median of the measured times of its kind."""
    uniform_imbalance: UniformImbalance | None
    """Imbalance that uniform routing gives at the kind's tokens by chance; ``None`` for a dense
    model."""


@dataclass(frozen=True)
class ExecutedMove(ExpertsMoved):
    """Experts that moved for real between two steps; under ``rebalances`` of the deployment in
    ``run.json``. Seconds, copies and bytes are measured.
    """

    step: int = 0
    """Number of the step before which they moved, of the first part where they moved in several."""
    predicted_s: float = 0.0
    """Seconds that the simulator prices the move at."""


@dataclass(frozen=True)
class ExecutedChange(ReplicasChanged):
    """Ranks that were lost for real or came back; under ``changes`` of the deployment in
    ``run.json``. Times are those of the deployment's clock.
    """

    step: int = 0
    """Number of the step that was running, or came next."""
    ranks: tuple[int, ...] = ()
    """Ranks that were lost or came back, by their number when all were there."""
    seconds: float = 0.0
    """Measured seconds: from the loss until all others had noticed it (``hangs``), from there until
    they had formed a new group (``shrinks``, and ``grows`` likewise), or of a start of all ranks
    (``starts``)."""
    predicted_s: float = 0.0
    """Seconds that the recovery policy gives for that."""
    loaded_bytes: float = 0.0
    """Bytes of experts that the rank which lacked most of them loaded."""


@dataclass(frozen=True)
class ExecutedCache:
    """Experts in memory and on disk that the measured steps of one kind used; under ``caches`` of
    the deployment in ``run.json``.
    """

    kind: str
    """``prompt`` or ``decode``."""
    used: int
    """Experts that steps used, over all steps and layers."""
    held: int
    """Experts of these that were in memory."""
    hit_rate: float
    """Share of these that were in memory."""
    predicted_hit_rate: float
    """Share by the replay that predictions rest on."""
    read_bytes: float
    """Bytes that were read from the disk."""
    read_s: float
    """Measured seconds of these reads."""
    predicted_read_s: float
    """Seconds that the simulator prices them at."""


@dataclass(frozen=True)
class Executed(ResultsFolder):
    """A finished execution: measured steps beside predicted ones.

    ``run`` has the machine, ``deployments`` by name, the resolved ``scenario``, and provenance.
    """

    summary: pd.DataFrame
    """Metrics of each deployment and kind of step, measured and predicted."""
    steps: pd.DataFrame
    """Durations and phases in seconds, a row for each measured or predicted step."""
    ranks: pd.DataFrame
    """Computed pairs and sent vectors, a row for each step, rank and MoE layer."""
    spans: pd.DataFrame
    """``SPAN_COLUMNS`` of :mod:`simulator.results.tables`; ``phase`` is ``"<kind>, <source>"``."""
    faults: pd.DataFrame
    """Faults, a row for each, with the seconds that recovery took."""

    writer = "moesim execute"
    files = {
        "summary": "summary.csv",
        "steps": "steps.parquet",
        "ranks": "ranks.parquet",
        "spans": "spans.parquet",
        "faults": "faults.csv",
    }

    @property
    def verdict(self) -> Verdict:
        """Headline, and reasons, whichever way the measurement came out."""
        return make_verdict(find_executed(self))

    def list_others(self) -> dict[str, Content]:
        """The timeline."""
        return {"timeline.json": json.dumps(chrome_trace(self.spans, partial(_title_spans, self)))}


def find_load(executed: Executed) -> Finding | None:
    """Find whether other programs took more of the cores than while the machine was calibrated."""
    more = executed.summary["others_share"] - executed.summary["calibrated_others_share"]
    if not (more >= BUSY).any():
        return None
    worst = executed.summary.iloc[int(more.fillna(0.0).to_numpy().argmax())]
    calibrated = worst["calibrated_others_share"]
    return Finding("executed.load", share=worst["others_share"], calibrated=calibrated)


def find_pace(shown: ResultsFolder) -> Finding | None:
    """Find whether the machine is faster or slower than when it was calibrated.

    >>> paces = {"a": {"pace": 1.04}, "of an earlier version": {}}
    >>> find_pace(ResultsFolder({"deployments": paces}))
    >>> str(find_pace(ResultsFolder({"deployments": paces | {"b": {"pace": 0.8}}})))[:33]
    'Matrix products took 0.80 times a'
    """
    paces = [shown.facts(name).get("pace", 1.0) for name in shown.deployments]
    worst = max(paces, key=lambda pace: abs(math.log(pace)), default=1.0)
    is_off = abs(math.log(worst)) >= math.log1p(OFF_PACE)
    return Finding("executed.pace", pace=worst) if is_off else None


def _title_spans(executed: Executed, deployment: str, phase: str) -> str:
    kind, source = phase.split(", ")
    return f"{KINDS[kind]}, step {sampled_step(executed, deployment, kind)['number']}, {source}"


TITLES = {kind: words.capitalize() for kind, words in KINDS.items()}
"""Kinds of step as headings."""
LOW, HIGH = 0.1, 0.9
"""The quantiles between which a spread is shown."""


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
    broken = [one.step for one in list_losses(executed) if one.deployment == deployment]
    own = steps(executed, deployment, kind)
    duration_s = own.loc[~own["number"].isin(broken), "duration_s"].to_numpy(float)
    if len(duration_s) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(duration_s, [LOW, HIGH])
    return float(low), float(high)


class Loss(NamedTuple):
    """Shards that were lost: a row of ``faults.csv``."""

    deployment: str
    step: int
    """Number of the step that was running."""
    ranks: str
    what: str
    recovery_s: float
    """Seconds until the others went on."""


def list_losses(executed: Executed) -> list[Loss]:
    """List the shards that were lost: those that were replaced, and those that a deployment's
    failures took.
    """
    faults = executed.faults.astype({"step": int, "recovery_s": float})
    losses = [Loss(*row) for row in faults[list(Loss._fields)].itertuples(index=False)]
    for name in executed.deployments:
        hang = None
        for change in (ExecutedChange(**one) for one in executed.facts(name).get("changes") or []):
            if change.kind == "hangs":
                hang = change
            elif change.kind in ("shrinks", "starts") and hang is not None:
                goes_on = f"{change.num_gpus:,} ranks went on"
                what = goes_on if change.kind == "shrinks" else "all started anew"
                ranks, took_s = " ".join(map(str, hang.ranks)), hang.seconds + change.seconds
                losses.append(Loss(name, hang.step, ranks, what, took_s))
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


_SAME = 0.15
"""Models whose parameters differ by less than this share have "as many"."""
_EQUAL = 0.05
"""Speeds that differ by less than this share count as equal."""
_SPREAD = 1.2
"""Least factor between the 10th and 90th percentile of steps that is worth a sentence."""
_EXACT = 1e-3
"""Hidden values are of order one, and fp32 sums in another order differ by less than this."""


def find_executed(executed: Executed) -> Iterator[Finding]:
    """Find what the measurement says, whichever way it came out: a headline, and reasons."""
    moes, dense, pruned = _find_roles(executed)
    compared = list(_compare_with_dense(executed, moes, dense))
    ranked = (_rank(executed, kind) for kind in kinds(executed) or ["prompt"])
    first, *others = compared or ranked
    machine = executed.run.get("machine") or "machine not recorded"
    yield Finding("executed.headline", machine=machine, first=first)
    for other in others:
        yield Finding("executed.further", found=other)
    if compared:
        yield from _find_predicted_ratios(executed, moes, dense)
    yield from _compare_with_whole(executed, dense, pruned)
    yield from _find_errors(executed)
    yield _compare_with_reference(executed)
    for name in executed.deployments:
        yield from _find_changes(executed, name)
    if num_faults := len(executed.faults):
        slowest_s = float(executed.faults["recovery_s"].max())
        yield Finding("executed.faults", faults=num_faults, slowest_s=slowest_s)
    yield from _find_noise(executed)


def _find_roles(executed: Executed) -> tuple[list[str], list[str], list[str]]:
    """Find the mixtures of experts, the dense models, and the pruned ones of either kind."""
    facts = {name: executed.facts(name) for name in executed.deployments}
    pruned = [name for name, known in facts.items() if known.get("pruning")]
    moes = [name for name, known in facts.items() if known.get("is_moe") and name not in pruned]
    return moes, [name for name in facts if name not in moes and name not in pruned], pruned


def _compare_with_dense(executed: Executed, moes: list[str], dense: list[str]) -> Iterator[Finding]:
    """Compare each mixture of experts with every dense model that ran the same kind of steps."""
    ranks = {executed.facts(name).get("num_gpus") for name in (*moes, *dense)}
    for kind, moe in itertools.product(kinds(executed), moes):
        ran = [name for name in dense if row(executed, name, kind) is not None]
        if ran and row(executed, moe, kind) is not None:
            described = _describe_dense(executed, moe, ran)
            yield Finding(
                "executed.compared",
                moe="the MoE" if len(moes) == 1 else moe,
                ranks=_count_ranks(executed, moe) if len(ranks) > 1 else "",
                kind=kind,
                others=[
                    _compare_speed(_find_ratio(executed, moe, name, kind)[0], text)
                    for name, text in described.items()
                ],
            )


def _compare_speed(ratio: float, other: str) -> Finding:
    """Describe a ratio of speeds.

    >>> from simulator.base.formats import TIMES
    >>> [str(_compare_speed(ratio, "B")).replace(TIMES, "x") for ratio in (2.38, 0.512, 1.02)]
    ['2.38x as fast as B', 'at 0.512x the speed of B', 'about as fast as B']
    """
    is_known, is_equal = math.isfinite(ratio), abs(ratio - 1) < _EQUAL
    return Finding("executed.speed", ratio=ratio, other=other, is_known=is_known, is_equal=is_equal)


def _find_predicted_ratios(
    executed: Executed, moes: list[str], dense: list[str]
) -> Iterator[Finding]:
    """Find the predicted ratios of the first mixture of experts, in the order of the measured."""
    ratios = {}
    for kind in kinds(executed):
        found = [_find_ratio(executed, moes[0], name, kind)[1] for name in dense]
        if known := [ratio for ratio in found if math.isfinite(ratio)]:
            ratios[KINDS[kind]] = known
    if ratios:
        moe = moes[0] if len(moes) > 1 else ""
        yield Finding("executed.predicted_ratios", moe=moe, ratios=ratios)


def _describe_dense(executed: Executed, moe: str, dense: list[str]) -> dict[str, str]:
    """Describe each dense model beside a mixture of experts: its twin in all parameters, in active
    ones, or just itself.
    """
    own = executed.facts(moe)
    twins = {
        "parameters": float(own.get("total_parameters") or 0),
        "active parameters": float(own.get("active_parameters") or 0),
    }
    found: dict[str, str] = {}
    for name in dense:
        size = float(executed.facts(name).get("total_parameters") or 0)
        twin = next(
            (what for what, of_moe in twins.items() if of_moe and abs(size / of_moe - 1) < _SAME),
            None,
        )
        described = f"the dense model with as many {twin}" if twin else name
        if described in found.values() or not twin:
            described = f"{name} ({parameters(size)} parameters)" if size else name
        elif "the dense model with as many parameters" in found.values():
            described = "the one with as many active ones"
        if executed.facts(name).get("num_gpus") != own.get("num_gpus"):
            described += f" on {_count_ranks(executed, name)}"
        found[name] = described
    return found


def _count_ranks(executed: Executed, name: str) -> str:
    known = executed.facts(name).get("num_gpus")
    return count(known, "rank") if known else "unknown ranks"


def _find_ratio(executed: Executed, one: str, other: str, kind: str) -> tuple[float, float]:
    """Find the speed of one deployment over another's, measured and predicted; NaN where that is
    undefined.
    """
    speeds = executed.summary[executed.summary["kind"] == kind].set_index("deployment")
    speeds = speeds[["tokens_per_s", "predicted_tokens_per_s"]].astype(float)
    measured, predicted = (
        mine / its if its > 0 else math.nan
        for mine, its in speeds.reindex([one, other]).to_numpy().T.tolist()
    )
    return measured, predicted


def _rank(executed: Executed, kind: str) -> Finding:
    """Find the fastest deployment and the next, where there is no mixture of experts to compare
    with a dense model.
    """
    speeds = {
        name: float(found["tokens_per_s"])
        for name in executed.deployments
        if (found := row(executed, name, kind)) is not None
    }
    best, *others = sorted(speeds, key=lambda name: -speeds[name]) or [""]
    than = None
    if others:
        ratio = speeds[best] / speeds[others[0]] if speeds[others[0]] else math.nan
        than = _compare_speed(ratio, others[0])
    return Finding(
        "executed.ranking",
        best=best,
        kind=kind,
        tokens_per_s=speeds.get(best),
        deployments=len(speeds),
        than=than,
    )


def _compare_with_whole(
    executed: Executed, dense: list[str], pruned: list[str]
) -> Iterator[Finding]:
    """Compare each pruned model with the one that it was pruned from."""
    model = {name: executed.facts(name).get("model") for name in (*dense, *pruned)}
    ratios = {}
    for name in pruned:
        whole = next((other for other in dense if model[other] == model[name]), "")
        found = {
            KINDS[kind]: _find_ratio(executed, name, whole, kind)[0] for kind in kinds(executed)
        }
        if known := {kind: ratio for kind, ratio in found.items() if math.isfinite(ratio)}:
            ratios[name] = known
    if ratios:
        yield Finding("executed.pruned", ratios=ratios)


def _find_errors(executed: Executed) -> Iterator[Finding]:
    """Find the errors of the prediction, and whether it puts deployments in the right order."""
    rows = executed.summary.astype({"error": float})
    rows = rows[np.isfinite(rows["error"])].reset_index(drop=True)
    if rows.empty:
        return
    errors = rows["error"].abs()
    name, kind, worst = rows.loc[errors.idxmax(), ["deployment", "kind", "error"]]
    right, pairs = _count_ordered(executed)
    yield Finding(
        "executed.errors",
        errors=len(errors),
        median=errors.median(),
        deployments=len(executed.deployments),
        kinds=len(kinds(executed)),
        name=name,
        kind=KINDS[kind],
        worst=worst,
        right=right,
        pairs=pairs,
        equal=_EQUAL,
    )


def _count_ordered(executed: Executed) -> tuple[int, int]:
    """Count the pairs of deployments that the prediction orders as the measurement does, and all
    that are not equally fast.
    """
    ratios = [
        _find_ratio(executed, *pair, kind)
        for kind in kinds(executed)
        for pair in itertools.combinations(executed.deployments, 2)
    ]
    far = [both for both in ratios if np.isfinite(both).all() and abs(both[0] - 1) >= _EQUAL]
    return sum((measured > 1) == (predicted > 1) for measured, predicted in far), len(far)


def _compare_with_reference(executed: Executed) -> Finding:
    """Find whether the distributed runs compute what one process does."""
    found = executed.summary["largest_difference"].astype(float)
    known = found[np.isfinite(found)]
    most = float(known.max()) if len(known) else math.nan
    return Finding(
        "executed.reference",
        most=most,
        is_equal=most < _EXACT,
        compared=len(known),
        rows=len(found),
    )


def _find_changes(executed: Executed, name: str) -> Iterator[Finding]:
    """Find what changed while a deployment ran, measured beside predicted."""
    facts = executed.facts(name)
    yield from find_rebalances(facts, name)
    for cache in facts.get("caches") or []:
        yield Finding("executed.cache", **{**cache, "kind": KINDS[cache["kind"]]}, name=name)
    changes = [
        Finding("executed.change", **change)
        for change in facts.get("changes") or []
        if change["kind"] in ("hangs", "shrinks", "grows", "starts")
    ]
    if changes:
        yield Finding("executed.changes", name=name, changes=changes)
    elif facts.get("failures") and "clock_s" in facts:
        yield Finding("executed.no_failure", name=name, clock_s=facts["clock_s"])


def _find_noise(executed: Executed) -> Iterator[Finding]:
    """Find the spread of the steps of one kind where that limits what the numbers can tell."""
    factors = {
        key: high_s / low_s
        for key in itertools.product(executed.deployments, kinds(executed))
        for low_s, high_s in [spread_s(executed, *key)]
        if low_s > 0
    }
    if factors and max(factors.values()) >= _SPREAD:
        (name, kind), worst = max(factors.items(), key=lambda item: item[1])
        middle = statistics.median(factors.values())
        yield Finding("executed.noise", middle=middle, worst=worst, name=name, kind=KINDS[kind])
