"""Speculative decoding with DeepSeek's multi-token-prediction module, seen from a step table.

Every sequence verifies a draft in each step, so a decode step with drafts of three tokens computes
four a sequence and keeps some of them. Where tables of serving points do not say whether drafts
were on, TensorRT-LLM's InferenceX runs tell by their release: with one model, split, load and
release, dated lists and numbered configurations differ by 1.4 to 1.9 times in TPOT, and so do the
last two releases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.config.model import ModelSpec
from simulator.engine.table import StepTable
from simulator.validation.serving.points import DRAFTED, Point

_ACCEPTED = 0.5764
"""Of a draft's tokens, each given that those before it were: with it a sequence gets 2.1 tokens in
a step with drafts of three, the draft's own passes counted as steps lost. Set by hand between
points with and without drafts, DeepSeek-R1 on B200 and H200 by TensorRT-LLM."""
_PER_TOKEN = ("mixer_s", "ffn_s", "head_s", "collective_s", "halved_s")


def drafts(point: Point, model: ModelSpec) -> int:
    """Tokens of the drafts that the point was measured with, as the table says, or else as its
    release suggests; 0 without.
    """
    if point.drafted is not None:
        return point.drafted
    return DRAFTED if _suggests_drafts(point, model) else 0


def doubts_of_drafts(point: Point, model: ModelSpec) -> tuple[str, ...]:
    """What is guessed about drafts."""
    if point.drafted is None:
        return ("drafts guessed from the release",) if _suggests_drafts(point, model) else ()
    is_set = point.engine == "trtllm" and has_drafts(model) and point.drafted == DRAFTED
    return (
        ()
        if is_set or not point.drafted
        else (f"what drafts of {point.drafted} tokens save is assumed",)
    )


def kept(drafted: int) -> float:
    """Tokens that a sequence gets in a step with drafts of so many.

    >>> round(kept(3), 2), kept(0)
    (2.1, 1.0)
    """
    return float(sum(_ACCEPTED**place for place in range(drafted + 1)))


def _suggests_drafts(point: Point, model: ModelSpec) -> bool:
    if (
        point.engine != "trtllm"
        or not point.is_ranged
        or not has_drafts(model)
        or point.prefill is not None
    ):
        return False
    return point.version.endswith(".post3") or (point.is_dated and point.version.startswith("1.1."))


def has_drafts(model: ModelSpec) -> bool:
    """Whether a model has the module: DeepSeek's, which are those with latent attention and
    experts.
    """
    return model.has_latent_cache and model.moe is not None


def with_drafts(
    table: StepTable, per_rank: int, num_ranks: int, drafted: int = DRAFTED
) -> StepTable:
    """The table with each decode computing its draft too; other tokens of a step are a prompt's.

    Args:
        per_rank: sequences that decode on a data-parallel rank.
        num_ranks: data-parallel ranks.
        drafted: tokens of a draft.
    """

    def computed(tokens: NDArray[np.int64], decodes: int) -> NDArray[np.int64]:
        return np.asarray(tokens + drafted * np.minimum(tokens, decodes))

    changed: dict[str, Any] = {}
    for name in _PER_TOKEN:
        seconds = getattr(table, name, None)
        if seconds is not None and len(seconds):
            changed[name] = seconds[
                np.minimum(computed(np.arange(len(seconds)), per_rank), len(seconds) - 1)
            ]
    if len(table.expert_tokens):
        of_decodes = table.expert_tokens / (1 + drafted)
        others = table.expert_tokens - drafted * per_rank * num_ranks
        changed["expert_tokens"] = np.where(of_decodes <= per_rank * num_ranks, of_decodes, others)
    return table._replace(**changed)
