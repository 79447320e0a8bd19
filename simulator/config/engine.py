"""Behaviour of a serving engine that no flag asks for: how it batches, hands prompts over between
pools, refuses splits and divides memory. A file holds from one release on until the next file's.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, Policy, validate
from simulator.base.kinds import PolicyOf
from simulator.base.plugins import available
from simulator.base.quantities import Bytes, Factor, Label, Seconds, Sequences, Sources, TokenBudget
from simulator.base.reading import read_toml
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration.engine import find_engine_key, parse_release
from simulator.config.engine_memory import MemoryRules
from simulator.config.splits import Splits

_FAMILY = "cluster_configs/engines"
Usage = Literal["server", "offline"]
"""Whether an engine answers requests over HTTP, or is given all of them by a program."""

Remedy = Literal[
    "eplb", "exchange_chunks", "least_loaded", "shared_experts", "spilling", "two_batch"
]
"""Way of an engine to place experts by load, exchange tokens in chunks, send them to the least
loaded copy, compute shared experts beside exchanges, spill excess tokens, or overlap two halves of
a batch."""


class Tier(Frozen):
    """Starting values of an engine on GPUs of some memory."""

    least_memory_bytes: Bytes = 0.0
    """Least memory of a GPU in bytes, as its driver shows it."""
    other_than: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Beginnings of the names of accelerators that the tier does not hold for."""
    server: Annotated[Policy, PolicyOf("scheduling", is_partial=True)]
    """Keys of the scheduling policy."""
    offline: Annotated[Policy, PolicyOf("scheduling", is_partial=True)] = {}
    """Keys of the scheduling policy that differ where a program gives all requests."""


class WithAttentionDP(Frozen):
    """Changes that attention data parallelism brings."""

    conservativeness: Factor | None = None
    """Factor that replaces the scheduling policy's key of that name; absent = none."""
    splits_budget: bool = False
    """Whether the tokens of a step are those of all data-parallel ranks together."""


class WithDrafts(Frozen):
    """Changes that speculative decoding brings."""

    works_ahead: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Kinds of speculation with which steps are formed ahead, as they are without; with others
    none are."""
    max_sequences: Sequences | None = None
    """Most requests that run at once on all data-parallel ranks together; absent = as without."""


class HandOver(Frozen):
    """Passage of a request from a prefill pool to a decode pool, beside queues, steps and wires."""

    handshake_s: Seconds = 0.0
    """Seconds from the end of the prompt until its cache leaves, once a request: a second way over
    HTTP, buffers that are agreed on, transfers before it that are worked off one by one."""
    recomputes_last: bool = False
    """Whether the decode pool computes the prompt's last token again and shows the first token that
    it finds itself; if not, it shows the prefill pool's when it takes the request in."""
    reserves_first: bool = False
    """Whether the decode pool keeps KV blocks for a prompt before it is computed; if not, when it
    is, so that prompts which find no room stay in the prefill pool's cache."""
    prefill_works_ahead: bool = True
    """Whether the prefill pool forms steps ahead where the scheduling policy says so."""


class Places(Frozen):
    """Most requests that run at once on a data-parallel rank, where the size of its KV cache says
    so.
    """

    per_context: Factor
    """Requests for each time that the cache holds the model's longest context."""
    least: Sequences
    """Least such requests."""
    most: Sequences
    """Most such requests."""

    def count(self, cache_tokens: int, context_tokens: int | None) -> int:
        """Count the requests for a cache of so many tokens."""
        contexts = cache_tokens / context_tokens if context_tokens else 0.0
        return min(max(int(contexts * self.per_context), self.least), self.most)


