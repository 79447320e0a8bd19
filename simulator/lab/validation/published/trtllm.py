"""NVIDIA's tables of TensorRT-LLM's largest throughput: every request waits from the start, inputs
and outputs have one length.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from simulator.base.errors import UserError
from simulator.config.dtypes import DType
from simulator.lab.validation.hardware import cluster_of
from simulator.lab.validation.published import Reply
from simulator.lab.validation.published._rows import Case, Count, GpuName, ModelName, RowTopic
from simulator.lab.validation.published._runs import make, serve

_MOST_SEQUENCES, _MOST_TOKENS = 4096, 32_768
"""Caps of ``max_batch_size`` and ``max_num_tokens`` in ``trtllm-bench``, which chooses both for
each engine, see :func:`_limits`."""
_LEAST_SEQUENCES, _LEAST_TOKENS = 64, 2048
"""Smallest ``max_batch_size`` and ``max_num_tokens`` that ``trtllm-bench`` chooses."""
_FREE = 0.9
"""Share of the free memory that TensorRT-LLM gives to the cache by default."""
_TURNS, _LEAST, _MOST = 5, 1000, 30_000
"""Requests: five full batches, within what benchmark scripts send; the beginning and the end, when
fewer run, count as there."""
_STEPS = 1_000_000
"""Largest number of engine steps, about: where few requests fit and outputs are long, fewer are
sent."""


class _Row(Case):
    model: ModelName
    gpu: GpuName
    engine: str
    """``trtllm@`` and the release, which has three numbers."""
    precision: DType
    """Format of the weights."""
    tp: Count
    ep: Count = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    num_input: Count = Field(alias="input")
    num_output: Count = Field(alias="output")

    @model_validator(mode="after")
    def _check_splits(self) -> Self:
        for name in ("pp", "dp", "cp"):
            if (count := getattr(self, name)) > 1:
                raise UserError(f"{name} = {count} is not modelled")
        return self


class TrtLLM(RowTopic):
    """``model, gpu, engine, precision, tp, input, output``: output tokens per second."""

    row: ClassVar[type[Case]] = _Row
    title: ClassVar[str] = "TensorRT-LLM throughput"

    def plan_key(self, case: _Row) -> Hashable:
        return case.model_copy(update={"num_input": 1, "num_output": 1})

    def predict(self, case: _Row) -> Reply:
        deployment: dict[str, object] = {
            "model": case.model,
            "cluster": cluster_of(case.gpu, case.tp),
            "engine": case.engine,
            "weight_dtype": case.precision,
            "kv_dtype": "bf16" if case.precision in ("bf16", "int4", "int8") else "fp8",
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
