"""``python -m tests.oracle FILE...``: whether requests are served as an engine's own scheduler
served them, from files of its answers (``vllm-0.32.0.jsonl.gz``: the name is engine and release).

Each line of a file is a trace, with the limits that it was served within and what every request
got. Steps take as long as they took there; all else is what the simulator takes the release to do.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simulator.base.frozen import validate
from simulator.config.deployment import DeploymentSpec
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.engine.pool import PoolState
from simulator.engine.table import StepTable, start_table
from simulator.engine.timeline import serve
from simulator.step.mixes import single_mix
from simulator.step.prices import Prices
from simulator.workload.traces import RequestTrace
from tests.parts import change_plan

STEP_S, TOKEN_S = 2.0**-7, 2.0**-17
"""Seconds of a step, and of each of its tokens."""
TOLERANCE_S = 1e-7
_RETURNS_S = {"vllm": 2.0**-40, "sglang": 1e-10}
"""Seconds from the end of a request of a closed loop to the next one."""
_LEAST_TABLE = 8192
"""Tokens of the largest step that a table has, so that most traces share one."""


class Case(NamedTuple):
    """A trace as it was served by one loop of the engine."""

    where: str
    """Line of the file."""
    setting: str
    """Loop and options of the engine, by which cases are counted."""
    plan: DeploymentPlan
    trace: RequestTrace
    times: dict[str, np.ndarray[Any, np.dtype[np.float64]]]
    """Seconds at which each request got its first token and finished, ``[N]``."""


class Outcome(NamedTuple):
    """Requests of a trace that got their tokens when they did there."""

    where: str
    """Line of the file."""
    num_equal: int
    num_requests: int
    first: str
    """First request that did not, empty if all did."""


def read_cases(path: Path) -> Iterator[Case]:
    """Read a file's cases in order."""
    engine, _, release = path.name.partition(".jsonl")[0].rpartition("-")
    if engine not in _READ:
        raise SystemExit(f"{path}: its name begins with none of {', '.join(_READ)}, and a release")
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for number, text in enumerate(lines, 1):
            yield from _READ[engine](json.loads(text), f"{engine}@{release}", f"line {number}")


def _read_vllm(line: dict[str, Any], engine: str, where: str) -> Iterator[Case]:
    for loop in ("sync", "async"):
        own = {"reserve_full_isl": line["reserve_full_isl"], "steps_ahead": int(loop == "async")}
        cached, page = line["prefix_caching"], line["block_tokens"]
        keys = {"engine": engine, "kv_block_tokens": page, "prefix_caching": cached}
        yield Case(
            where,
            f"{loop}, {'with' if cached else 'without'} prefix caching",
            _make_plan(line, keys, {"kind": "chunked", **own}, line["num_blocks"]),
            _make_trace(line, line[loop]["arrival_s"], line["prompt_blocks"]),
            {name: np.array(line[loop][name]) for name in ("first_token_s", "finish_s")},
        )


