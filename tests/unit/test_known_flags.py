"""Every flag and key that a command has is one that the release takes, with a value that it takes,
and beside others with which it starts.
"""

import contextlib
import itertools
import json
import re
import shlex

import pytest
import yaml

from simulator.base.errors import UserError
from simulator.planner.launch import list_commands
from simulator.planner.serving import load_programs
from tests.unit.test_serving_commands import ENGINES, SPLITS, launched, plan

CHOICES = [
    {},
    {"overlap": "two_batch"},
    {"overlap": "two_batch", "dispatch": {"kind": "all_gather"}},
    {"kv_dtype": "fp8", "prefix_caching": False},
    {"kv_dtype": "nvfp4"},
    {"kv_dtype": "int8"},
    {"weight_dtype": "fp8", "model": "qwen3-8b"},
    {"scheduling": {"kind": "chunked", "token_budget": 64, "max_sequences": 256}},
    {"balancing": {"kind": "least_tokens"}},
    {"cluster": "mi300x-8", "overlap": "two_batch"},
    {"dispatch_dtype": "mxfp4"},
]
"""What a plan may have besides its split."""


def programs_of(name):
    found = load_programs(name)
    return found.router, found.server


def find_program(programs, words):
    """The program that a line starts, and the words behind its beginning."""
    for program in programs:
        for at in range(len(words)):
            if tuple(words[at : at + len(program.begins)]) == program.begins:
                return program, words[at + len(program.begins) :]
    raise AssertionError(f"starts no known program: {words}")


def flags_of(words):
    """Each flag with the words behind it, up to the next one."""
    found = []
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            found.append((word, []))
        elif found:
            found[-1][1].append(word)
    return found


def is_legal(values, given):
    if values == "none":
        return not given
    checks = {
        "whole": lambda word: re.fullmatch(r"-?\d+", word),
        "share": lambda word: 0 < float(word) <= 1,
        "boolean": lambda word: word in ("true", "false"),
        "text": lambda word: word and not word.startswith("-"),
        "json": lambda word: isinstance(json.loads(word), dict),
    }
    check = checks[values] if isinstance(values, str) else values.__contains__
    return len(given) >= 1 and all(check(word) for word in given)


def leaves(table, path=()):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield ".".join((*path, key)), value if isinstance(value, list) else [value]


def find_faults(engine, command):
    """What the release would not take of a command, in words."""
    script, _, line = command.rpartition("\n")
    program, words = find_program(programs_of(engine), shlex.split(line))
    for flag, given in flags_of(words):
        if flag not in program.flags:
            yield f"{program.title} has no {flag}"
        elif not is_legal(program.flags[flag], given):
            yield f"{flag} {given}"
    for text in re.findall(r"<<'EOF'\n(.*?)\nEOF", script, re.DOTALL):
        for key, given in leaves(yaml.safe_load(text)):
            words = [str(one).lower() if isinstance(one, bool) else str(one) for one in given]
            if key not in program.settings or not is_legal(program.settings[key], words):
                yield f"{key}: {given}"


def launched_with(engine, choice):
    """The commands of every split that a plan can have with a choice."""
    for split in SPLITS:
        keys = {"gpus": max(8, split[0] * split[1]), "replicas": 1, **choice}
        with contextlib.suppress(UserError):  # such as tokens that do not travel
            yield launched(engine, split, **keys)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_flag_and_value_is_known_to_the_release(engine, choice):
    several = list(launched_with(engine, choice))
    runs_there = engine != "trtllm" or not choice.get("cluster", "").startswith("mi300x")
    assert bool(several) == runs_there
    for one in itertools.chain(*several):
        assert not list(find_faults(engine, one.command)), one.command


@pytest.mark.parametrize("engine", ENGINES)
def test_routers_and_pools_are_started_with_known_flags(engine):
    several = launched(engine, (4, 1, 1), gpus=32, replicas=7)
    prefill = {"parallel": {"tp": 2}, "replicas": 2}
    pools = launched(engine, (1, 4, 4), replicas=1, prefill=prefill, gpus=8)
    placed = launched(engine, (1, 4, 4), replicas=1, placement={"kind": "eplb", "num_slots": 36})
    for one in [*several, *pools, *placed]:
        assert not list(find_faults(engine, one.command)), one.command


@pytest.mark.parametrize(
    ("engine", "line"),
    [
        ("vllm", "vllm serve m --all2all-backend mori"),
        ("vllm", "vllm serve m --max-model-length 4096"),
        ("vllm", "vllm-router --policy least_loaded"),
        ("sglang", "python -m sglang.launch_server --dp-size 2 --enable-dp-attention"),
        ("trtllm", "cat > x <<'EOF'\nkv_cache_config:\n  type: fp8\nEOF\ntrtllm-serve m --port 1"),
    ],
)
def test_what_a_release_does_not_take_is_found(engine, line):
    assert list(find_faults(engine, line))


@pytest.mark.parametrize("engine", ENGINES)
def test_flags_stand_together_only_where_the_engine_starts_with_them(engine):
    several = [(choice, given) for choice in CHOICES for given in launched_with(engine, choice)]
    for choice, given in several:
        found = dict(flags_of(shlex.split(given[0].command.splitlines()[-1])))
        if engine == "vllm":
            assert int(found["--max-num-seqs"][0]) <= int(found["--max-num-batched-tokens"][0])
            if "--enable-dbo" in found:
                assert found["--all2all-backend"][0].startswith("deepep_")
        if "--enable-two-batch-overlap" in found:
            assert "--moe-a2a-backend" in found or "--attn-dp-size" in found
        if "--enable-eplb" in found:
            assert "--enable-expert-parallel" in found or "--ep-size" in found
        if choice.get("overlap") and not {"--enable-dbo", "--enable-two-batch-overlap"} & {*found}:
            assert "two" in " ".join(given[0].not_expressed)


CONTEXT_FLAGS = {"vllm": "--max-model-len", "sglang": "--context-length", "trtllm": "--max_seq_len"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("longest", "context"),
    [(1, 1024), (4000, 4096), (4096, 5120), (131_071, 131_072), (131_072, 131_072)],
)
def test_the_longest_sequence_is_the_traffics_and_never_above_the_models(engine, longest, context):
    made = plan(engine, (1, 1, 1), replicas=1)
    assert made.placement.model.max_context_tokens == 131_072
    command = list_commands(made, made.spec.model, 1, longest)[0].command.splitlines()[-1]
    assert dict(flags_of(shlex.split(command)))[CONTEXT_FLAGS[engine]] == [str(context)]
