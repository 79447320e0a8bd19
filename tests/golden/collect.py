"""The golden set: what every scenario in these folders comes to, readable and by digest. The
folder's name is the fidelity.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.commands.plan import plan
from simulator.commands.train import train
from simulator.deployment.plan import make_plan
from simulator.engine.timeline import run_plan
from simulator.planner.store import Store
from simulator.results.metrics import summarise
from simulator.results.tables import DeploymentRecord
from simulator.scenario.jobs import load_question, load_scenario
from simulator.workload.requests import load_requests

HERE = Path(__file__).parent
NUMBERS = HERE / "numbers.csv"
ANSWERS = HERE / "answers.csv"
TRAININGS = HERE / "trainings.csv"
MADE_WITH = HERE / "made_with.json"
SHIPPED = ("mixtral_vs_llama2", "deepseek_v3_vs_llama_405b", "gpt_oss_vs_qwen3_32b")
"""Scenarios of the project, with fewer requests than they ship with."""
KEY = ["fidelity", "scenario", "deployment"]
TOLERANCE = 1e-9
"""How far a number may move, relative to itself, where only the order of additions changed."""
TIMES = ["arrival_s", "scheduled_s", "first_token_s", "finish_s", "transfer_s"]
CHOICES = ["replica", "dp_rank", "prefill_replica", "num_cached", "num_preemptions"]


class Case(NamedTuple):
    """One scenario or question."""

    fidelity: str
    """``step``, ``rank`` or ``message``; ``plan`` for a question, ``train`` for a training."""
    name: str

    @property
    def source(self) -> tuple[str, list[str]]:
        """The file, or a shipped scenario's name, and what is overridden in it."""
        if self.name in SHIPPED:
            return self.name, ["workload.num_requests=300"]
        return str(HERE / self.fidelity / f"{self.name}.toml"), []


def list_cases() -> list[Case]:
    """Every file of the folders, and the shipped scenarios."""
    files = [
        Case(path.parent.name, path.stem)
        for path in sorted(HERE.glob("*/*.toml"))
        if path.parent.name != "models"
    ]
    return [*(Case("step", name) for name in SHIPPED), *files]


def read_rows(case: Case) -> pd.DataFrame:
    """The rows of a case as they are known."""
    if case.fidelity == "plan":
        rows = read_table(ANSWERS, 0)
        return rows.loc[rows.index == case.name]
    if case.fidelity == "train":
        rows = read_table(TRAININGS, KEY[1:])
        return rows[rows.index.get_level_values("scenario") == case.name]
    rows = read_table(NUMBERS, KEY)
    levels = rows.index.get_level_values
    return rows[(levels("fidelity") == case.fidelity) & (levels("scenario") == case.name)]


def read_table(file: Any, index: int | list[str]) -> pd.DataFrame:
    """A golden file, digests and sums as texts."""
    columns = pd.read_csv(file, nrows=0).columns
    if hasattr(file, "seek"):
        file.seek(0)
    texts = {column: str for column in columns if column.endswith(("_sha", "_sums"))}
    return pd.read_csv(file, index_col=index, dtype=texts)


def number_case(case: Case) -> pd.DataFrame:
    """The rows of a case: one a deployment, or the one answer of a question."""
    if case.fidelity == "plan":
        return _answer(case)
    if case.fidelity == "train":
        return pd.DataFrame(_train(case)).set_index(KEY[1:])
    return pd.DataFrame(_serve(case)).set_index(KEY)


def number_kinds(cases: list[Case], workers: int) -> list[tuple[Path, Any, pd.DataFrame]]:
    """The rows of many cases by kind: the file that holds them, its index, and the rows."""
    rows = number_all(cases, workers)
    kinds = ((NUMBERS, KEY, ()), (ANSWERS, 0, ("plan",)), (TRAININGS, KEY[1:], ("train",)))
    others = {name for _, _, names in kinds for name in names}
    return [
        (
            file,
            index,
            pd.concat(
                [
                    frame
                    for case, frame in zip(cases, rows, strict=True)
                    if (case.fidelity in names if names else case.fidelity not in others)
                ]
            ),
        )
        for file, index, names in kinds
    ]


def number_all(cases: list[Case], workers: int) -> list[pd.DataFrame]:
    """The rows of many cases, in their order."""
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(number_case, cases))


def _serve(case: Case) -> Iterator[dict[str, Any]]:
    scenario = load_scenario(*case.source)
    folder = scenario.folder
    trace = load_requests(scenario.workload, folder, scenario.seed)
    for spec in scenario.deployments:
        frozen = make_plan(spec, scenario.seed, case.name, folder)
        record = run_plan(frozen, trace, case.fidelity)  # type: ignore[arg-type]
        summary = summarise([frozen], [record], scenario.workload.slo).iloc[0]
        key = {"fidelity": case.fidelity, "scenario": case.name, "deployment": spec.name}
        yield {**key, **_aggregates(record, summary), **_checksums(record)}


