"""Servers that a plan starts: their programs and flags, places, and weights.

Flags come and go with releases: those that are written are in ``cluster_configs/launch``, with the
release and the source in which they were read, and when.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from simulator.base.data import find_file
from simulator.base.findings import Finding
from simulator.base.frozen import Frozen, validate
from simulator.base.reading import read_toml
from simulator.deployment.plan import DeploymentPlan

Role = Literal["both", "prompts", "decoding"]
"""Phases that a server computes."""
Address = tuple[str, int]
"""Host of a server and number of its first GPU."""
Values = (
    Literal["none", "whole", "share", "boolean", "text", "json"]
    | Annotated[tuple[str, ...], Field(strict=False)]
)
"""Words that may stand behind a flag: nothing, a whole number, a number above 0 and up to 1,
``true`` or ``false``, any text, a JSON object, or one of some words."""

_LEAST_HOST_BYTES = 2**30
"""Least bytes of main memory that all engines' flags have a number for."""
CONTEXT_STEP = 1024
"""Tokens that the longest sequence of a server is rounded up to a multiple of: room for what a chat
template adds to a prompt."""


class Program(Frozen):
    """A program that commands start, with the flags that one release of it takes."""

    begins: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """The words that start it, before its flags."""
    title: str
    """Name of the program."""
    release: str
    """Release whose flags were read."""
    read_on: str
    """The day on which the flags were read (ISO 8601)."""
    source: str
    """The files in which the flags were read."""
    flags: dict[str, Values]
    """Every flag that a command of ours may have, and what may follow it."""
    settings: dict[str, Values] = {}
    """Every key of the YAML file beside the command, as a dotted path; empty without such a
    file."""

    @property
    def sentence(self) -> str:
        """The release that the flags are of, and their source, in a sentence."""
        return f"Flags of {self.title} {self.release}, read on {self.read_on} in {self.source}."


class Programs(Frozen):
    """A file of ``cluster_configs/launch``: what starts one engine."""

    server: Program
    """Program that serves a replica."""
    router: Program
    """Program that spreads requests over servers."""
    quantises: bool = False
    """Whether 16-bit weights can be cut to fp8 as they are loaded."""
    port: int
    """Port of a server whose first GPU is its host's first one."""
    ports_per_gpu: int
    """Ports by which that of a server lies higher for each GPU before its first one."""
    router_port: int
    pools_flag: str = ""
    """Flag of a router in front of prompt and decode servers."""
    policies: dict[str, str]
    """Policies of the router, by the balancer that they are."""
    cache: dict[str, str]
    """Names of the formats that a cache may have."""


@cache
def load_programs(engine: str) -> Programs:
    """Read the programs of an engine.

    Raises:
        UserError: if their file is wrong.
    """
    path = find_file("cluster_configs/launch", engine, "launch")
    return validate(Programs, read_toml(path), str(path))


class Weights(NamedTuple):
    """Source of a model's weights."""

    path: str
    """A repository (``owner/name``) or a folder."""
    quantises: bool = False
    """Whether 16-bit weights are cut to fp8 as they are loaded."""
    note: str = ""
    """Instructions or restrictions; empty where there are none."""


class Place(NamedTuple):
    """Hosts and GPUs of one replica."""

    hosts: tuple[str, ...]
    gpus: tuple[int, ...]
    """Numbers of the GPUs of each host; empty = all."""
    first_gpu: int = 0


