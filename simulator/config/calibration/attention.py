"""Attention over the context."""

from __future__ import annotations

from simulator.base.quantities import Amount, Exponent, Factor, Seconds, Size
from simulator.config.calibration.fit import Fit
from simulator.config.dtypes import DType


class AttentionFit(Fit):
    """What one kernel achieves, over all sequences of a step: ``floor + (compute^overlap +
    stream^overlap + setup^overlap)^(1/overlap)``.

    ``compute`` is the work on (query, key) pairs, ``stream`` reads the cache, ``setup`` is what
    rows, tokens and sequences take whatever their context.
    :func:`simulator.cost.kernels.attention.context_rates` says how each follows from the fields
    below.
    """

    compute_fraction: Factor
    """Of the peak FLOP/s of ``computed_as``."""
    computed_as: DType = "bf16"
    softmax_s: Seconds = 0.0
    """For one score on one multiprocessor: its exponential. Exponentials and matrix products
    overlap."""
    memory_fraction: Factor
    """Of the peak memory rate."""
    floor_s: Seconds
    """Shortest time of the kernel, launch included."""
    overlap: Exponent = 1.0
    """Exponent: 1 where the parts run one after the other, large where the longest hides the
    rest."""
    tile_rows: Size = 1
    """Query tokens of a sequence are computed in whole tiles of so many."""
    row_s: Seconds = 0.0
    """For one query token of one head on one multiprocessor, whatever it sees: loading, storing,
    the masked part of its blocks."""
    longest_rows: Amount = 0.0
    """Query tokens that one multiprocessor computes by itself: the last of them wait for all the
    keys that the longest sequence has."""
    sequence_s: Seconds = 0.0
    """For one sequence and key-value head on one multiprocessor."""
    append_s: Seconds = 0.0
    """For one number of a token's key on one multiprocessor: writing it and its value into the
    cache."""
    window_block: Amount = 0.0
    """Entries that a kernel reads beyond a sliding window, since it reads whole blocks of them."""
    split_entries: Amount = 0.0
    """A sequence with more entries than this in view is split over multiprocessors, and its parts
    are combined ..."""
    split_s: Seconds = 0.0
    """... which takes so long, once."""
    absorbs: bool = False
    """Whether prompts are computed on the latent itself, as decode does, and not on keys and values
    expanded from it (MLA)."""
    entry_passes: Factor = 1.0
    """Times that an entry's bytes are moved: more than once where the cache is converted before it
    is read."""
    module_s: Seconds = 0.0
    """What a block that is timed whole takes beside its matrix products and this kernel: norms,
    rotation, and launching where no graph is replayed. Added to measured blocks only: serving pays
    it as the engine's ``layer_s``."""
