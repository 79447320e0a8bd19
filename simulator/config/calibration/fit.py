"""Origin, range and error of a calibrated number, and the key by which one is found."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from simulator.base.frozen import Frozen, PairOf
from simulator.base.quantities import IS_LABEL, Amount, Extent, Factor, Label, Score
from simulator.config.sparsity import Pruning


class PriceKey(NamedTuple):
    """The facts that decide which entries of a calibration price a deployment.

    None has a default: who left one out would get the entries of another deployment, and their
    error bands with them.
    """

    weights: str
    """Format of dense matrices."""
    experts: str | None
    """Format of routed experts; ``None`` for a dense model."""
    num_experts: int | None
    """Routed experts of a layer: engines run few by other kernels; ``None`` for a dense model."""
    travels: bool
    """Whether tokens travel to their experts."""
    is_split: bool
    """Whether matrices are split over tensor-parallel ranks, whose results are summed."""
    kernels: tuple[str, ...]
    """Names of the exchange kernels between ranks and experts, for few tokens and for many."""
    cache: str
    """Format of the KV cache."""
    is_latent: bool
    """Whether the cache holds latent vectors (MLA)."""
    pruning: Pruning | None
    """Pruning of the matrices of feed-forward blocks; ``None`` where they are whole."""


Kind = Literal["measured", "interpolated", "fitted", "published", "assumed"]

Range = Annotated[tuple[Amount, Extent], Field(strict=False)]
"""Lowest and highest, both inside."""


class Fit(Frozen):
    """Numbers with one origin."""

    kind: Kind
    """Origin of the numbers: timed as they stand, interpolated or fitted on measurements, taken
    from a publication, or assumed."""
    source: Label = Field(min_length=1)
    """Measurements that the numbers were fitted on, or the reason why they are assumed."""
    accelerator: str | None = None
    """File of the accelerator that was measured; on others of its family the numbers are
    extrapolated, and said to be."""
    command: Annotated[str | None, IS_LABEL] = None
    """The command that fits them anew; absent where they were not fitted by one."""
    num_rows: Annotated[Amount | None, IS_LABEL] = None
    """Number of measurements in the fit."""
    median_error: Amount | None = None
    """Median of the absolute relative error on measurements like those of the fit, as a share;
    whole model shapes are left out in turn where ``command`` is given."""
    spread: Amount | None = None
    """Spread of the same thing between rounds of a calibration, as a share: the standard deviation
    over the mean. Absent = timed in one go."""
    p90_error: Annotated[Amount | None, IS_LABEL] = None
    """90th percentile of the absolute relative error on the same measurements, as a share."""
    bias: Annotated[Score | None, IS_LABEL] = None
    """Median of the signed relative error on the same measurements, as a share: above 0 where
    predictions are too slow."""
    band: PairOf[Factor] | None = None
    """10th and 90th percentile of the ratio measured over predicted: factors that turn a prediction
    into its 80 % band."""
    covered: Annotated[Amount | None, IS_LABEL] = None
    """Share of the measurements that were left out which lie inside an 80 % band made without those
    left out with them."""
    domain: dict[str, Range] = {}
    """Measured range, lowest and highest, of each quantity that the result depends on, in the
    quantity's unit; outside of it a result is extrapolated, and said to be."""

    def outside(self, **quantities: float) -> list[str]:
        """List the names of the given quantities that lie outside the measured range."""
        return [
            name
            for name, value in quantities.items()
            if name in self.domain and not self.domain[name][0] <= value <= self.domain[name][1]
        ]
