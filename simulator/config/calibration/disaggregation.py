"""Ratio of measured to predicted times of pools of prefill and decode workers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simulator.base.quantities import IS_LABEL, Amount, Factor, Replicas, Score, value_range
from simulator.config.calibration.fit import Fit

_Band = Annotated[tuple[Factor, Factor], Field(strict=False)]


class DisaggregationFit(Fit):
    """Prefill and decode in pools of their own, on one engine. ``band`` and errors are those of the
    time per token.
    """

    ttft_band: _Band
    """10th and 90th percentile of the ratio measured over predicted time to first token. Predicted
    is what the engine does by its source; nothing explains the rest, so the band is wide and most
    of it lies above 1."""
    ttft_bias: Annotated[Score | None, IS_LABEL] = None
    """Median of the ratio measured over predicted time to first token, less 1."""
    ttft_median_error: Annotated[Amount | None, IS_LABEL] = None
    """Median of the absolute relative error of the time to first token, as a share."""
    ttft_p90_error: Annotated[Amount | None, IS_LABEL] = None
    """90th percentile of the absolute relative error of the time to first token, as a share."""
    unsaid_workers: Replicas
    """Decode workers of a deployment whose source does not say how many there are."""
    unsaid_drafts: Annotated[float, value_range(1.0, 1e3, "tokens")]
    """Tokens that a sequence gets of one step of such a deployment, if its model can draft them:
    some draft without saying so, so this lies between one and what drafts keep."""
    unsaid_band: _Band
    """10th and 90th percentile of the ratio measured over predicted time per output token of such
    deployments."""
    unsaid_ttft_band: _Band
    """10th and 90th percentile of the ratio measured over predicted time to first token of such
    deployments."""
    unsaid_median_error: Annotated[Amount | None, IS_LABEL] = None
    """Median of the absolute relative error of the time per output token of such deployments, as a
    share."""
    unsaid_p90_error: Annotated[Amount | None, IS_LABEL] = None
    """90th percentile of the absolute relative error of the time per output token of such
    deployments, as a share."""
    unsaid_ttft_median_error: Annotated[Amount | None, IS_LABEL] = None
    """Median of the absolute relative error of the time to first token of such deployments, as a
    share."""
    unsaid_ttft_p90_error: Annotated[Amount | None, IS_LABEL] = None
    """90th percentile of the absolute relative error of the time to first token of such
    deployments, as a share."""
    models: tuple[str, ...] = Field(default=(), strict=False)
    """Model files with enough points in the fits; empty where they are not said."""
    gpus: tuple[str, ...] = Field(default=(), strict=False)
    """Accelerator files with enough points in the fits; empty where they are not said."""
