"""NVIDIA's tables of TensorRT-LLM's largest throughput: every request waits from the start, inputs
and outputs have one length.
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
from simulator.validation.published import Reply
from simulator.validation.published._cells import whole
from simulator.validation.published._names import (
    accelerator_of,
    cluster_of,
    model_name,
    precision_of,
    released,
)
from simulator.validation.published._scores import figures, mixture_ratios, with_ratios
from simulator.validation.published._serve import make, serve
from simulator.validation.published._sweep import answers

_MOST_SEQUENCES, _MOST_TOKENS = 4096, 32_768
"""Caps of ``max_batch_size`` and ``max_num_tokens`` in ``trtllm-bench``, which chooses both for
each engine, see :func:`_limits`."""
_LEAST_SEQUENCES, _LEAST_TOKENS = 64, 2048
"""And the smallest that it chooses."""
_FREE = 0.9
"""Share of the free memory that TensorRT-LLM gives to the cache by default."""
_TURNS, _LEAST, _MOST = 5, 1000, 30_000
"""Requests: five full batches, within what benchmark scripts send; the beginning and the end, when
fewer run, count as there."""
_STEPS = 1_000_000
"""Of the engine, at most, about: where few requests fit and outputs are long, fewer are sent."""
_PART = re.compile(r"(tp|pp|ep|dp|cp)\s*=?\s*(\d+)")


class _Row(NamedTuple):
    release: str
    model: str
    accelerator: str
    tp: int
    ep: int
    dtype: str
    num_input: int
    num_output: int


class TrtLLM(Frozen):
    """``release, model, gpu, precision, parallelism, isl, osl, value``: output tokens a second."""

    columns: ClassVar[tuple[str, ...]] = (
        "release",
        "model",
        "gpu",
        "precision",
        "parallelism",
        "isl",
        "osl",
    )

    def replies(self, table: pd.DataFrame, tick: Progress) -> list[Reply]:
        read: list[_Row | UserError] = []
        for _, row in table.iterrows():
            try:
                read.append(_read(row))
            except UserError as error:
                read.append(error)
        cases = [case for case in read if isinstance(case, _Row)]
        found = answers(cases, _answer, lambda case: case[:-2], "TensorRT-LLM throughput", tick)
        return [Reply.of(found[case] if isinstance(case, _Row) else case) for case in read]

    def scores(self, table: pd.DataFrame, replies: list[Reply]) -> pd.DataFrame:
        if "value" not in table:
            return figures([], [], [], [], pd.Series(dtype=float), [])
        shapes = [
            f"{row.gpu} {row.precision} {row.parallelism} {row.isl}/{row.osl}"
            for row in table.itertuples()
        ]
        groups = [f"TensorRT-LLM {model}" for model in table["model"]]
        subjects = [f"{model} {shape}" for model, shape in zip(table["model"], shapes, strict=True)]
        rows = figures(
            groups,
            subjects,
            ["throughput"] * len(table),
            ["tokens/s"] * len(table),
            table["value"],
            replies,
        )
        return with_ratios(rows, mixture_ratios("TensorRT-LLM", rows, table["model"], shapes))


def _read(row: pd.Series) -> _Row:
    parts = {name: int(count) for name, count in _PART.findall(str(row["parallelism"]).lower())}
    if not parts:
        raise UserError(f"unknown parallelism '{row['parallelism']}'")
    for name in ("pp", "dp", "cp"):
        if parts.get(name, 1) > 1:
            raise UserError(f"{name} = {parts[name]} is not modelled")
    accelerator = accelerator_of(str(row["gpu"])).name
    model = model_name(str(row["model"]))
    dtype = released(precision_of(str(row["precision"])), model)
    return _Row(
        _release(str(row["release"])),
        model,
        accelerator,
        parts.get("tp", 1),
        parts.get("ep", 1),
        dtype,
        whole(row, "isl"),
        whole(row, "osl"),
    )


def _release(text: str) -> str:
    """A release with three numbers, as calibrations write them: ``0.17`` is ``0.17.0``."""
    numbers = text.strip().lower().removeprefix("v")
    return f"{numbers}.0" if re.fullmatch(r"\d+\.\d+", numbers) else numbers


def _limits(room: float, per_output: float) -> tuple[int, int]:
    """``max_batch_size`` and ``max_num_tokens`` as ``trtllm-bench`` chooses them: what fits, and
    the tokens of a steady step, rounded up.

    Args:
        room: requests that fit in the cache.
        per_output: prompt tokens to each output token, which a step computes beside it.

    >>> _limits(470.0, 0.0625), _limits(14.0, 16.0), _limits(1e4, 1.0)
    ((512, 2048), (64, 2048), (4096, 8192))
    """
    sequences = min(room, _MOST_SEQUENCES)
    tokens = min(sequences * (1 + per_output), _MOST_TOKENS)
    grain = 32 if sequences < 256 else 128 if sequences < 1024 else 256
    token_grain = 256 if tokens < 4096 else 512 if tokens < 8192 else 1024
    return (
        max(_LEAST_SEQUENCES, grain * math.ceil(sequences / grain)),
        max(_LEAST_TOKENS, token_grain * math.ceil(tokens / token_grain)),
    )


def _answer(case: _Row) -> Reply:
    deployment: dict[str, Any] = {
        "model": case.model,
        "cluster": cluster_of(case.accelerator, case.tp),
        "engine": f"trtllm@{case.release}",
        "weight_dtype": case.dtype,
        "kv_dtype": "bf16" if case.dtype in ("bf16", "int4", "int8") else "fp8",
        "parallel": {"tp": case.tp, "ep": case.ep},
        "free_memory_fraction": _FREE,
    }
    capacity = make(deployment).serving.capacity
    room = capacity.num_blocks / capacity.blocks_for(case.num_input + case.num_output)
    sequences, tokens = _limits(room, case.num_input / case.num_output)
    deployment["scheduling"] = {
        "kind": "no_evict",
        "max_sequences": sequences,
        "token_budget": tokens,
        "chunked_prompts": case.num_input > tokens // 2,
    }
    batch = max(1, min(int(room), sequences))
    most = int(np.clip(_TURNS * batch, _LEAST, _MOST))
    most = max(batch, min(most, batch * _STEPS // case.num_output))
    served = serve(deployment, np.full(most, case.num_input), np.full(most, case.num_output))
    return served.reply(served.output_per_s)
