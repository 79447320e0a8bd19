"""The quantities that files speak of: each has a unit, a lowest and a highest value, and is named
here once.

The ranges are far wider than anything that exists, and narrow enough that what lies inside them can
be computed: no array is larger than memory, no product leaves 64 bits. A number outside is a slip
of a unit or of the keyboard.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

YEAR_S = 366 * 86_400.0
"""Longest time, seconds: three times the longest published trace (BurstGPT, 121 days). An hour in
microseconds is a century."""
MOST_REQUESTS = 50_000_000
"""More than any trace published."""
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


def within(lowest: float, highest: float, unit: str = "", *, above: bool = False) -> Any:
    """A range for an annotated number, both ends inside.

    Args:
        unit: in the plural, as errors and the JSON Schema say it; empty for a pure number.
        above: whether the lower end is outside.
    """
    low: dict[str, Any] = {"gt" if above else "ge": lowest}
    return Field(**low, le=highest, json_schema_extra={"unit": unit} if unit else None)


_MISTAKEN = {
    ("seconds", True): "is this in milliseconds or microseconds?",
    ("bytes", False): "is this in GB?",
    ("bytes per second", False): "is this in GB/s?",
    ("FLOPs per second", False): "is this in TFLOP/s?",
    ("tokens", True): "is this in bytes or characters?",
}
"""The likely slip, by unit and whether the number is too high."""


def mistaken_unit(unit: str, *, is_high: bool) -> str:
    """A question about the unit of a number outside its range; empty where none suggests itself.

    >>> mistaken_unit("bytes", is_high=False)
    'is this in GB?'
    """
    return _MISTAKEN.get((unit, is_high), "")


# Pure numbers

Seed = Annotated[int, within(0, 2**63 - 1)]
"""Whole number that random numbers are drawn from."""
Ratio = Annotated[float, within(0, 1)]
"""A share, both ends inside."""
Share = Annotated[float, within(0, 1, above=True)]
"""A share of something that must not be nothing."""
Factor = Annotated[float, within(1e-6, 1e6)]
"""What something is multiplied with."""
Thickening = Annotated[float, within(1, 1e6)]
"""Requests for each recorded one."""
Amount = Annotated[float, within(0, 1e18)]
"""A fitted number with the unit of its own key, or none."""
Extent = Annotated[float, within(0, 1e18, above=True)]
"""An amount that must not be nothing."""
Score = Annotated[float, within(-1e6, 1e6)]
"""A user's own measure, or a signed relative error."""
Spread = Annotated[float, within(0, 10)]
"""Standard deviation of a natural logarithm; at 10 one value in three is 22,000 times the median or
more."""
Exponent = Annotated[float, within(0.1, 1e3)]
"""How well two works hide behind each other: 1 = one after the other, large = the longer alone."""
Power = Annotated[float, within(0, 20)]
"""An exponent of a rank or a size."""
Steps = Annotated[int, within(1, 1_000_000, "steps")]
StepCount = Annotated[int, within(0, 1_000_000, "steps")]
Size = Annotated[int, within(1, 1 << 40)]
"""Extent of a table or a tile, in whole numbers."""

# Time and money

Seconds = Annotated[float, within(0, YEAR_S, "seconds")]
Duration = Annotated[float, within(1e-9, YEAR_S, "seconds")]
"""A time that must not be nothing."""
Price = Annotated[float, within(0, 1e6, "units of the currency")]
Budget = Annotated[float, within(1e-6, 1e12, "units of the currency")]

# Traffic

Requests = Annotated[int, within(1, MOST_REQUESTS, "requests")]
RequestRate = Annotated[float, within(1e-6, 1e6, "requests per second")]
Tokens = Annotated[int, within(1, MOST_TOKENS, "tokens")]
TokenCount = Annotated[int, within(0, MOST_TOKENS, "tokens")]
Length = Annotated[float, within(0.5, MOST_TOKENS, "tokens")]
"""Tokens at a percentile, which need not be whole."""
TokenRate = Annotated[float, within(1e-6, 1e12, "tokens per second")]
TokenBudget = Annotated[int, within(1, 1 << 20, "tokens")]
"""Tokens of one step: prices are tabled by them."""
DraftTokens = Annotated[int, within(1, 64, "tokens")]
"""Tokens that are drafted for a sequence at once."""
Sequences = Annotated[int, within(1, 1 << 15, "sequences")]
"""Sequences that are served at once: an engine's state has a row for each."""
SequenceCount = Annotated[int, within(0, 1 << 15, "sequences")]

# Models

Width = Annotated[int, within(1, MOST_WIDTH, "numbers")]
"""A vector's length, a vocabulary, or a number of heads."""
WidthOrNone = Annotated[int, within(0, MOST_WIDTH, "numbers")]
Layers = Annotated[int, within(1, MOST_LAYERS, "layers")]
Experts = Annotated[int, within(1, MOST_EXPERTS, "experts")]
ExpertCount = Annotated[int, within(0, MOST_EXPERTS, "experts")]
Slots = Annotated[int, within(1, 4 * MOST_EXPERTS, "slots")]
"""Places for experts and their copies."""
TopK = Annotated[int, within(1, 256, "experts")]
"""Experts of one token: 32 times what is usual."""
Parameters = Annotated[int, within(0, 10**15, "parameters")]
PrintedParameters = Annotated[float, within(0, 1e15, "parameters")]

# Machines

Ranks = Annotated[int, within(1, MOST_RANKS, "GPUs")]
Rank = Annotated[int, within(0, MOST_RANKS - 1)]
Stages = Annotated[int, within(1, MOST_LAYERS, "stages")]
Gpus = Annotated[int, within(1, MOST_GPUS, "GPUs")]
Nodes = Annotated[int, within(1, MOST_GPUS, "nodes")]
GpuCount = Annotated[int, within(0, MOST_GPUS, "GPUs")]
MachineNumber = Annotated[int, within(0, MOST_GPUS - 1)]
"""Which GPU or node, from 0."""
NodeCount = Annotated[int, within(0, MOST_GPUS, "nodes")]
Replicas = Annotated[int, within(1, MOST_GPUS, "replicas")]
Multiprocessors = Annotated[int, within(1, 1_000_000, "multiprocessors")]
MultiprocessorCount = Annotated[int, within(0, 1_000_000, "multiprocessors")]
Cores = Annotated[int, within(1, 1_000_000, "cores")]
Bytes = Annotated[float, within(0, 1e15, "bytes")]
MemoryBytes = Annotated[float, within(1e6, 1e15, "bytes")]
BytesPerSecond = Annotated[float, within(1e3, 1e16, "bytes per second")]
FlopsPerSecond = Annotated[float, within(1e6, 1e21, "FLOPs per second")]
Watts = Annotated[float, within(1e-3, 1e12, "watts")]
