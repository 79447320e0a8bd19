"""Behaviour of a serving engine: how it batches, divides memory, refuses splits."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from simulator.base.data import available_files, load_once
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, ListOf, PairOf, Policy, SomeOf, validate
from simulator.base.kinds import PolicyOf
from simulator.base.plugins import available
from simulator.base.quantities import (
    Amount,
    Bytes,
    Factor,
    Label,
    Seconds,
    Sequences,
    Share,
    Sources,
    TokenBudget,
    TokenCount,
    Width,
)
from simulator.base.reading import read_toml
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration.engine import find_engine_key, parse_release
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.named import Changeable, change, join_name, merge, split_name

GIB = 1 << 30
_Names = ListOf[str]
_Gibibytes = Annotated[float, Field(ge=-1e4, le=1e4)]
_Off = PairOf[_Gibibytes]


class Padding(Frozen):
    """Numbers that the widths of routed experts are rounded up to a multiple of."""

    intermediate: Width = 1
    """Number that a rank's part of the intermediate width is rounded up to a multiple of."""
    hidden: Width = 1
    """Number that the hidden width is rounded up to a multiple of."""


class Reserve(Frozen):
    """Memory that SGLang keeps free on GPUs of some memory: ``share`` is what is left of the
    whole.
    """

    least_memory_bytes: Bytes = 0.0
    """Least memory of a GPU, bytes."""
    gib: _Gibibytes
    """GiB kept free whatever is asked."""
    gib_per_rank: _Gibibytes = 0.0
    """GiB kept free for each rank of a replica."""
    mib_per_token: Annotated[float, Field(ge=0, le=1e4)] = 0.0
    """MiB kept free for each token of a step's budget, of all data-parallel ranks where these
    divide it."""
    mib_per_dp_rank: dict[str, Annotated[float, Field(ge=0, le=1e5)]] = {}
    """MiB kept free for each rank of data-parallel attention, by ranks of a replica; more ranks
    keep as much as the next fewer that are named."""
    least_gib: _Gibibytes = 0.0
    """Least GiB kept free."""


def _find_by_ranks(amounts: dict[str, float], num_ranks: int) -> float:
    """The amount of the most ranks that are not more than these."""
    known = ((int(ranks), amount) for ranks, amount in amounts.items())
    return max((entry for entry in known if entry[0] <= num_ranks), default=(0, 0.0))[1]


class MemoryRules(Frozen):
    """Rules for the part of a GPU's memory that the KV cache gets.

    ``of_total`` (vLLM): a share of the whole, less weights, what a step of the largest size was
    seen to take, and what lies outside PyTorch. ``before_loading`` (SGLang): a share of what was
    free before the weights, less these; activations and graphs live in the rest. ``left``
    (TensorRT-LLM): a share of what weights and a step of the largest size leave.
    """

    kind: Literal["of_total", "before_loading", "left"]
    """Rule of the engine: ``of_total``, ``before_loading`` or ``left``."""
    generations: _Names
    """Generations of accelerators (names of their calibrations) that the rules were read for."""
    share: Share = 0.9
    """Share of the memory, as the rule takes it."""
    reserves: ListOf[Reserve] = ()
    """Memory kept free, where the share follows from it: the first entry that fits holds."""
    sampler_copies: Amount = 0.0
    """Number of times that the logits of a full batch are held in 32 bits when tokens are drawn."""
    has_expert_workspace: bool = False
    """Whether the inputs and outputs of a step's experts are held besides."""
    outside_gib: dict[str, _Gibibytes] = {}
    """GiB that communication and libraries hold, by ranks of a replica; more ranks hold as much as
    the next fewer that are named."""
    generation_gib: dict[str, _Gibibytes] = {}
    """GiB more on accelerators of some generation."""
    graphs_gib: _Gibibytes = 0.0
    """GiB of captured graphs that are taken off."""
    driver_gib: _Gibibytes = 0.0
    """GiB that the driver shows and PyTorch does not see."""
    padding: dict[str, dict[str, Padding]] = {}
    """Widths that experts are rounded up to, by their number format and generation."""
    off_kind: Literal["fitted", "assumed"] = "fitted"
    """Origin of ``off_gib``: start-up logs, or nowhere."""
    off_gib: _Off
    """10th and 90th percentile of a KV cache in logs less what these rules make of it, GiB."""
    generation_off_gib: dict[str, _Off] = {}
    """Replaces ``off_gib`` on accelerators of some generation, GiB."""

    def outside_bytes(self, num_ranks: int, generation: str) -> float:
        """Bytes outside PyTorch on one GPU of a replica."""
        gib = _find_by_ranks(self.outside_gib, num_ranks)
        return (gib + self.generation_gib.get(generation, 0.0)) * GIB

    def share_on(
        self, memory_bytes: float, num_ranks: int, attention_dp: int, token_budget: TokenCount
    ) -> float:
        """The share on GPUs of some memory, to three digits where it follows from a reserve."""
        reserve = next(
            (one for one in self.reserves if memory_bytes >= one.least_memory_bytes), None
        )
        if reserve is None:
            return self.share
        gib = max(
            reserve.least_gib,
            reserve.gib
            + reserve.gib_per_rank * num_ranks
            + reserve.mib_per_token / 1024 * max(token_budget, 2048)
            + _find_by_ranks(reserve.mib_per_dp_rank, num_ranks)
            / 1024
            * (attention_dp if attention_dp > 1 else 0),
        )
        return max(0.0, round(1 - gib * GIB / memory_bytes, 3))


