"""Speculative decoding with DeepSeek's multi-token-prediction module, seen from a step table.

Every sequence verifies a draft of three tokens in each step, so a decode step computes four tokens a sequence and keeps some of them.
Tables of serving points do not say whether drafts were on. TensorRT-LLM's InferenceX runs tell by their release: with one model,
split, load and release, dated lists and numbered configurations differ by 1.4 to 1.9 times in TPOT, and so do the last two releases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.engine.table import StepTable
from simulator.spec.model import ModelSpec
from simulator.validation.serving._points import Point

DRAFTED = 3
"""Tokens of a draft (InferenceX: ``num_nextn_predict_layers: 3``)."""
KEPT = 2.1
"""Tokens that a sequence gets in a step, the draft's own passes counted as steps lost. Set by hand between points with and without
drafts, DeepSeek-R1 on B200 and H200 by TensorRT-LLM."""
_PER_TOKEN = ("mixer_s", "ffn_s", "head_s", "collective_s", "halved_s")


def drafts(point: Point, model: ModelSpec) -> bool:
    """Whether the point was measured with drafts."""
    has_module = any(hasattr(mixer, "kv_rank") for mixer in model.mixers.values()) and model.moe is not None
    if point.engine != "trtllm" or not point.is_ranged or not has_module or point.prefill is not None:
        return False
    return point.version.endswith(".post3") or (point.is_dated and point.version.startswith("1.1."))


def with_drafts(table: StepTable, per_rank: int, num_ranks: int) -> StepTable:
    """The table with each decode computing its draft too; other tokens of a step are a prompt's.

    Args:
        per_rank: sequences that decode on a data-parallel rank.
        num_ranks: data-parallel ranks.
    """

    def computed(tokens: NDArray[np.int64], decodes: int) -> NDArray[np.int64]:
        return np.asarray(tokens + DRAFTED * np.minimum(tokens, decodes))

    changed: dict[str, Any] = {}
    for name in _PER_TOKEN:
        seconds = getattr(table, name, None)
        if seconds is not None and len(seconds):
            changed[name] = seconds[np.minimum(computed(np.arange(len(seconds)), per_rank), len(seconds) - 1)]
    if len(table.expert_tokens):
        of_decodes = table.expert_tokens / (1 + DRAFTED)
        others = table.expert_tokens - DRAFTED * per_rank * num_ranks
        changed["expert_tokens"] = np.where(of_decodes <= per_rank * num_ranks, of_decodes, others)
    return table._replace(**changed)