def _read_sglang(line: dict[str, Any], engine: str, where: str) -> Iterator[Case]:
    setting, page = line["setting"], line["page_tokens"]
    own = {
        "kind": "prefill_first",
        "steps_ahead": int(not setting.startswith("no overlap")),
        "ignore_eos": "ignore_eos" in setting,
    }
    cached = "no prefix cache" not in setting
    keys = {"engine": engine, "kv_block_tokens": page, "prefix_caching": cached}
    trace = _make_trace(line, line["arrival_s"], None)
    if line["max_tokens"] is not None:
        most = np.full(trace.num_requests, line["max_tokens"])
        trace = replace(trace, attributes={"max_tokens": most})
    yield Case(
        where,
        setting,
        _make_plan(line, keys, own, line["pool_tokens"] // page),
        trace,
        {name: np.array(line[name]) for name in ("first_token_s", "finish_s")},
    )


_READ = {"vllm": _read_vllm, "sglang": _read_sglang}


def _make_plan(
    line: dict[str, Any], keys: dict[str, Any], own: dict[str, Any], num_blocks: int
) -> DeploymentPlan:
    limits = {name: line[name] for name in ("token_budget", "max_sequences")}
    plan = _freeze(keys | {"scheduling": own | limits})
    capacity = plan.serving.capacity
    smaller = replace(capacity, kv_bytes=num_blocks * capacity.block_bytes)
    return change_plan(plan, capacity=smaller)


def _freeze(keys: dict[str, Any]) -> DeploymentPlan:
    table = {"name": "oracle", "model": "llama-3.1-8b", "cluster": "h100-sxm-8", "replicas": 1}
    return make_plan(validate(DeploymentSpec, table | keys, "oracle"), 0, "oracle", Path())


def _make_trace(
    line: dict[str, Any], arrival_s: list[float], blocks: list[list[int]] | None
) -> RequestTrace:
    trace = RequestTrace(
        np.array(arrival_s),
        np.array(line["num_input"]),
        np.array(line["num_output"]),
        "an engine's own scheduler",
        concurrency=line["concurrency"],
    )
    if blocks is None:
        return trace
    return replace(
        trace,
        prefix_block_tokens=line["block_tokens"],
        prefix_starts=np.cumsum([0, *map(len, blocks)]),
        prefix_ids=np.array(_number_chains(blocks)),
    )


def _number_chains(blocks: list[list[int]]) -> list[int]:
    """Number blocks of which all that is before them is equal, too."""
    numbers: dict[tuple[int, int], int] = {}
    found = []
    for own in blocks:
        before = -1
        for block in own:
            before = numbers.setdefault((before, block), len(numbers))
            found.append(before)
    return found


def serve_case(case: Case) -> Outcome:
    """Serve a trace with steps that take as long as they took there."""
    served = serve(case.plan, case.trace, fill=_fill, ingress_delay_s=find_delay(case))
    rows = served.requests_table()
    own = {
        "first_token_s": rows["first_token_s"].to_numpy(),
        "finish_s": rows["finish_s"].to_numpy(),
    }
    is_equal = np.ones(len(rows), dtype=np.bool_)
    for name, known in case.times.items():
        is_equal &= np.abs(own[name] - known) <= TOLERANCE_S
    first = ""
    if not is_equal.all():
        n = int(np.argmin(is_equal))
        first = f"request {n}: " + ", ".join(
            f"{name} {own[name][n]:.9g} instead of {case.times[name][n]:.9g}" for name in own
        )
    return Outcome(case.where, int(is_equal.sum()), len(rows), first)


def find_delay(case: Case) -> float:
    """Seconds from the end of a request of a closed loop to the next one."""
    returns_s = _RETURNS_S[case.plan.spec.engine.partition("@")[0]]
    return 0.0 if case.trace.concurrency is None else returns_s


def work_ahead(case: Case, steps_ahead: int) -> Case:
    """The same case with another loop of the engine."""
    own = case.plan.serving.rules._replace(steps_ahead=steps_ahead)
    return case._replace(plan=change_plan(case.plan, rules=own))


def _fill(pool: PoolState, _: str) -> StepTable:
    return _price_steps(max(_LEAST_TABLE, pool.max_tokens))


@cache
def _price_steps(most_tokens: int) -> StepTable:
    placement = _freeze({}).placement
    table = start_table(single_mix(Prices(placement, most_tokens)))
    return table._replace(
        mixer_s=np.zeros_like(table.mixer_s),
        head_s=np.zeros_like(table.head_s),
        rates=np.zeros_like(table.rates),
        ffn_s=np.broadcast_to(TOKEN_S * np.arange(most_tokens + 1), table.ffn_s.shape).copy(),
        step_s=STEP_S,
        sequence_s=0.0,
        prompt_s=0.0,
    )


def main(given: list[str] | None = None) -> int:
    """Print for each setting how many requests and traces are equal, and the first that is not."""
    parser = argparse.ArgumentParser("python -m tests.oracle", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--least", type=float, default=0.98, help="share of traces (0.98)")
    asked = parser.parse_args(given)
    found: dict[str, list[Outcome]] = {}
    for path in asked.files:
        for case in read_cases(path):
            key = f"{path.name.partition('.jsonl')[0]}, {case.setting}"
            found.setdefault(key, []).append(serve_case(case))
    for setting, outcomes in found.items():
        print(f"{setting}: {_tell(outcomes)}")
        other = next((one for one in outcomes if one.first), None)
        if other:
            print(f"  first of others: {other.where}, {other.first}")
    everything = [one for outcomes in found.values() for one in outcomes]
    print(f"in all: {_tell(everything)}")
    share = sum(not one.first for one in everything) / len(everything)
    return int(share < asked.least)


def _tell(outcomes: list[Outcome]) -> str:
    requests = [sum(one[i] for one in outcomes) for i in (1, 2)]
    traces = sum(not one.first for one in outcomes), len(outcomes)
    return (
        f"{requests[0]:,} of {requests[1]:,} requests and {traces[0]} of {traces[1]} traces equal"
    )


if __name__ == "__main__":
    raise SystemExit(main())
