"""Mixtures of experts spread over many GPUs: tokens a second of a node, and what balancing, overlap
and spreading gain.

Figures of this kind are steady states of one full batch, so one step of it is run. What a row does
not say is taken from the systems that such figures are of (SGLang's and DeepSeek's): two batches
overlapped, 32 redundant experts placed by EPLB unless routing is balanced by hand, low-latency
kernels for decode.
"""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.progress import Progress
from simulator.config.model import load_model
from simulator.validation import OK
from simulator.validation.error_bands import Band
from simulator.validation.published import Reply
from simulator.validation.published._cells import number
from simulator.validation.published._names import (
    accelerator_of,
    cluster_of,
    engine_of,
    model_name,
    precision_of,
)
from simulator.validation.published._scores import figures
from simulator.validation.published._serve import band_of, make, status_of
from simulator.validation.published._step import run_one
from simulator.validation.published._sweep import answers

_REDUNDANT = 32
"""Redundant experts in SGLang's and DeepSeek's deployments."""
_PREFILL_TOKENS, _PROMPT = 16384, 4096
_DECODE_BATCH, _CACHED = 256, 2000
"""A GPU's tokens and the sequences' lengths where a row says none: those of SGLang's report."""
_CHUNK = 8192
"""SGLang's chunk of prompts, which is shared by all data-parallel ranks where experts are not
spread."""
_MOST_TOKENS = 1 << 20
_TIMED_ALONE = "kernels that compute beside an exchange were timed alone"
_FIRST_DEEPEP = {"kind": "alpha_beta", "dispatch_rate": 44 / 58, "combine_rate": 47 / 57}
"""DeepEP's kernels for prompts over four nodes: what its first release reached over what the one of
June 2025 does, by its own page (44 and 47 GB/s; 58 and 57). The later one was calibrated."""
_NEXT_DEEPEP = "2025-06"
"""Deployments that were published before this month ran the first, and so did those that DeepSeek's
published profile is of."""
_RANGE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*$")


class Case(NamedTuple):
    """One system under one batch."""

    model: str
    accelerator: str
    engine: str
    dtype: str | None
    num_gpus: int
    ep: int
    phase: str
    sequences: int
    """A GPU's; 0 = as many as its cache holds."""
    new: int
    context: int
    emitted: float
    """Tokens that count, of each sequence and step."""
    is_balanced: bool
    has_eplb: bool
    has_overlap: bool
    has_first_deepep: bool = False


class Question(NamedTuple):
    """What a row asks: the tokens a second of a case, or of two cases the ratio."""

    unit: str
    """``node``, ``gpu`` or ``ratio``."""
    case: Case
    other: Case | None = None
    guess: str = ""
    """What the row does not say and was assumed."""


class Rate(NamedTuple):
    """What a case reaches."""

    tokens_per_s: float
    """Of one GPU."""
    gpus_of_a_node: int
    """GPUs in a box: a rack's NVLink domain holds many boxes of 4."""
    low: float
    """What the step's time is multiplied with for the ends of its band; likewise ``high``."""
    high: float
    status: str
    because: str


class WideEP(Frozen):
    """``case, unit, model, hardware, n_gpus, parallelism, conditions``: a case in words, as reports
    give them.
    """

    columns: ClassVar[tuple[str, ...]] = (
        "case",
        "unit",
        "model",
        "hardware",
        "n_gpus",
        "parallelism",
        "conditions",
    )

    def replies(self, table: pd.DataFrame, tick: Progress) -> list[Reply]:
        read: list[Question | UserError] = []
        for _, row in table.iterrows():
            try:
                read.append(_read(row))
            except UserError as error:
                read.append(error)
        questions = [question for question in read if isinstance(question, Question)]
        cases = [case for q in questions for case in (q.case, q.other) if case is not None]
        found = answers(cases, _run, _plan_of, "wide expert parallelism", tick)
        return [_reply(one, found) if isinstance(one, Question) else Reply.of(one) for one in read]

    def scores(self, table: pd.DataFrame, replies: list[Reply]) -> pd.DataFrame:
        if "value" not in table:
            return figures([], [], [], [], pd.Series(dtype=float), [])
        units = [
            "tokens/s" if "tok" in str(unit).lower().split("(")[0] else "x"
            for unit in table["unit"]
        ]
        engines = [
            engine_of(str(text)) or "other"
            for text in table.get("engine", pd.Series("", index=table.index))
        ]
        groups = [
            f"wide EP {'throughput' if unit == 'tokens/s' else 'gain'}, {engine}"
            for unit, engine in zip(units, engines, strict=True)
        ]
        quantities = ["throughput" if unit == "tokens/s" else "ratio" for unit in units]
        measured = table["value"].map(_value)
        return figures(
            groups, [str(case) for case in table["case"]], quantities, units, measured, replies
        )