def _train(case: Case) -> Iterator[dict[str, Any]]:
    results = train(*case.source[:1])
    for row in results.summary.to_dict("records"):
        facts = results.run["deployments"][row["deployment"]]
        spans = results.spans[results.spans["deployment"] == row["deployment"]]
        parts = np.array([list(stage.values()) for stage in facts["stages_s"]])
        numbers = _numbers_of(spans.drop(columns=["phase"]))
        yield {
            "scenario": case.name,
            **row,
            "band_low": facts["band"][0],
            "band_high": facts["band"][1],
            "spans_sums": _write_sums([numbers]),
            "parts_sums": _write_sums([parts]),
            "spans_sha": _digest(numbers),
        }


def _aggregates(record: DeploymentRecord, summary: pd.Series) -> dict[str, float]:
    """Numbers that a person can read a change from."""
    requests, steps = record.requests, record.steps
    names = [
        "ttft_p50_s",
        "ttft_p99_s",
        "tpot_p50_s",
        "tpot_p99_s",
        "output_tokens_per_s",
        "load_imbalance",
        "mfu",
        "mbu",
    ]
    return {
        "steps": int(steps["num_steps"].sum()),
        "preemptions": int(requests["num_preemptions"].sum()),
        "cached_tokens": int(requests["num_cached"].sum()),
        **{name: float(summary[name]) for name in names},
        "e2e_mean_s": float((requests["finish_s"] - requests["arrival_s"]).mean()),
        "waiting_mean": float(np.average(steps["waiting"], weights=steps["num_steps"])),
        "kv_used_mean": float(np.average(steps["kv_used"], weights=steps["num_steps"])),
        "transfer_mean_s": float(requests["transfer_s"].mean()),
        "read_bytes": record.read_bytes,
    }


def _checksums(record: DeploymentRecord) -> dict[str, Any]:
    """A sum of each column that no change in it escapes, to compare within a tolerance; and digests
    of every last digit.
    """
    details = [record.ranks, record.experts, record.traffic, record.spans]
    tables = {"requests": [record.requests[TIMES]], "steps": [record.steps], "details": details}
    numbers = {name: [_numbers_of(frame) for frame in frames] for name, frames in tables.items()}
    choices = record.requests[CHOICES].to_numpy(np.int64)
    return {
        **{f"{name}_sums": _write_sums(found) for name, found in numbers.items()},
        "choices_sha": _digest(choices),
        **{f"{name}_sha": _digest(*found) for name, found in numbers.items()},
        "gaps_sha": _digest(record.itl.counts.astype(np.int64)),
    }


def _numbers_of(frame: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    return frame.select_dtypes("number").to_numpy(np.float64, copy=True) + 0.0  # -0.0 is 0.0


def _write_sums(tables: list[np.ndarray[Any, np.dtype[np.float64]]]) -> str:
    """The sum of each column of each table, so that seconds are not lost beside bytes."""
    return " ".join(f"{_weighted_sum(column):.17g}" for table in tables for column in table.T)


def read_sums(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The sums that were written."""
    return np.array([float(number) for number in str(text).split()])


def _weighted_sum(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Each number times one of its own between 1 and 2, so that two which change places do not
    cancel; what is not a number counts as -1.
    """
    weights = 1 + np.modf(np.arange(1, values.size + 1) * 0.6180339887498949)[0]
    return float(np.nan_to_num(values, nan=-1.0) @ weights)


def _digest(*arrays: np.ndarray[Any, Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _answer(case: Case) -> pd.DataFrame:
    question = load_question(*case.source)
    found = plan(question, cache=Store(None), workers=1)
    # What is handed over names the version and the day, the rate asked for is the question's own,
    # and what is absent is no number.
    left_out = {"handover": True, "traffic": {"asked_rate_per_s"}}
    answer = found.model_dump(mode="json", exclude=left_out, exclude_none=True)
    best = answer["recommended"]
    counts = {name: answer[name] for name in ("num_legal", "num_ruled_out", "num_simulated")}
    row = {
        "question": case.name,
        "recommended": best["deployment"],
        **{
            name: float(best[name])
            for name in ("gpus", "cost_per_hour", "cost_per_million_output_tokens")
        },
        **counts,
        "answer_sum": _weighted_sum(np.array(list(_floats(answer)))),
        "answer_sha": hashlib.sha256(
            json.dumps(answer, sort_keys=True, default=str).encode()
        ).hexdigest()[:16],
    }
    return pd.DataFrame([row]).set_index("question")


def _floats(value: Any) -> Iterator[float]:
    """Every number of a nested answer, in the order of its keys' names."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, Real) and not isinstance(value, bool):
        yield float(value)
    elif hasattr(value, "__iter__") and not isinstance(value, str):
        for entry in value:
            yield from _floats(entry)


def describe_machine() -> dict[str, str]:
    """What the last digits depend on: where all of it is the same, digests must be."""
    import llvmlite
    import numba
    import scipy
    from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

    versions = {module.__name__: module.__version__ for module in (llvmlite, numba, np, pd, scipy)}
    # A virtual machine may hide some: of one processor there are several.
    features = " ".join(sorted(name for name, there in get_host_cpu_features().items() if there))
    return {
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "processor": get_host_cpu_name(),
        "features": features,
        **versions,
    }
