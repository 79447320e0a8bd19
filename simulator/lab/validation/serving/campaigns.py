"""Facts of measured campaigns: how a harness starts engines and sends requests, a file each in
``workloads/campaigns``. A campaign adds to ``default.toml``, which is of engines as they start by
themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt

from simulator.base.data import available_files
from simulator.base.frozen import Frozen, Policy, validate
from simulator.base.quantities import Share
from simulator.base.reading import read_toml

_FOLDER = "workloads/campaigns"
DEFAULT = "default"
"""Campaign of rows that no other one claims."""


class Client(Frozen):
    """Requests as a campaign's client sends them."""

    shortest: Share
    """Shortest length over the longest: lengths are drawn from there to what is asked for."""
    rounds: PositiveInt
    """Requests of a measurement over its concurrency."""
    jitter: float = Field(ge=0, lt=1)
    """Spread of equal output lengths either way, which stands for what clients and streams
    delay."""
    source: str = Field(min_length=1)


class Drafts(Frozen):
    """Drafts where a table says no more than that there are some."""

    tokens: PositiveInt
    accepted: Share
    """Probability that a token of a draft is kept, given that those before it were."""
    engines: tuple[str, ...] = Field(strict=False)
    """Engines whose points that probability was set by."""
    source: str = Field(min_length=1)


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_check_pattern)]
"""Regular expression of Python's ``re``."""


class DraftedRuns(Frozen):
    """Runs that had drafts although their table does not say so."""

    engine: str
    release: Pattern
    """Regular expression that finds the release."""
    ids: Pattern = ""
    """Regular expression that finds the row's id."""


class Pools(Frozen):
    """Assumptions about disaggregated points."""

    busiest: Share
    """Share of their time that prefill workers compute, at most."""
    most_workers: PositiveInt
    """Prefill workers, at most, where the table does not say how many there are."""
    data_parallel_from: PositiveInt
    """Requests in flight for each decode worker from which its attention is data-parallel."""
    shortest: Share
    """Shortest length over the longest."""
    source: str = Field(min_length=1)


class When(Frozen):
    """Conditions that a point must meet, all of them."""

    experts: bool | None = None
    """Whether the model has routed experts."""
    fp4: bool | None = None
    """Whether the GPU multiplies 4-bit numbers."""
    says_release: bool | None = None
    data_parallel: bool | None = None
    """Whether attention is data-parallel."""
    weights: tuple[str, ...] = Field((), strict=False)
    """Formats of dense matrices."""
    num_input: PositiveInt | None = None
    num_output: PositiveInt | None = None
    tp_below: PositiveInt | None = None
    concurrency_below: PositiveInt | None = None
    concurrency_from: NonNegativeInt = 0
    release_below: tuple[int, ...] = Field((), strict=False)


class Budget(Frozen):
    """Token budget that holds one prompt beside all decodes."""

    least: NonNegativeInt = 0
    margin: NonNegativeInt = 0
    """Tokens added to the prompt and the decodes."""
    multiple: PositiveInt = 1
    """Divisor of the budget, which is rounded up."""


class Rule(Frozen):
    """Settings of an engine under some conditions; later rules override earlier ones."""

    when: When = When()
    scheduling: Policy = {}
    budget: Budget | None = None
    deployment: dict[str, object] = {}
    stream_interval: PositiveInt = 1
    """Steps of a request up to the first token that its client sees."""
    guess: str = ""
    """Reason why such points are extrapolations."""
    source: str = Field(min_length=1)


class Campaign(Frozen):
    """A file of ``workloads/campaigns``, with the defaults that it does not override."""

    title: str
    source: str = Field(min_length=1)
    ids: tuple[Pattern, ...] = Field((), strict=False)
    """Regular expressions, one of which finds the id of each of its rows."""
    client: Client
    drafts: Drafts
    drafted: tuple[DraftedRuns, ...] = Field((), strict=False)
    pools: Pools
    engines: dict[str, list[Rule]]


@cache
def load_campaigns() -> dict[str, Campaign]:
    """Every campaign by the name of its file.

    Raises:
        UserError: if one of the files is wrong.
    """
    files = available_files(_FOLDER)
    default = read_toml(files[DEFAULT])
    own = {name: read_toml(path) for name, path in files.items() if name != DEFAULT}
    tables = {DEFAULT: default} | {name: _merge(default, table) for name, table in own.items()}
    return {name: validate(Campaign, table, str(files[name])) for name, table in tables.items()}


def find_campaign(row_id: str) -> str:
    """Campaign that claims the id of a row.

    >>> find_campaign("2026_04_06_llama_3_1_70b_h100_sxm_vllm_fp8_agg_1024x1024_c16_tp4_ep1_260")
    'inferencex'
    >>> find_campaign("dsr1_b200_agg_c4_cfg202")
    'inferencex'
    >>> find_campaign("qwen3_32b_h100_sxm_vllm_agg_4000x1000_c_tp8_0_epnone_1")
    'default'
    """
    claims = (
        name
        for name, campaign in load_campaigns().items()
        if any(re.search(pattern, row_id) for pattern in campaign.ids)
    )
    return next(claims, DEFAULT)


def _merge(default: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """Tables of a campaign over the defaults, its rules behind those of the defaults."""
    found = dict(default)
    for key, value in own.items():
        other = default.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            found[key] = _merge(other, value)
        elif isinstance(value, list) and isinstance(other, list):
            found[key] = [*other, *value]
        else:
            found[key] = value
    return found
