"""What a serving point was drafted with: DeepSeek's multi-token-prediction module.

Where tables of serving points do not say whether drafts were on, TensorRT-LLM's InferenceX runs
tell by their release: with one model, split, load and release, dated lists and numbered
configurations differ by 1.4 to 1.9 times in TPOT, and so do the last two releases.
"""

from __future__ import annotations

from simulator.base.frozen import Policy
from simulator.config.model import ModelSpec
from simulator.validation.serving.points import DRAFTED, Point

ACCEPTED = 0.62
"""Probability that a token of a draft is kept, given that those before it were. Set by hand: with
it 150 points of DeepSeek-R1 with drafts, on B200 and H200 by TensorRT-LLM, are neither too fast nor
too slow at the median."""


def speculation_of(point: Point, model: ModelSpec) -> Policy:
    """The deployment's ``speculation``."""
    drafted = drafts(point, model)
    if not drafted:
        return {"kind": "none"}
    return {"kind": "module", "tokens": drafted, "accepted": ACCEPTED}


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
