"""Quantities of configuration files: each has a unit, a lowest and a highest value, and is named
here once.

The ranges are far wider than anything that exists, and narrow enough that what lies inside them can
be computed: no array is larger than memory, no product leaves 64 bits. A number outside is a slip
of a unit or of the keyboard.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.fields import FieldInfo

YEAR_S = 366 * 86_400.0
"""Longest time, seconds: three times the longest published trace (BurstGPT, 121 days). An hour
written in microseconds would be a century."""
MOST_REQUESTS = 50_000_000
"""Most requests of a run: more than any published trace has."""
MOST_TOKENS = 1 << 24
"""Longest request, tokens: beyond the longest context of a released model (10 million)."""
MOST_WIDTH = 1 << 20
"""Widest vector and largest vocabulary: four times the largest in use (262,144)."""
MOST_LAYERS = 1_000
"""Eight times the deepest released model."""
MOST_EXPERTS = 1 << 14
"""Experts of a layer; their ids must fit in 16 bits with a sign."""
MOST_RANKS = 1_024
"""GPUs of one replica, three times the largest expert parallelism in use (320). Paths between them
grow with their square."""
MOST_GPUS = 100_000
"""GPUs of a cluster: that of the largest built. Each may be a replica of its own."""


def value_range(lowest: float, highest: float, unit: str = "", *, above: bool = False) -> FieldInfo:
    """Range of an annotated number, both ends included.

    Args:
        unit: in the plural, as errors and the JSON Schema say it; empty for a pure number.
        above: whether the lower end is outside.
    """
    return FieldInfo(
        gt=lowest if above else None,
        ge=None if above else lowest,
        le=highest,
        json_schema_extra={"unit": unit} if unit else None,
    )


_MISTAKEN = {
    ("seconds", True): "is this in milliseconds or microseconds?",
    ("bytes", False): "is this in GB?",
    ("bytes per second", False): "is this in GB/s?",
    ("FLOPs per second", False): "is this in TFLOP/s?",
    ("tokens", True): "is this in bytes or characters?",
}
"""Questions about the likely slip, by unit and whether the number is too high."""


def mistaken_unit(unit: str, *, is_high: bool) -> str:
    """Ask about the unit of a number outside its range; empty where no slip is likely.

    >>> mistaken_unit("bytes", is_high=False)
    'is this in GB?'
    """
    return _MISTAKEN.get((unit, is_high), "")


# Names, remarks and told errors

IS_LABEL = Field(json_schema_extra={"is_label": True})
"""Mark of a key that people read and no figure depends on; the reference of keys says so."""
Label = Annotated[str, IS_LABEL]
"""Name, source or remark."""
Sources = Annotated[dict[str, str], IS_LABEL]
"""Source by key or group of keys."""

# Pure numbers

Seed = Annotated[int, value_range(0, 2**63 - 1)]
"""Whole number that seeds random numbers."""
Ratio = Annotated[float, value_range(0, 1)]
"""Share from 0 to 1, both included."""
Share = Annotated[float, value_range(0, 1, above=True)]
"""Share above 0, up to 1."""
SpeedShare = Annotated[float, value_range(0.001, 1)]
"""Share of a usual speed that is left."""
Factor = Annotated[float, value_range(1e-6, 1e6)]
"""Multiplier."""
Thickening = Annotated[float, value_range(1, 1e6)]
"""Requests for each recorded one."""
Amount = Annotated[float, value_range(0, 1e18)]
"""Fitted number with the unit of its own key, or none."""
Extent = Annotated[float, value_range(0, 1e18, above=True)]
"""Amount above 0."""
Score = Annotated[float, value_range(-1e6, 1e6)]
"""User's own measure, or a signed relative error."""
Spread = Annotated[float, value_range(0, 10)]
"""Standard deviation of a natural logarithm; at 10 one value in three is 22,000 times the median or
more."""
Coefficient = Annotated[float, value_range(-1e6, 1e6)]
"""Fitted number of a formula, with its sign."""
Exponent = Annotated[float, value_range(0.1, 1e3)]
"""Exponent of the overlap of two works: 1 = one after the other, large = the longer one alone."""
Power = Annotated[float, value_range(0, 20)]
"""Exponent of a rank or a size."""
Steps = Annotated[int, value_range(1, 1_000_000, "steps")]
StepCount = Annotated[int, value_range(0, 1_000_000, "steps")]
"""Number of steps that may be 0."""
StepsAhead = Annotated[int, value_range(0, 1, "steps")]
"""Number of steps that are formed while another one runs."""
ExchangeChunks = Annotated[int, value_range(1, 64, "chunks")]
StepNumber = Annotated[int, value_range(0, 1_000_000)]
"""Index of a step, from 0."""
Size = Annotated[int, value_range(1, 1 << 40)]
"""Extent of a table or a tile, a whole number."""

# Time and money

