"""Published speeds of products with pruned matrices, and what pruning cost in perplexity, each
with its source.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.base.data import find_file
from simulator.base.frozen import Frozen, validate
from simulator.base.quantities import Experts, Extent, Factor, Tokens, Width
from simulator.base.reading import read_toml
from simulator.config.pruning import Sparsity

_FAMILY, _NAME = "cluster_configs/published", "sparsity"


class PublishedSpeed(Frozen):
    """Speed of a product, or of a whole model, over that with whole matrices."""

    title: str
    """Kernels and machine."""
    device: Literal["cpu", "gpu"] = "gpu"
    """Processor or accelerator."""
    sparsity: Sparsity
    """Share of the weights that are gone."""
    speed_up: Factor
    """Time with whole matrices over time with pruned ones; 1 at the break-even."""
    tokens: Tokens | None = None
    """Tokens of a step; absent = several, or not said."""
    out_features: Width | None = None
    """Rows of the matrix; absent = several matrices, or a whole model."""
    in_features: Width | None = None
    """Columns of the matrix."""
    machine: str | None = None
    """Accelerator of ``cluster_configs/accelerators`` that it was measured on; absent = none of
    them."""
    kernels: str | None = None
    """Kernels, as calibrations name them; absent = others."""
    rests: Literal["compared", "fitted", "shown"]
    """Whether a prediction is compared with it, a calibration was fitted on it, or neither, since
    no calibration is of that machine and those kernels."""
    conditions: str
    """Shapes, number format and batch."""
    source: str
    """Publication that it was read in."""


class PublishedLoss(Frozen):
    """Perplexity of a pruned model beside the whole one's."""

    model: str
    """Model."""
    method: str
    """Way in which weights were chosen."""
    pattern: str
    """Weights that are gone: ``50 %``, ``2:4``."""
    whole: Extent
    """Perplexity of the whole model."""
    pruned: Extent
    """Perplexity of the pruned one."""
    source: str
    """Publication that it was read in."""


class PublishedReduction(Frozen):
    """Accuracy that a model lost with some of its experts."""

    model: str
    """Model."""
    method: str
    """Way in which experts were chosen."""
    experts: Experts
    """Experts of a layer."""
    experts_left: Experts
    """Experts of a layer that are left."""
    points: Extent
    """Points of accuracy lost, mean of zero-shot tasks."""
    source: str
    """Publication that it was read in."""


class PublishedSparsity(Frozen):
    """File of what was published."""

    speeds: Annotated[tuple[PublishedSpeed, ...], Field(strict=False)]
    """Speeds."""
    losses: Annotated[tuple[PublishedLoss, ...], Field(strict=False)]
    """Perplexities on WikiText2, pruned at one go without training."""
    reductions: Annotated[tuple[PublishedReduction, ...], Field(strict=False)]
    """Accuracies with fewer experts."""


def load_published() -> PublishedSparsity:
    """Read what was published."""
    path = find_file(_FAMILY, _NAME, "sparsity")
    return validate(PublishedSparsity, read_toml(path), str(path))