def _value(text: object) -> float:
    """A number, or the middle of a range; not a number otherwise."""
    found = _RANGE.match(str(text))
    if found:
        return math.sqrt(float(found[1]) * float(found[2]))
    try:
        return float(str(text))
    except ValueError:
        return math.nan


def _number(pattern: str, text: str) -> float | None:
    found = re.search(pattern, text)
    if found is None:
        return None
    return float(found[1]) * (1024 if found.lastindex and found.lastindex > 1 and found[2] else 1)


def _read(row: pd.Series) -> Question:
    title, unit, split = (str(row[name]).lower() for name in ("case", "unit", "parallelism"))
    conditions = str(row["conditions"]).lower()
    text = f"{title}; {split}; {conditions}"
    if "prefill" in title or "decode" in title or "mtp" in title:
        phase = "prefill" if "prefill" in title else "decode"
    else:
        raise UserError("neither a prefill nor a decode throughput")
    name = model_name(str(row["model"]))
    if load_model(name, name).moe is None:
        raise UserError(f"{name} has no experts to spread")
    ep = (
        _number(r"\bep\s*(\d+)", split)
        or _number(rf"\bep\s*(\d+) {phase}", conditions)
        or _number(r"\bep\s*(\d+)", conditions)
    )
    num_gpus = number(row, "n_gpus")
    count = int(num_gpus) if num_gpus >= 1 else int(ep or 0)
    if count < 1:
        raise UserError("how many GPUs is not said")
    is_spread = ep is not None
    if not is_spread and "tp" not in split:
        raise UserError(f"unknown parallelism '{row['parallelism']}'")
    # DeepSeek's published profile is of routing that was balanced by hand.
    mentions = any(word in text for word in ("balanced", "perfect", "profile-data"))
    case = Case(
        name,
        accelerator_of(str(row["hardware"]).split(",")[0]).name,
        engine_of(str(row.get("engine", ""))) or "sglang",
        _dtype(row),
        count,
        int(ep or 1),
        phase,
        *_batch(phase, _about(phase, text), is_spread=is_spread),
        is_balanced=mentions and "imbalance" not in text,
        has_eplb=is_spread and not mentions,
        has_overlap=is_spread,
        has_first_deepep="profile-data" in text
        or "2025" <= str(row.get("date", ""))[:7] < _NEXT_DEEPEP,
    )
    if "tok" in unit.split("(")[0]:
        return Question("gpu" if "gpu" in unit else "node", case)
    if not unit.startswith("x"):
        raise UserError(f"unit '{row['unit']}' is not modelled")
    if "eplb" in title:
        guess = (
            ""
            if re.search(r"\d", conditions)
            else "a GPU's batch is not said, so that of the same report's throughput is taken"
        )
        return Question("ratio", case, case._replace(has_eplb=False), guess)
    if "tbo" in title or "overlap" in title:
        return Question("ratio", case, case._replace(has_overlap=False))
    if "baseline" in title and not is_spread:
        gpus = {"prefill": 32, "decode": 72}[phase]
        sequences, new, context, emitted = _batch(phase, text, is_spread=True)
        spread = case._replace(
            num_gpus=gpus, ep=gpus, sequences=sequences, new=new, context=context, emitted=emitted
        )
        guess = (
            "the batch of the baseline is not said: a chunk over all ranks, or what the cache holds"
        )
        return Question("ratio", spread._replace(has_eplb=True, has_overlap=True), case, guess)
    raise UserError("what is compared with what is not said")


def _about(phase: str, text: str) -> str:
    """What a text says of one phase: its parts that name the phase, where conditions of both stand
    side by side.
    """
    other = "decode" if phase == "prefill" else "prefill"
    return "; ".join(part for part in text.split(";") if phase in part or other not in part)


def _dtype(row: pd.Series) -> str | None:
    """As the row says, ``None`` where that is how the model is released."""
    try:
        dtype = precision_of(str(row.get("dtype", "")))
    except UserError:
        return None
    return None if dtype == "fp8" else dtype


