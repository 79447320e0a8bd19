"""The serving engine's own time, and what disaggregated pools take of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from simulator.base.frozen import Frozen, PairOf
from simulator.base.quantities import (
    IS_LABEL,
    Amount,
    Factor,
    Replicas,
    Score,
    Seconds,
    value_range,
)
from simulator.config.calibration.fit import Fit

_Band = PairOf[Factor]
Unseen = Literal["model", "gpu", "release"]
"""Kinds of groups of serving points that are left out of a fit as a whole."""


class LatencyBands(Frozen):
    """Ratio measured over predicted, 10th and 90th percentile."""

    band: _Band
    """10th and 90th percentile of the ratio measured over predicted time per output token."""
    ttft_band: _Band
    """10th and 90th percentile of the ratio measured over predicted time to first token."""


OWN_TIMES = (
    "step_s",
    "sequence_s",
    "layer_s",
    "prompt_layer_s",
    "prompt_expert_layer_s",
    "expert_ratio",
    "first_token_s",
    "stream_s",
)
"""Keys of :class:`EngineFit` that are times, and the ratio of two."""


UNSAID = "unsaid"
"""Version of an engine of which a measurement does not say it."""


class EngineFit(Fit):
    """The serving engine's own time."""

    step_s: Seconds
    """Seconds between two forward passes: scheduling, input preparation, sampling, output
    handling."""
    sequence_s: Seconds
    """Seconds added for each sequence in the step, as far as engines were measured
    (:mod:`simulator.cost.engine_time`)."""
    layer_s: Seconds
    """Seconds of the small kernels of one layer (norms, rotary embedding, residuals), beyond their
    bytes."""
    prompt_layer_s: Seconds = 0.0
    """Seconds added for each layer to a step with prompt tokens: its kernels are launched one by
    one, since graphs are captured for decodes."""
    prompt_expert_layer_s: Seconds = 0.0
    """Seconds added once more for each layer with routed experts to a step with prompt tokens:
    routing, sorting and a kernel for each of their parts, launched one by one, and sizes that the
    host waits for."""
    expert_ratio: Factor = 1.0
    """Factor on the time of routed experts: this release over the release whose kernels were
    measured."""
    first_token_s: Seconds = 0.0
    """Seconds before a request's first token, once: HTTP, tokenising, passing between processes,
    streaming."""
    stream_s: Seconds = 0.0
    """Seconds that a request's tokens come later to its client for each request that runs on the
    replica: one process tokenises for and streams to all of them
    (:func:`~simulator.cost.engine_time.streams_s`)."""
    ttft_band: _Band | None = None
    """10th and 90th percentile of the ratio measured over predicted time to first token; ``band``
    is that of the time per output token."""
    ttft_median_error: Annotated[Amount | None, IS_LABEL] = None
    """Median of the absolute relative error of the time to first token, as a share."""
    ttft_p90_error: Annotated[Amount | None, IS_LABEL] = None
    """90th percentile of the absolute relative error of the time to first token, as a share."""
    left_out: Annotated[
        dict[str, Annotated[tuple[Amount, Amount, Amount], Field(strict=False)]], IS_LABEL
    ] = {}
    """Number of rows, median and 90th percentile of the absolute relative error by what was asked
    (``tpot MoE``, ``tpot dense``, ``ttft``), of all engines together, each point priced by the
    entry that it would have without its model and without its GPU."""
    unseen: dict[Unseen, LatencyBands] = {}
    """Bands of a model, a GPU or a release without points in the fit: of all engines together, from
    the errors of whole models, GPUs or releases that were left out."""
    models: tuple[str, ...] = Field(default=(), strict=False)
    """Model files whose points are in the fit; ``domain`` is their load."""
    gpus: tuple[str, ...] = Field(default=(), strict=False)
    """Accelerator files whose points are in the fit."""
    releases: tuple[str, ...] = Field(default=(), strict=False)
    """Releases of the engine whose points are in the fit."""

    def widest_bands(self, unseen: Iterable[Unseen]) -> LatencyBands | None:
        """The entry's bands, no narrower than those of what is ``unseen``; ``None`` where nothing
        was measured.
        """
        own = [(self.band, self.ttft_band)] if self.band and self.ttft_band else []
        others = [self.unseen[kind] for kind in unseen if kind in self.unseen]
        both = [*own, *((bands.band, bands.ttft_band) for bands in others)]
        if not both:
            return None
        band, ttft_band = (
            (min(low for low, _ in bands), max(high for _, high in bands))
            for bands in zip(*both, strict=True)
        )
        return LatencyBands(band=band, ttft_band=ttft_band)

    def prompt_s(self, num_layers: int, num_moe_layers: int) -> float:
        """Seconds that a step with prompt tokens takes beyond one without.

        Args:
            num_moe_layers: of ``num_layers``, those with routed experts.
        """
        return num_layers * self.prompt_layer_s + num_moe_layers * self.prompt_expert_layer_s


def find_engine_fit(table: dict[str, EngineFit], engine: str, otherwise: EngineFit) -> EngineFit:
    """The entry of an engine and version, see :func:`find_engine_key`."""
    key = find_engine_key(tuple(table), engine)
    return otherwise if key is None else table[key]


def find_engine_key(keys: tuple[str, ...], engine: str) -> str | None:
    """Find the key that answers for an engine's release: its newest one that is not newer, or else
    its oldest. The engine's own key answers where no release has one, or ``engine`` says none.

    >>> find_engine_key(("vllm", "trtllm", "trtllm@1.0.0", "trtllm@1.2.0"), "trtllm@1.1.0rc2")
    'trtllm@1.0.0'
    >>> find_engine_key(("vllm", "trtllm", "trtllm@1.0.0"), "trtllm@0.8.1")
    'trtllm@1.0.0'
    >>> find_engine_key(("vllm", "vllm@0.12.0"), f"vllm@{UNSAID}")
    'vllm'
    >>> find_engine_key(("vllm",), "mine") is None
    True
    """
    name, _, version = engine.partition("@")
    wanted = parse_release(version)
    own = [key for key in keys if key.startswith(f"{name}@")]
    by_age = sorted((parse_release(key.partition("@")[2]), key) for key in own)
    if not by_age or not wanted:
        return name if name in keys else None
    older = [key for release, key in by_age if release <= wanted]
    return older[-1] if older else by_age[0][1]


def parse_release(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, the third 0 where it has two; empty where it does not
    begin with two.

    >>> parse_release("1.2.0rc6.post2"), parse_release("nightly")
    ((1, 2, 0), ())
    """
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(map(int, found.groups(default="0"))) if found else ()


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
