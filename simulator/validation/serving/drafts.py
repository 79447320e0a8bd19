"""Drafts of a serving point: DeepSeek's multi-token-prediction module.

Where a table does not say whether drafts were on, the point's campaign may tell by its release.
"""

from __future__ import annotations

from simulator.base.frozen import Policy
from simulator.config.model import ModelSpec
from simulator.validation.serving.campaigns import load_campaigns
from simulator.validation.serving.points import Point


def speculation_of(point: Point, model: ModelSpec) -> Policy:
    """The deployment's ``speculation``."""
    drafted = drafts(point, model)
    if not drafted:
        return {"kind": "none"}
    accepted = load_campaigns()[point.campaign].drafts.accepted
    return {"kind": "module", "tokens": drafted, "accepted": accepted}


def drafts(point: Point, model: ModelSpec) -> int:
    """Tokens of the drafts that the point was measured with, as the table says, or else as its
    release suggests; 0 without.
    """
    if point.drafted is not None:
        return point.drafted
    return load_campaigns()[point.campaign].drafts.tokens if _suggests_drafts(point, model) else 0


def doubts_of_drafts(point: Point, model: ModelSpec) -> tuple[str, ...]:
    """Guesses about drafts, in words."""
    if point.drafted is None:
        return ("drafts guessed from the release",) if _suggests_drafts(point, model) else ()
    known = load_campaigns()[point.campaign].drafts
    is_set = point.engine in known.engines and has_drafts(model) and point.drafted == known.tokens
    return (
        ()
        if is_set or not point.drafted
        else (f"what drafts of {point.drafted} tokens save is assumed",)
    )


def _suggests_drafts(point: Point, model: ModelSpec) -> bool:
    return point.is_drafted and has_drafts(model) and point.prefill is None


def has_drafts(model: ModelSpec) -> bool:
    """Whether a model has the module: DeepSeek's, which are those with latent attention and
    experts.
    """
    return model.has_latent_cache and model.moe is not None