def _batch(phase: str, text: str, *, is_spread: bool) -> tuple[int, int, int, float]:
    """Sequences of a GPU, new tokens of each, tokens in its cache, tokens that count."""
    if phase == "prefill":
        prompt = int(
            _number(r"prompt (\d+)(k?)\b", text) or _number(r"\b(\d+)(k) prompt", text) or _PROMPT
        )
        tokens = int(
            _number(r"(\d+)(k?) tok/(?:gpu|device)\b", text)
            or (_PREFILL_TOKENS if is_spread else _CHUNK // 16)
        )
        if prompt > tokens:  # a chunk in the middle of its prompt
            return 1, tokens, (prompt - tokens) // 2, float(tokens)
        return tokens // prompt, prompt, 0, float(prompt)
    cached = int(_number(r"kv\s*(\d+)(k?)\b", text) or _CACHED)
    output = int(_number(r"\bout (\d+)", text) or 0)
    per_gpu = r"(\d+)(k?) (?:req|seq|tok)\w*/(?:gpu|device)\b"
    sequences = int(
        _number(per_gpu, text)
        or _number(r"\bbs\s*(\d+)", text)
        or (_DECODE_BATCH if is_spread else 0)
    )
    if "mtp" in text:
        # Each sequence checks two tokens, as two sequences of one, and the drafted one is accepted
        # now and then.
        accepted = (_number(r"accept\w* (\d+)\s*%", text) or 60.0) / 100
        return 2 * sequences, 1, cached, (1.0 + accepted) / 2
    return sequences, 1, cached + output // 2, 1.0


def _deployment(case: Case) -> dict[str, Any]:
    """The system as a user would write it."""
    found: dict[str, Any] = {
        "model": case.model,
        "cluster": cluster_of(case.accelerator, case.num_gpus),
        "engine": case.engine,
        "weight_dtype": case.dtype,
        "parallel": {"attention_dp": case.num_gpus, "ep": case.ep},
        "dispatch": {
            "kind": "all_gather"
            if case.ep == 1
            else "per_expert"
            if case.phase == "decode"
            else "per_node"
        },
    }
    if case.is_balanced:
        found["routing"] = {"kind": "uniform"}
    if case.has_eplb:
        found["placement"] = _eplb(case)
    elif case.ep > 1:
        found["placement"] = _whole_slots(case)
    if case.has_overlap:
        found["overlap"] = "two_batch"
    if case.has_first_deepep and case.ep > 1 and case.phase == "prefill":
        found["communication"] = _FIRST_DEEPEP
    return found


def _whole_slots(case: Case) -> dict[str, Any]:
    """Experts in order, with the redundant ones that fill the ranks where they are no multiple:
    SGLang starts with no others.
    """
    moe = load_model(case.model, case.model).moe
    if moe is None or moe.num_experts % case.ep == 0:
        return {"kind": "contiguous"}
    slots = -(-(moe.num_experts + _REDUNDANT) // case.ep) * case.ep
    return {"kind": "contiguous", "num_slots": slots}


def _eplb(case: Case) -> dict[str, Any]:
    """The published deployments' redundant experts, or as many more as fill the ranks' slots; by
    nodes in prefill, as there.
    """
    moe = load_model(case.model, case.model).moe
    if moe is None:
        return {"kind": "contiguous"}
    placement: dict[str, Any] = {
        "kind": "eplb",
        "num_slots": -(-(moe.num_experts + _REDUNDANT) // case.ep) * case.ep,
    }
    if case.phase == "prefill" and moe.num_groups > 1:
        placement |= {"num_groups": moe.num_groups, "num_nodes": -(-case.num_gpus // 8)}
    return placement


def _plan_of(case: Case) -> Case:
    """What cases that share a plan have in common."""
    return case._replace(sequences=0, new=0, context=0, emitted=0.0)


def _run(case: Case) -> Rate:
    """What a case reaches.

    Raises:
        UserError: if the deployment is impossible.
    """
    deployment = _deployment(case)
    sequences = case.sequences
    if not sequences:
        sequences = int(
            np.clip(
                make(deployment).serving.capacity.tokens // (case.context + case.new),
                1,
                _DECODE_BATCH,
            )
        )
    if sequences * case.new > _MOST_TOKENS:
        raise UserError(
            f"{sequences * case.new:,} tokens of a GPU in one step are more than fit in its memory"
        )
    step = run_one(deployment, sequences, case.new, case.context)
    low, high = band_of(step.plan, step.shares)
    status = status_of(step.plan)
    if case.has_overlap:
        wide = Band(low, high).widened()
        low, high = wide.low, wide.high
        status = f"{'extrapolated: ' if status == OK else f'{status}; '}{_TIMED_ALONE}"
    in_node = (
        4
        if step.plan.placement.cluster.gpus_per_node > 8
        else step.plan.placement.cluster.gpus_per_node
    )
    because = f"{sequences} sequences a GPU, {step.because}"
    return Rate(sequences * case.emitted / step.seconds, in_node, low, high, status, because)


def _reply(question: Question, found: dict[Case, Rate | UserError]) -> Reply:
    rates = []
    for case in (question.case, question.other):
        if case is not None:
            answer = found[case]
            if isinstance(answer, UserError):
                return Reply.of(answer)
            rates.append(answer)
    one = rates[0]
    if len(rates) == 1:
        value = one.tokens_per_s * (one.gpus_of_a_node if question.unit == "node" else 1)
        return Reply(value, value / one.high, value / one.low, one.status, one.because)
    value = one.tokens_per_s / rates[1].tokens_per_s
    status = next((rate.status for rate in rates if rate.status != OK), OK)
    if question.guess:
        status = f"{'extrapolated: ' if status == OK else f'{status}; '}{question.guess}"
    because = " against ".join(rate.because for rate in rates)
    wide = math.exp(math.hypot(*(max(math.log(rate.high), -math.log(rate.low)) for rate in rates)))
    return Reply(value, value / wide, value * wide, status, because)
