"""Products with pruned matrices, against those with whole ones on the same accelerator."""

from __future__ import annotations

from simulator.base.quantities import Bytes, Factor, Seconds
from simulator.config.calibration.fit import Fit


class PrunedFit(Fit):
    """Achieved rates of a kernel for pruned matrices over those of the kernel for whole matrices of
    the format.

    Stated against the whole product, since that is what is published, and since the ratio holds
    where peaks differ.
    """

    compute_ratio: Factor
    """Ratio of multiplications a second, of those that are done, to the whole product's. Sparse
    tensor cores do half of them for 2:4, so 1 is a speed-up of 2."""
    memory_ratio: Factor
    """Ratio of bytes a second to the whole product's, values and indices alike; never above the
    accelerator's peak."""
    skips_zeros: bool
    """Whether weights that are gone are not multiplied with; else the whole matrix is rebuilt on
    the chip."""
    floor_s: Seconds = 0.0
    """Seconds of the shortest product beyond the whole product's."""
    expand_bytes: Bytes = 0.0
    """Bytes whose reading takes as long as rebuilding the whole matrix takes for each of its
    weights; beside the rest of the work."""
