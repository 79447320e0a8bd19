"""Kernels of one GPU: attention, dense and pruned matrix products, routed experts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simulator.base.frozen import Frozen, ListOf, SomeOf
from simulator.base.quantities import (
    Amount,
    Bytes,
    Duration,
    Exponent,
    Extent,
    Factor,
    MemoryBytes,
    Seconds,
    Size,
)
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


class EagerLaunch(Frozen):
    """Shortest time between kernels that Python launches one by one.

    Tables that were timed so hold it wherever the kernel is shorter; engines that replay CUDA
    graphs do not pay it, so no price in the simulator contains it. ``moesim validate kernels gemm``
    adds it to be compared with such a table.
    """

    seconds: Duration
    """Shortest time of a product launched from Python, seconds."""
    few_rows_s: Duration
    """Shortest time in seconds for up to 16 rows, which another kernel serves."""
    narrow_s: Duration
    """Shortest time in seconds for fewer than 64 output or 128 input features, which yet another
    one serves."""


class GemmFit(Fit):
    """A roofline with a floor: ``FLOPs / (peak x compute)`` against ``bytes / (peak x memory)``,
    plus ``floor_s``.
    """

    compute_fraction: Factor
    """Achieved share of the peak FLOP/s, for whole tiles of the largest size."""
    memory_fraction: Factor
    """Achieved share of the peak memory rate."""
    floor_s: Seconds
    """Shortest time of the kernel in seconds, launch included."""
    overlap: Exponent = 2.5
    """Exponent that combines compute and memory time: 1 without overlap, infinity with a perfect
    one."""
    tiles: ListOf[Annotated[tuple[Size, Size, Size], Field(strict=False)]] = ()
    """Triples ``(first, a, b)``: from ``first`` rows on, the kernel computes output tiles of
    ``a x b``; absent = the fastest of the usual."""
    reread: Amount = 40.0
    """Numbers by which reading slows a tile: one of ``a x b`` reads ``1/a + 1/b`` numbers for each
    multiply-add, and takes ``1 + reread (1/a + 1/b)`` times as long."""
    start_s: Seconds = 0.0
    """Seconds of a tile's start and end (filling the pipeline, writing the result) for each 128x128
    numbers of it."""
    min_split_k: Size | None = None
    """Shortest part, in input features, that ``k`` is split into where a product has fewer tiles
    than multiprocessors; absent = never split."""
    cache_bytes: MemoryBytes | None = None
    """Size of the last-level cache in bytes; absent = no operand is ever read twice."""
    sweep_width: Extent | None = None
    """Width in numbers of the strips in which the kernel sweeps the shorter side of the result,
    reading that side's operand anew for each, from the cache where it fits."""
    quantise_bytes: Bytes = 0.0
    """Bytes moved for each number of the input to convert it to the weights' format, in a pass
    before the product."""
    quantise_row_s: Seconds = 0.0
    """Seconds of one multiprocessor in that pass for each row."""
    quantise_block_s: Seconds = 0.0
    """Seconds of one multiprocessor in that pass for each 2,048 numbers of a row, or what is left
    of them."""
    eager: EagerLaunch | None = None
    """Launch times of the measured kernels where they were launched eagerly; no part of a price."""


class GroupedGemmFit(Fit):
    """A roofline with floors for one kernel, of which a layer has two, and the passes over tokens
    that go with them.
    """

    compute_fraction: Factor
    """Achieved share of the peak FLOP/s, for whole tiles of 128 x 128."""
    computes_in: DType | None = None
    """Number format whose peak that is, where it is not the weights' own: weight-only kernels
    compute in 16 bits."""
    memory_fraction: Factor
    """Achieved share of the peak memory rate."""
    floor_s: Seconds
    """Shortest time of the kernel in seconds, launch included."""
    slot_s: Seconds = 0.0
    """Seconds added for each expert slot of the rank, whether it has tokens or not: offsets,
    descriptors, pointers."""
    touched_s: Seconds = 0.0
    """Seconds added for each expert that has tokens, beyond reading its weights."""
    overlap: Exponent = 3.0
    """Exponent that combines compute and memory time: 1 without overlap, infinity with a perfect
    one."""
    least_depth: Extent = 2048.0
    """Fewest input features of a part where fewer tiles than multiprocessors are split along
    them."""
    tile_rows: SomeOf[Size] = (16, 32, 64, 128, 256)
    """Tokens of a tile, of which the kernel takes the fastest."""
    tile_holds_share: bool = False
    """Whether no tile is below an expert's even share of all choices that the rank sees. Launchers
    that only know how many choices there are (Marlin, FlashInfer, TensorRT-LLM's generated kernels)
    count those of other ranks' experts too, and so compute tiles that are mostly empty where
    experts are split over ranks."""
    tile_reread: Amount = 40.0
    """Numbers by which reading slows a tile: one of ``a x b`` reads ``1/a + 1/b`` numbers for each
    multiply-add, and takes ``1 + tile_reread (1/a + 1/b)`` times as long."""
    weight_reread: Amount = 0.0
    """Share of an expert's weights that each further tile of its tokens reads from memory again,
    since the cache has lost it."""
    pair_passes: Amount = 1.0
    """Number of times that the activation and the sorting stream ``3 width + 4 hidden`` 16-bit
    numbers for each of the rank's rows."""
    choice_passes: Amount = 0.0
    """Number of times that such a stream passes for every choice of the tokens that the rank sees,
    those of other ranks' experts included: kernels that keep a row for each choice convert, zero
    and add up all of them."""


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
