"""How far measured pools of prefill and decode workers are from what their steps take."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simulator.base.quantities import Amount, Factor, Replicas, Score, within
from simulator.config.calibration.fit import Fit

_Band = Annotated[tuple[Factor, Factor], Field(strict=False)]


class DisaggregationFit(Fit):
    """Prefill and decode in pools of their own, on one engine. ``band`` and errors are those of the
    time per token.
    """

    ttft_band: _Band
    """10th and 90th percentile of measured over predicted time to first token. Predicted is what
    the engine does by its source; nothing explains the rest, so the band is wide and most of it
    lies above 1."""
    ttft_bias: Score | None = None
    """Median of measured over predicted time to the first token, less 1."""
    ttft_median_error: Amount | None = None
    ttft_p90_error: Amount | None = None
    unsaid_workers: Replicas
    """Decode workers of a deployment that does not say how many it has."""
    unsaid_drafts: Annotated[float, within(1.0, 1e3, "tokens")]
    """Tokens that a sequence gets of a step there, if its model can draft them: some such
    deployments do and do not say so, so this lies between one and what drafts keep."""
    unsaid_band: _Band
    """Of the time per token in such a deployment; likewise below."""
    unsaid_ttft_band: _Band
    unsaid_median_error: Amount | None = None
    unsaid_p90_error: Amount | None = None
    unsaid_ttft_median_error: Amount | None = None
    unsaid_ttft_p90_error: Amount | None = None
    models: tuple[str, ...] = Field(default=(), strict=False)
    """Model files with enough points in the fits, likewise accelerator files; empty where they are
    not said."""
    gpus: tuple[str, ...] = Field(default=(), strict=False)