class Server(NamedTuple):
    """One replica to be started."""

    plan: DeploymentPlan
    """Plan of its pool."""
    role: Role
    weights: Weights
    longest_prompt: int
    """Tokens of the traffic's longest prompt."""
    longest_tokens: int
    """Tokens of the traffic's longest request, output included."""

    @property
    def context_tokens(self) -> int:
        """Tokens of the longest sequence that the server is to take: the traffic's longest request
        and room for a chat template, never above what the model takes, nor above what its cache
        holds unless a request needs that.
        """
        asked, held = self.longest_tokens, self.plan.serving.capacity.tokens
        roomy = (asked // CONTEXT_STEP + 1) * CONTEXT_STEP
        return min(roomy, max(asked, held), self.plan.placement.model.max_context_tokens or roomy)

    @property
    def travels(self) -> bool:
        """Whether tokens are sent to whole experts on other ranks."""
        return self.plan.placement.layout.ep > 1 and self.plan.placement.layout.travels

    @property
    def spare_experts(self) -> int:
        """Expert slots beyond one an expert."""
        moe, experts = self.plan.placement.model.moe, self.plan.placement.experts
        return 0 if moe is None or experts is None else self.num_slots - moe.num_experts

    @property
    def num_slots(self) -> int:
        """Places for experts in all; 0 of a dense model."""
        experts = self.plan.placement.experts
        return 0 if experts is None else experts.placed.expert_LP.shape[1]

    @property
    def is_placed_by_load(self) -> bool:
        """Whether experts are somewhere else than in the order of their index."""
        spec, placement = self.plan.spec, self.plan.placement
        return placement.experts is not None and spec.placement["kind"] != "contiguous"

    @property
    def is_by_priority(self) -> bool:
        """Whether requests wait by priority, whatever they have waited."""
        return self.plan.spec.order == {"kind": "priority"}

    @property
    def is_by_prefix(self) -> bool:
        """Whether whoever has most of its prompt in the cache is next."""
        return self.plan.spec.order == {"kind": "longest_prefix"}

    @property
    def host_bytes(self) -> float:
        """Bytes of main memory for each GPU's part of the cache, 0 where the plan has another tier,
        none, pools, or less than flags can say.
        """
        kinds = [table["kind"] for table in self.plan.spec.kv_tiers]
        if kinds != ["host"] or self.role != "both":
            return 0.0
        found = self.plan.serving.tiers[0].memory_bytes
        return found if found >= _LEAST_HOST_BYTES else 0.0

    @property
    def is_amd(self) -> bool:
        """Whether kernels are those of ROCm."""
        return "AMD" in self.plan.placement.accelerator.title


def write_line(
    program: Program,
    arguments: Iterable[object],
    flags: Mapping[str, object],
    environment: Mapping[str, object] = MappingProxyType({}),
) -> str:
    """A line for the shell.

    Args:
        arguments: words that stand before the flags.
        flags: values by flag; ``True`` stands alone, several stand one behind the other, and flags
            that are ``None`` or ``False`` are left out.
    """
    words = [*program.begins, *arguments]
    for flag, value in flags.items():
        if value is not None and value is not False:
            several = value if isinstance(value, tuple | list) else (value,)
            words += [flag, *(() if value is True else several)]
    return join_words(words, environment)


def join_words(words: Iterable[object], environment: Mapping[str, object]) -> str:
    """A line for the shell, whose environment stands before its words."""
    given = [f"{name}={shlex.quote(str(value))}" for name, value in environment.items()]
    return " ".join([*given, *(shlex.quote(str(word)) for word in words)])


def restrict_gpus(place: Place) -> dict[str, object]:
    """The environment that keeps a replica to its GPUs."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, place.gpus))} if place.gpus else {}


def place_replicas(
    pools: Iterable[tuple[Role, int, int]], gpus_per_node: int
) -> dict[Role, list[Place]]:
    """Places of the replicas of some pools: the largest first, each on whole nodes or on the first
    node with room.

    Args:
        pools: role, replicas, GPUs of a replica.
    """
    free: list[int] = []
    found: dict[Role, list[Place]] = {}
    for role, replicas, ranks in sorted(pools, key=lambda pool: -pool[2]):
        for _ in range(replicas):
            if ranks >= gpus_per_node:
                first = len(free)
                free += [0] * -(-ranks // gpus_per_node)
                place = Place(tuple(f"node{n}" for n in range(first, len(free))), ())
            else:
                node = next((n for n, room in enumerate(free) if room >= ranks), len(free))
                if node == len(free):
                    free.append(gpus_per_node)
                start = gpus_per_node - free[node]
                free[node] -= ranks
                place = Place((f"node{node}",), tuple(range(start, start + ranks)), start)
            found.setdefault(role, []).append(place)
    return found


_BLOCK_SCALED = ("qwen", "deepseek-ai", "minimaxai", "moonshotai")
"""Owners whose fp8 weights hold one scale for each block of 128 x 128."""
_WIDE = ("bf16", "fp16")
_NARROW = ("nvfp4", "mxfp4", "mxfp4_mxfp8", "int4")
"""Formats that published weights keep to experts or feed-forward blocks."""


def guess_format(repository: str, released: str) -> str:
    """The number format of a repository's weights by its name, or as the model is released."""
    owner, _, name = repository.lower().partition("/")
    if re.search(r"nvfp4|-fp4", name):
        return "nvfp4"
    if "mxfp4" in name:
        return "mxfp4"
    if "fp8" in name:
        return "fp8_block" if owner in _BLOCK_SCALED else "fp8"
    if re.search(r"awq|gptq|int4", name):
        return "int4"
    return "bf16" if "bf16" in name else released


def find_weights(plan: DeploymentPlan, named: str, can_quantise: bool = True) -> Weights:
    """The repository that holds a plan's weights, or what must be made first.

    Args:
        named: how the plan names the model; the path of a ``config.json`` is beside its weights.
        can_quantise: whether the engine cuts 16-bit weights to fp8 as it loads them.
    """
    model, wanted = plan.placement.model, plan.placement.precision
    released = model.expert_dtype or model.weight_dtype
    formats = {repository: guess_format(repository, released) for repository in model.repositories}
    target = wanted.experts if model.moe is not None else wanted.weights
    if not formats:
        folder = named.rpartition("/")[0] if named.endswith(".json") else ""
        note = str(Finding("launch.no_repository", model=model.name))
        return Weights(folder) if folder else Weights(model.name, note=note)
    found = next((name for name, held in formats.items() if _is_same(held, target)), None)
    if found is not None:
        notes = []
        if target in _NARROW and wanted.weights == target and model.weight_dtype != target:
            notes.append(Finding("launch.wider_formats", found=found, dtype=target))
        if model.name.lower() not in found.lower():
            facts = {"found": found, "model": model.name, "dtype": target}
            notes.append(Finding("launch.other_release", **facts))
        return Weights(found, note=" ".join(map(str, notes)))
    first = next((name for name, held in formats.items() if held in _WIDE), None)
    if target == "fp8" and first is not None and can_quantise:
        return Weights(first, True, str(Finding("launch.quantised", found=first)))
    own, source = f"./{model.name}-{target}", first or next(iter(formats))
    facts = {"model": model.name, "dtype": target, "source": source, "own": own}
    return Weights(own, note=str(Finding("launch.unpublished", **facts)))


def _is_same(held: str, target: str) -> bool:
    alike = {"fp16": "bf16", "mxfp4_mxfp8": "mxfp4"}
    return alike.get(held, held) == alike.get(target, target)