class EngineSpec(Frozen):
    """Release of a serving engine, and those after it up to the next file's."""

    title: Label
    """Name of the release, for reports."""
    based_on: str | None = None
    """Name of another engine file, whose keys hold where this one gives none, table by table."""
    engine: str
    """Name of the engine, as deployments give it."""
    release: str
    """First release that the file holds for."""
    scheduling: Annotated[Policy, PolicyOf("scheduling")]
    """Scheduling policy, and those of its keys that no GPU changes."""
    tiers: Annotated[tuple[Tier, ...], Field(strict=False, min_length=1)]
    """Starting values by the memory of a GPU; the first that fits holds."""
    kv_block_tokens: TokenBudget = 16
    """Tokens of a KV block."""
    sequences: Places | None = None
    """Most requests that run at once by the size of the cache; absent = ``max_sequences`` as
    ``scheduling`` and ``tiers`` have it."""
    attention_dp: WithAttentionDP = WithAttentionDP()
    """Changes that attention data parallelism brings."""
    drafts: WithDrafts = WithDrafts()
    """Changes that speculative decoding brings."""
    hand_over: HandOver = HandOver()
    """Passage of a request from a prefill pool to a decode pool."""
    splits: Splits = Splits()
    """Splits and number formats that the engine refuses."""
    memory: MemoryRules | None = None
    """Rules by which memory is divided; absent = not known."""
    offers: dict[Remedy, str] = {}
    """Ways of the engine to do what ``moesim run --explain`` tries: a flag, a setting, or
    ``by itself``; for what is not here it has none."""
    sources: Sources
    """Source of each group of numbers."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if "kind" not in self.scheduling:
            raise ValueError('scheduling names no policy; give kind, such as "chunked"')
        if self.attention_dp.splits_budget and not all(
            "token_budget" in tier.server for tier in self.tiers
        ):
            raise ValueError("attention_dp.splits_budget divides token_budget, which a tier lacks")
        known = available("speculation")
        if unknown := [kind for kind in self.drafts.works_ahead if kind not in known]:
            raise ValueError(
                f"drafts.works_ahead names '{unknown[0]}', which is no kind of speculation "
                f"({', '.join(known)})"
            )
        last = self.tiers[-1]
        if last.least_memory_bytes or last.other_than:
            raise ValueError("tiers must end with one that holds for every GPU")
        return self

    def scheduling_on(
        self, accelerator: AcceleratorSpec, attention_dp: int, usage: Usage, speculation: str
    ) -> Policy:
        """The scheduling policy with every key that the engine sets itself."""
        memory = accelerator.servable_memory_bytes
        tier = next(
            tier
            for tier in self.tiers
            if memory >= tier.least_memory_bytes
            and not accelerator.name.startswith(tier.other_than)
        )
        found = {**self.scheduling, **tier.server}
        if usage == "offline":
            found |= tier.offline
        if attention_dp > 1 and self.attention_dp.conservativeness is not None:
            found["conservativeness"] = self.attention_dp.conservativeness
        if self.attention_dp.splits_budget:
            found["token_budget"] = max(1, found["token_budget"] // attention_dp)
        if speculation != "none":
            if "steps_ahead" in found and speculation not in self.drafts.works_ahead:
                found["steps_ahead"] = 0
            if self.drafts.max_sequences is not None:
                found["max_sequences"] = max(1, self.drafts.max_sequences // attention_dp)
        return found


def resolve_scheduling(
    asked: Policy | None,
    engine: str,
    accelerator: AcceleratorSpec,
    attention_dp: int,
    usage: Usage,
    speculation: str = "none",
) -> Policy:
    """The scheduling policy of a deployment with some kind of speculation: the keys that it names,
    and the engine's own for the rest; for a policy of another kind than the engine's, the policy's
    own.
    """
    own, spec = asked or {}, find_engine(engine)
    if spec is None:
        return {"kind": "chunked", **own}
    usual = spec.scheduling_on(accelerator, attention_dp, usage, speculation)
    return {**usual, **own} if own.get("kind", usual["kind"]) == usual["kind"] else own


def find_sequences(
    asked: Policy | None,
    engine: str,
    cache_tokens: int,
    context_tokens: int | None,
    speculation: str,
) -> int | None:
    """Find how many requests an engine lets run at once with a KV cache of so many tokens; ``None``
    where the deployment says it, or the cache does not.
    """
    own, spec = asked or {}, find_engine(engine)
    if spec is None or spec.sequences is None or "max_sequences" in own:
        return None
    if speculation != "none" and spec.drafts.max_sequences is not None:
        return None
    if own.get("kind", spec.scheduling["kind"]) != spec.scheduling["kind"]:
        return None
    return spec.sequences.count(cache_tokens, context_tokens)


def find_hand_over(engine: str) -> HandOver:
    """Find the passage between the pools of ``vllm`` or ``vllm@0.19.1``; nothing but queues, steps
    and wires where the engine has no file.
    """
    spec = find_engine(engine)
    return HandOver() if spec is None else spec.hand_over


def name_release(engine: str) -> str:
    """Name the release that an engine stands for: ``vllm`` for that of its newest file.

    >>> name_release("vllm@0.19.1"), name_release("mine")
    ('vllm@0.19.1', 'mine')
    """
    files = _read_releases(engine.partition("@")[0])
    return engine if "@" in engine or not files else list(files)[-1]


def find_engine(engine: str) -> EngineSpec | None:
    """The file that holds for ``vllm`` or ``vllm@0.19.1``: of the newest release where none is
    said, the oldest there is for releases before it; ``None`` for engines without a file.
    """
    files = _read_releases(engine.partition("@")[0])
    key = find_engine_key(tuple(files), engine) or next(reversed(files), None)
    return None if key is None else files[key]


def _read_releases(name: str) -> dict[str, EngineSpec]:
    """The files of an engine by its name and release, the newest last."""
    files = [read_engine(path) for path in available_files(_FAMILY).values()]
    own = sorted(
        (one for one in files if one.engine == name), key=lambda one: parse_release(one.release)
    )
    return {f"{name}@{one.release}": one for one in own}


def find_offering(need: Remedy, engine: str) -> list[str] | None:
    """Find the engines that offer what this one lacks, by their names for readers, each in its
    newest release; ``None`` where it does not lack it, or has no file and others offer it.
    """
    own = find_engine(engine)
    if own is not None and need in own.offers:
        return None
    names = sorted({read_engine(path).engine for path in available_files(_FAMILY).values()})
    newest = [spec for name in names if (spec := find_engine(name)) is not None]
    found = [spec.title.partition(" ")[0] for spec in newest if need in spec.offers]
    return None if own is None and found else found


@cache
def read_engine(path: Path) -> EngineSpec:
    """Read one file, completed from the file that it is based on.

    Raises:
        UserError: if it is wrong, or based on none.
    """
    return validate(EngineSpec, _read_table(path, ()), str(path))


def _read_table(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A file's keys, over those of the file that it is based on.

    Args:
        above: files that are based on it.
    """
    table = read_toml(path)
    earlier = table.get("based_on")
    if earlier is None:
        return dict(table)
    files = available_files(_FAMILY)
    if not isinstance(earlier, str) or files.get(earlier) in (None, path, *above):
        raise UserError(f"{path}: based_on names no other engine file: {earlier!r}")
    return _merge_tables(_read_table(files[earlier], (path, *above)), dict(table))


def _merge_tables(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables key by key; anything else of ``above`` stands for what was below."""
    found = dict(below)
    for key, value in above.items():
        old: Any = below.get(key)
        nested = isinstance(old, dict) and isinstance(value, dict)
        found[key] = _merge_tables(old, value) if nested else value
    return found