Seconds = Annotated[float, value_range(0, YEAR_S, "seconds")]
Duration = Annotated[float, value_range(1e-9, YEAR_S, "seconds")]
"""Time above 0."""
Hours = Annotated[float, value_range(1e-3, 1e9, "hours")]
"""Working hours of machines, above 0."""
Price = Annotated[float, value_range(0, 1e6, "units of the currency")]
Budget = Annotated[float, value_range(1e-6, 1e12, "units of the currency per hour")]

# Traffic

Requests = Annotated[int, value_range(1, MOST_REQUESTS, "requests")]
RequestRate = Annotated[float, value_range(1e-6, 1e6, "requests per second")]
Tokens = Annotated[int, value_range(1, MOST_TOKENS, "tokens")]
TokenCount = Annotated[int, value_range(0, MOST_TOKENS, "tokens")]
Length = Annotated[float, value_range(0.5, MOST_TOKENS, "tokens")]
"""Tokens at a percentile, not necessarily a whole number."""
TrainingTokens = Annotated[float, value_range(1e3, 1e18, "tokens")]
"""Tokens that a model is trained on."""
TokenRate = Annotated[float, value_range(1e-6, 1e12, "tokens per second")]
TokenBudget = Annotated[int, value_range(1, 1 << 20, "tokens")]
"""Tokens of one step: prices are tabulated by them."""
DraftTokens = Annotated[int, value_range(1, 64, "tokens")]
"""Draft tokens proposed for a sequence at once."""
Sequences = Annotated[int, value_range(1, 1 << 15, "sequences")]
"""Sequences served at once: an engine's state has a row for each."""
SequenceCount = Annotated[int, value_range(0, 1 << 15, "sequences")]
"""Number of sequences that may be 0."""

# Models

Width = Annotated[int, value_range(1, MOST_WIDTH, "numbers")]
"""Length of a vector."""
WidthOrNone = Annotated[int, value_range(0, MOST_WIDTH, "numbers")]
"""Width that may be 0, where a model lacks the part."""
Heads = Annotated[int, value_range(1, MOST_WIDTH, "heads")]
TokenExtent = Annotated[int, value_range(1, MOST_WIDTH, "tokens")]
"""Tokens of a vocabulary, or that a convolution sees."""
Layers = Annotated[int, value_range(1, MOST_LAYERS, "layers")]
Experts = Annotated[int, value_range(1, MOST_EXPERTS, "experts")]
ExpertCount = Annotated[int, value_range(0, MOST_EXPERTS, "experts")]
Groups = Annotated[int, value_range(1, MOST_EXPERTS, "groups")]
"""Groups of a layer's experts."""
Slots = Annotated[int, value_range(1, 4 * MOST_EXPERTS, "slots")]
"""Slots for experts and their copies."""
TopK = Annotated[int, value_range(1, 256, "experts")]
"""Experts of one token, up to 32 times what is usual."""
Parameters = Annotated[int, value_range(0, 10**15, "parameters")]
PrintedParameters = Annotated[float, value_range(0, 1e15, "parameters")]
ModelParameters = Annotated[float, value_range(1, 1e18, "parameters")]
"""Parameters of a model that exists or is spoken of, above 0."""
Expansion = Annotated[float, value_range(1, MOST_EXPERTS)]
"""Ratio of a layer's experts to those of one token, or how many a token uses."""

# Machines

Ranks = Annotated[int, value_range(1, MOST_RANKS, "ranks")]
Rank = Annotated[int, value_range(0, MOST_RANKS - 1)]
Stages = Annotated[int, value_range(1, MOST_LAYERS, "stages")]
ReplicaGpus = Annotated[int, value_range(1, MOST_RANKS, "GPUs")]
"""GPUs of one replica, or of one node."""
Variants = Annotated[int, value_range(1, 100_000, "variants")]
"""Variants of the models of a plan."""
Gpus = Annotated[int, value_range(1, MOST_GPUS, "GPUs")]
Nodes = Annotated[int, value_range(1, MOST_GPUS, "nodes")]
Spines = Annotated[int, value_range(1, 4096, "switches")]
GpuCount = Annotated[int, value_range(0, MOST_GPUS, "GPUs")]
MachineNumber = Annotated[int, value_range(0, MOST_GPUS - 1)]
"""Index of a GPU or node, from 0."""
NodeCount = Annotated[int, value_range(0, MOST_GPUS, "nodes")]
Replicas = Annotated[int, value_range(1, MOST_GPUS, "replicas")]
Multiprocessors = Annotated[int, value_range(1, 1_000_000, "multiprocessors")]
MultiprocessorCount = Annotated[int, value_range(0, 1_000_000, "multiprocessors")]
Cores = Annotated[int, value_range(1, 1_000_000, "cores")]
Bytes = Annotated[float, value_range(0, 1e15, "bytes")]
MemoryBytes = Annotated[float, value_range(1e6, 1e15, "bytes")]
BytesPerSecond = Annotated[float, value_range(1e3, 1e16, "bytes per second")]
FlopsPerSecond = Annotated[float, value_range(1e6, 1e21, "FLOPs per second")]
Watts = Annotated[float, value_range(1e-3, 1e12, "watts")]
