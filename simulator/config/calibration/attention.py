"""Attention over the context."""

from __future__ import annotations

from simulator.base.quantities import Amount, Exponent, Factor, Seconds, Size
from simulator.config.calibration.fit import Fit
from simulator.config.dtypes import DType


class AttentionFit(Fit):
    """Time of one attention kernel over all sequences of a step: ``floor + (compute^overlap +
    stream^overlap + setup^overlap)^(1/overlap)``.

    ``compute`` is the work on (query, key) pairs, ``stream`` reads the cache, ``setup`` is what
    rows, tokens and sequences take whatever their context.
    :func:`simulator.cost.kernels.attention.context_rates` says how each follows from the fields
    below.
    """

    compute_fraction: Factor
    """Achieved share of the peak FLOP/s of ``computed_as``."""
    computed_as: DType = "bf16"
    """Number format whose peak rate the kernel computes at."""
    softmax_s: Seconds = 0.0
    """Seconds of one score's exponential on one multiprocessor. Exponentials and matrix products
    overlap."""
    memory_fraction: Factor
    """Achieved share of the peak memory rate."""
    floor_s: Seconds
    """Shortest time of the kernel in seconds, launch included."""
    overlap: Exponent = 1.0
    """Exponent that combines the parts: 1 where they run one after the other, large where the
    longest hides the rest."""
    tile_rows: Size = 1
    """Query tokens of one tile: those of a sequence are computed in whole tiles."""
    row_s: Seconds = 0.0
    """Seconds of one query token of one head on one multiprocessor, whatever it sees: loading,
    storing, the masked part of its blocks."""
    longest_rows: Amount = 0.0
    """Query tokens that one multiprocessor computes by itself: the last of them wait for all the
    keys that the longest sequence has."""
    sequence_s: Seconds = 0.0
    """Seconds of one sequence and key-value head on one multiprocessor."""
    append_s: Seconds = 0.0
    """Seconds of one number of a token's key on one multiprocessor: writing it and its value into
    the cache."""
    window_block: Amount = 0.0
    """Number of entries that a kernel reads beyond a sliding window, since it reads whole blocks of
    them."""
    split_entries: Amount = 0.0
    """Number of entries in view from which on a sequence is split over multiprocessors, whose parts
    are combined in ``split_s``."""
    split_s: Seconds = 0.0
    """Seconds that combining the parts of split sequences takes, once."""
    absorbs: bool = False
    """Whether prompts are computed on the latent itself, as decode does, and not on keys and values
    expanded from it (MLA)."""
    entry_passes: Factor = 1.0
    """Number of times that an entry's bytes are moved: more than one where the cache is converted
    before it is read."""
    module_s: Seconds = 0.0
    """Seconds that a block timed as a whole takes beside its matrix products and this kernel:
    norms, rotation, and launching where no graph is replayed. Added to measured blocks only:
    serving pays it as the engine's ``layer_s``."""
