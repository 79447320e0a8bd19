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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from simulator.base.formats import (
    TIMES,
    count,
    num_bytes,
    number,
    parameters,
    percent,
    seconds,
    seconds_text,
)
from simulator.results.phases import STEP_PHASES
from simulator.results.results_folder import Content, ResultsFolder
from simulator.results.run_sentences import find_rebalances
from simulator.results.shown_steps import chrome_trace, shown_step
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
    """A finished execution: measured steps beside predicted ones, and how they were made."""

    run: dict[str, Any]
    """Facts of the execution as ``run.json`` has them, among them the machine, ``deployments`` by
    name, the resolved ``scenario``, and how it was made."""
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
    def verdict(self) -> dict[str, Any]:
        """Headline, and reasons, whichever way the measurement came out."""
        headline, reasons = tell_executed(self)
        return {"headline": headline, "reasons": reasons}

    def list_others(self) -> dict[str, Content]:
        """The timeline."""
        return {
            "timeline.json": json.dumps(chrome_trace(self.spans, partial(_title_spans, self.run)))
        }


def describe_load(executed: Executed) -> str | None:
    """Warn where other programs took more of the cores than while the machine was calibrated;
    ``None`` where they did not.
    """
    more = executed.summary["others_share"] - executed.summary["calibrated_others_share"]
    if not (more >= BUSY).any():
        return None
    worst = executed.summary.iloc[int(more.fillna(0.0).to_numpy().argmax())]
    return (
        f"Other programs took up to {worst['others_share']:.0%} of the cores while steps were "
        f"measured ({worst['calibrated_others_share']:.0%} while the machine was calibrated), so "
        "steps took longer than on an idle machine; each error is given up to what it would be "
        "with those cores. Run it again when the machine is idle."
    )