_Widths = ListOf[Width]


class Blocks(Frozen):
    """Widths that a rank's part of a matrix must be a multiple of, for one format of weights."""

    matrices: Width = 1
    """Number that the columns of a rank's part must be a multiple of in attention, dense
    feed-forward blocks and shared experts."""
    experts: Width = 1
    """Number that the columns of a rank's part of a routed expert must be a multiple of; experts
    that are kept whole are not bound by it."""
    refined_to: Width | None = None
    """Smallest number of columns that the scales of experts are refined to where their parts are no
    multiple; absent = they are not."""


class CacheHeads(Frozen):
    """A format of the KV cache on one generation of GPUs."""

    head_sizes: _Widths = ()
    """Numbers in a head that the format is there for; empty = any."""
    latent: bool = True
    """Whether the format is there for latent attention."""


class Splits(Frozen):
    """Splits and number formats that an engine refuses to start with; everything else is
    accepted.
    """

    generations: _Names = ()
    """Generations of accelerators (names of their calibrations) that it runs on; empty = any."""
    kv_heads_divide: bool = False
    """Whether tensor parallelism must divide the KV heads or be a multiple of them."""
    experts_divide: bool = False
    """Whether expert parallelism must divide the experts, copies included."""
    weights: dict[str, Blocks] = {}
    """Widths that parts of matrices must be a multiple of, by number format of the weights."""
    weights_on: dict[str, _Names] = {}
    """Generations that number formats of weights are there for; a format that is absent is for
    all."""
    cache_on: dict[str, dict[str, CacheHeads]] = {}
    """Caches that are there, by number format and generation; a generation that is absent has no
    limit."""

    @model_validator(mode="after")
    def _names_formats(self) -> Self:
        for key in ("weights", "weights_on", "cache_on"):
            for name in getattr(self, key):
                if name not in BYTES_PER_ELEMENT:
                    known = ", ".join(BYTES_PER_ELEMENT)
                    raise ValueError(f"{key} names the format '{name}', known are {known}")
        return self


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
    other_than: ListOf[str] = ()
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

    works_ahead: ListOf[str] = ()
    """Kinds of speculation with which steps are formed ahead, as they are without; with others
    none are."""
    max_sequences: Sequences | None = None
    """Most requests that run at once on all data-parallel ranks together; absent = as without."""


class KVTransfer(Frozen):
    """KV transfer from a prefill pool to a decode pool, beside queues, steps and links."""

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
    tiers: SomeOf[Tier]
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
    hand_over: KVTransfer = KVTransfer()
    """KV transfer of a request from a prefill pool to a decode pool."""
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


def find_kv_transfer(engine: str) -> KVTransfer:
    """Find the KV transfer between the pools of ``vllm`` or ``vllm@0.19.1``; nothing but queues,
    steps and links where the engine has no file.
    """
    spec = find_engine(engine)
    return KVTransfer() if spec is None else spec.hand_over


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

    Raises:
        UserError: if the name changes a key that the file does not have.
    """
    files = _read_releases(engine.partition("@")[0])
    key = find_engine_key(tuple(files), engine) or next(reversed(files), None)
    if key is None:
        return None
    spec, (_, changes) = files[key], split_name(engine)
    if not changes:
        return spec
    return load_once(("changed engine", engine), lambda: change(spec, changes, key))


def _name_file(engine: str) -> str:
    """Name the release of an engine whose keys are changed, which must have a file."""
    base, changes = split_name(engine)
    if changes and find_engine(base) is None:
        raise ValueError(f"the engine '{base}' has no file whose keys could be changed")
    return join_name(name_release(base), changes) if changes else engine


EngineName = Annotated[str, AfterValidator(_name_file), Changeable("engine", usual="vllm")]
"""Engine of a deployment, such as ``vllm`` or ``vllm@0.19.1``, perhaps with changes of its file."""


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


def _read_table(path: Path, above: tuple[Path, ...]) -> dict[str, object]:
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
    merged: dict[str, object] = merge(_read_table(files[earlier], (path, *above)), table, str(path))
    return merged