def describe_pace(deployments: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Warn where the machine is faster or slower than when it was calibrated; ``None`` where it is
    not.

    Args:
        deployments: facts of each, as ``run.json`` has them; of earlier versions without a pace.

    >>> describe_pace({"a": {"pace": 1.04}, "of an earlier version": {}})
    >>> describe_pace({"a": {"pace": 1.04}, "b": {"pace": 0.8}})[:33]
    'Matrix products took 0.80 times a'
    """
    paces = [facts.get("pace", 1.0) for facts in deployments.values()]
    worst = max(paces, key=lambda pace: abs(math.log(pace)), default=1.0)
    if abs(math.log(worst)) < math.log1p(OFF_PACE):
        return None
    return (
        f"Matrix products took {worst:.2f} times as long as when the calibration was made, and "
        "predictions are stretched by as much. Calibrate again if that lasts."
    )


def _title_spans(run: dict[str, Any], deployment: str, phase: str) -> str:
    kind, source = phase.split(", ")
    return f"{KINDS[kind]}, step {shown_step(run, deployment, kind)['number']}, {source}"


def tell_all_changes(executed: Executed) -> Iterator[str]:
    """Tell what changed while each deployment ran, measured beside predicted."""
    for name in executed.deployments:
        facts = executed.facts(name)
        yield from map(str, find_rebalances(facts, name))
        for cache in facts.get("caches") or []:
            yield _tell_cache(name, cache)
        changes = [told for change in facts.get("changes") or [] if (told := _tell_change(change))]
        if changes:
            yield f"Of {name}, {'; '.join(changes)}. Every step in flight was run again."
        elif facts.get("failures") and "clock_s" in facts:
            yield (
                f"No GPU of {name} has failed: its measured steps, with what came between them, "
                f"took {seconds_text(facts['clock_s'])}."
            )


def _tell_cache(name: str, cache: dict[str, Any]) -> str:
    """Tell what steps of one kind found in memory and read from the disk."""
    return (
        f"In {KINDS[cache['kind']]} {name} found {percent(cache['hit_rate'])} of its experts in "
        f"memory (predicted: {percent(cache['predicted_hit_rate'])}), and read "
        f"{num_bytes(cache['read_bytes'])} of the others from the disk in "
        f"{seconds_text(cache['read_s'])} (predicted: {seconds_text(cache['predicted_read_s'])})."
    )


def _tell_change(change: dict[str, Any]) -> str:
    """Tell one change; empty for one that the next one tells."""
    ranks, at = _name_ranks(change["ranks"]), seconds_text(change["at_s"])
    one = len(change["ranks"]) == 1
    took = f"{seconds_text(change['seconds'])} (predicted: {seconds_text(change['predicted_s'])})"
    if change["kind"] == "hangs":
        are = "is" if one else "are"
        return f"{ranks} {are} lost at {at} in step {change['step']}, which is noticed after {took}"
    if change["kind"] == "shrinks":
        left = change["num_gpus"]
        goes = "the one that is left goes" if left == 1 else f"the {left} that are left go"
        size = change["loaded_bytes"]
        loads = f" and {num_bytes(size)} of experts loaded on one" if size else " and none loaded"
        return f"{goes} on {took} later, with the experts that they have copies of{loads}"
    if change["kind"] == "grows":
        joins = "joins" if one else "join"
        return f"{ranks} {joins} again at {at}, for which steps wait {took}"
    return f"all start anew in {took}" if change["kind"] == "starts" else ""


def _name_ranks(ranks: list[int]) -> str:
    """Name some ranks.

    >>> _name_ranks([1]), _name_ranks([0, 2, 3])
    ('rank 1', 'ranks 0, 2 and 3')
    """
    *firsts, last = map(str, ranks)
    return f"ranks {', '.join(firsts)} and {last}" if firsts else f"rank {last}"


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
        for change in executed.facts(name).get("changes") or []:
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


_SAME = 0.15
"""Models whose parameters differ by less than this share have "as many"."""
_EQUAL = 0.05
"""Speeds that differ by less than this share count as equal."""
_SPREAD = 1.2
"""Least factor between the 10th and 90th percentile of steps that is worth a sentence."""
_EXACT = 1e-3
"""Hidden values are of order one, and fp32 sums in another order differ by less than this."""
_VERBS = {"prompt": "computes prompts", "decode": "decodes"}


def tell_executed(executed: Executed) -> tuple[str, list[str]]:
    """Tell what the measurement says, whichever way it came out."""
    moes, dense, pruned = _roles(executed)
    machine = str(executed.run.get("machine") or "machine not recorded")
    first, *others = kinds(executed) or ["prompt"]
    said, *reasons = _against_dense(executed, moes, dense) or [
        _ranking(executed, first),
        *(f"{KINDS[kind].capitalize()}: {_ranking(executed, kind)}." for kind in others),
    ]
    reasons += [
        *_against_whole(executed, dense, pruned),
        *_prediction(executed),
        _reference(executed),
        *tell_all_changes(executed),
        *_faults(executed),
        *_noise(executed),
    ]
    return f"On this machine ({machine}) {said}.", reasons


def _roles(executed: Executed) -> tuple[list[str], list[str], list[str]]:
    """The mixtures of experts, the dense models, and the pruned ones of either kind."""
    facts = {name: executed.facts(name) for name in executed.deployments}
    pruned = [name for name, known in facts.items() if known.get("pruning")]
    moes = [name for name, known in facts.items() if known.get("is_moe") and name not in pruned]
    return moes, [name for name in facts if name not in moes and name not in pruned], pruned


def _against_dense(executed: Executed, moes: list[str], dense: list[str]) -> list[str]:
    """The first mixture of experts against every dense model, and what is left in sentences; none
    where there are no two to compare.
    """
    ranks = {executed.facts(name).get("num_gpus") for name in (*moes, *dense)}
    on = {name: f" (on {_ranks(executed, name)})" if len(ranks) > 1 else "" for name in moes}
    sentences = [
        f"{'the MoE' if len(moes) == 1 else moe}{on[moe]} {_VERBS[kind]} {compared}"
        for kind in kinds(executed)
        for moe in moes
        if (compared := _compare_with_dense(executed, moe, dense, kind))
    ]
    said = [f"{text[0].upper()}{text[1:]}." for text in sentences[1:]]
    return [*sentences[:1], *said, *(_predicted_ratios(executed, moes, dense) if sentences else [])]


def _compare_with_dense(executed: Executed, moe: str, dense: list[str], kind: str) -> str:
    """Compare a mixture of experts with each dense model; empty where they ran no such steps."""
    if row(executed, moe, kind) is None:
        return ""
    ran = [name for name in dense if row(executed, name, kind) is not None]
    return _join_parts(
        [
            _as_fast(_ratio(executed, moe, name, kind)[0], described)
            for name, described in _descriptions(executed, moe, ran).items()
        ]
    )


def _predicted_ratios(executed: Executed, moes: list[str], dense: list[str]) -> Iterator[str]:
    """The ratios of the first mixture of experts as they were predicted, in the same order."""
    said = []
    for kind in kinds(executed):
        ratios = [_ratio(executed, moes[0], name, kind)[1] for name in dense]
        if numbers := [f"{number(ratio)}{TIMES}" for ratio in ratios if np.isfinite(ratio)]:
            said.append(f"{' and '.join(numbers)} for {KINDS[kind]}")
    of = f" of {moes[0]}" if len(moes) > 1 else ""
    if said:
        yield f"The prediction of these ratios{of} was {', and '.join(said)}."


def _descriptions(executed: Executed, moe: str, dense: list[str]) -> dict[str, str]:
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
        count = float(executed.facts(name).get("total_parameters") or 0)
        twin = next(
            (what for what, of_moe in twins.items() if of_moe and abs(count / of_moe - 1) < _SAME),
            None,
        )
        described = f"the dense model with as many {twin}" if twin else name
        if described in found.values() or not twin:
            described = f"{name} ({parameters(count)} parameters)" if count else name
        elif "the dense model with as many parameters" in found.values():
            described = "the one with as many active ones"
        if executed.facts(name).get("num_gpus") != own.get("num_gpus"):
            described += f" on {_ranks(executed, name)}"
        found[name] = described
    return found


def _ranks(executed: Executed, name: str) -> str:
    count = executed.facts(name).get("num_gpus")
    return "1 rank" if count == 1 else f"{count or 'unknown'} ranks"


def _ratio(executed: Executed, one: str, other: str, kind: str) -> tuple[float, float]:
    """Speed of one deployment over another, measured and predicted; NaN where that is undefined."""
    speeds = executed.summary[executed.summary["kind"] == kind].set_index("deployment")
    speeds = speeds[["tokens_per_s", "predicted_tokens_per_s"]].astype(float)
    measured, predicted = (
        mine / its if its > 0 else float("nan")
        for mine, its in speeds.reindex([one, other]).to_numpy().T.tolist()
    )
    return measured, predicted


def _as_fast(ratio: float, other: str) -> str:
    """A ratio of speeds in words.

    >>> [_as_fast(ratio, "B").replace(TIMES, "x") for ratio in (2.38, 0.512, 1.02)]
    ['2.38x as fast as B', 'at 0.512x the speed of B', 'about as fast as B']
    """
    if not np.isfinite(ratio):
        return f"at a speed that cannot be compared with {other}"
    if abs(ratio - 1) < _EQUAL:
        return f"about as fast as {other}"
    return (
        f"{number(ratio)}{TIMES} as fast as {other}"
        if ratio > 1
        else f"at {number(ratio)}{TIMES} the speed of {other}"
    )


def _join_parts(parts: list[str]) -> str:
    """Parts of a sentence, put together.

    >>> [_join_parts(["a", "b", "c"][:number]) for number in (3, 2, 1)]
    ['a, b, and c', 'a, and b', 'a']
    """
    return ", and ".join(filter(None, (", ".join(parts[:-1]), parts[-1]))) if parts else ""


def _ranking(executed: Executed, kind: str) -> str:
    """The fastest deployment and the next, where there is no mixture of experts to compare with a
    dense model.
    """
    speeds = {
        name: float(found["tokens_per_s"])
        for name in executed.deployments
        if (found := row(executed, name, kind)) is not None
    }
    ranked = sorted(speeds, key=lambda name: -speeds[name])
    if not ranked:
        return "nothing was measured"
    best, at = f"{ranked[0]} {_VERBS[kind]}", f"at {number(speeds[ranked[0]])} tokens per second"
    if len(ranked) == 1:
        return f"{best} {at}"
    ratio = speeds[ranked[0]] / speeds[ranked[1]] if speeds[ranked[1]] else float("nan")
    return f"{best} fastest of {len(ranked)} deployments, {at}: {_as_fast(ratio, ranked[1])}"


def _against_whole(executed: Executed, dense: list[str], pruned: list[str]) -> Iterator[str]:
    """Each pruned model against the one it was pruned from."""
    model = {name: executed.facts(name).get("model") for name in (*dense, *pruned)}
    sentences = []
    for name in pruned:
        whole = next((other for other in dense if model[other] == model[name]), None)
        ratios = {kind: _ratio(executed, name, whole or "", kind)[0] for kind in kinds(executed)}
        said = [
            f"{KINDS[kind]} {number(ratio)}{TIMES}"
            for kind, ratio in ratios.items()
            if np.isfinite(ratio)
        ]
        if said:
            sentences.append(f"{name}: {' and '.join(said)}")
    if sentences:
        yield (
            "Pruned models against the speed of the one that they were pruned "
            f"from: {'; '.join(sentences)}."
        )


def _prediction(executed: Executed) -> Iterator[str]:
    """Tell the errors of the prediction, and whether it puts deployments in the right order."""
    rows = executed.summary.astype({"error": float})
    rows = rows[np.isfinite(rows["error"])].reset_index(drop=True)
    if rows.empty:
        return
    errors = rows["error"].abs()
    name, kind, error = rows.loc[errors.idxmax(), ["deployment", "kind", "error"]]
    worst = _error_text(error)
    if len(errors) == 1:
        yield f"The predicted duration of a step is {worst}."
        return
    several, num_kinds = len(executed.deployments), len(kinds(executed))
    of = f"{several} deployments" if several > 1 else "one deployment"
    of_kinds = f"{num_kinds} kinds of step" if num_kinds > 1 else "one kind of step"
    right, total = _order(executed)
    order = (
        f" Of {count(total, 'pair')} whose measured speeds differ by more than "
        f"{100 * _EQUAL:.0f} %, it puts {right} in the right order."
    )
    yield (
        f"The predicted duration of a step is off by {100 * errors.median():.0f} % (median "
        f"of the absolute errors over {of} and {of_kinds}); furthest for {KINDS[kind]} of {name}, "
        f"which is {worst}.{order if total else ''}"
    )


def _order(executed: Executed) -> tuple[int, int]:
    """Pairs of deployments that the prediction orders as the measurement does, and all that are not
    equally fast.
    """
    ratios = [
        _ratio(executed, *pair, kind)
        for kind in kinds(executed)
        for pair in itertools.combinations(executed.deployments, 2)
    ]
    far = [both for both in ratios if np.isfinite(both).all() and abs(both[0] - 1) >= _EQUAL]
    return sum((measured > 1) == (predicted > 1) for measured, predicted in far), len(far)


def _error_text(error: float) -> str:
    """A signed error of a duration in words.

    >>> _error_text(-0.231), _error_text(0.5), _error_text(0.001)
    ('23 % too short', '50 % too long', 'right within 1 %')
    """
    if abs(error) < 0.01:
        return "right within 1 %"
    return f"{100 * abs(error):.0f} % too {'long' if error > 0 else 'short'}"


def _reference(executed: Executed) -> str:
    """Tell whether the distributed runs compute what one process does."""
    found = executed.summary["largest_difference"].astype(float)
    known = found[np.isfinite(found)]
    if known.empty:
        return (
            "The distributed runs were not compared with a one-process reference (they need a "
            "step of warm-up for that)."
        )
    part = "" if len(known) == len(found) else f" ({len(known)} of {len(found)} were compared)"
    verb, differs = (
        ("equal", "no hidden value differs by more than")
        if known.max() < _EXACT
        else ("do not equal", "hidden values differ by up to")
    )
    return (
        f"The distributed runs {verb} the one-process reference: {differs} {known.max():.1e}{part}."
    )


def _faults(executed: Executed) -> Iterator[str]:
    if num_faults := len(executed.faults):
        slowest = seconds(float(executed.faults["recovery_s"].max()))
        often = "once" if num_faults == 1 else f"{num_faults} times"
        yield (
            f"Shards were lost {often}; every step was finished, after at most {slowest} of "
            "recovery."
        )


def _noise(executed: Executed) -> Iterator[str]:
    """Tell the spread of the steps of one kind where that limits what the numbers can tell."""
    factors = {
        key: high_s / low_s
        for key in itertools.product(executed.deployments, kinds(executed))
        for low_s, high_s in [spread_s(executed, *key)]
        if low_s > 0
    }
    if factors and max(factors.values()) >= _SPREAD:
        (name, kind), worst = max(factors.items(), key=lambda item: item[1])
        middle = statistics.median(factors.values())
        yield (
            f"Steps vary: the 90th percentile is {number(middle)}{TIMES} the 10th in the median, "
            f"and {number(worst)}{TIMES} for {KINDS[kind]} of {name}; small differences say little."
        )
