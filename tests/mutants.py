"""``python -m tests.mutants --seed 1 --count 500``: draw mutants of the rooms that decide, and say
which of them live.

Places that cosmic-ray can change are drawn with equal chances, then one of its changes of each.
A mutant is kept in memory. Light tests that reach its statement try it, the quickest first, in a
process that forks before anything of the simulator is imported. numba compiles nothing, so that
changed lines of compiled functions run, and are seen to be reached; ``NUMBA_DISABLE_JIT=0`` lets
it, for longer tests of rooms that compile nothing. What tests reach is found in one run of all of
them, some fifteen minutes, and kept in ``reports/out/mutants`` for ``--known``.
``--rooms simulator/engine`` draws from some rooms alone, ``--tests tests/laws tests/unit`` looks at
some tests alone, which takes less.

Numbers of draws, such as ``17 203``, try these only. What lives is either equal to the program,
or changes words or speed alone, or wants a test.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import os
import random
import resource
import signal
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # numba reads it when it is imported

# Imported for the processes that fork, which then need not.
import numba  # noqa: F401
import pandas as pd  # noqa: F401
import pydantic  # noqa: F401
import pytest
import scipy.optimize
import scipy.stats  # noqa: F401
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from coverage import CoverageData
from hypothesis import Phase, settings

import tests.cases  # noqa: F401 - its profile is changed below
from tests.suite import NOT_LIGHT

ROOT = Path(__file__).parents[1]
ROOMS = (
    "simulator/engine",
    "simulator/policies/dispatch",
    "simulator/policies/overflow",
    "simulator/policies/replica_choice",
    "simulator/policies/spilling",
    "simulator/policies/placement",
    "simulator/cost",
    "simulator/planner",
)
TESTS = ("tests/unit", "tests/contracts", "tests/laws")
_FORK = get_context("fork")
# A law is tried on a fifth of its cases, and does not look for the smallest that fails.
settings.register_profile(
    "mutants",
    settings.get_profile("test"),
    max_examples=20,
    phases=(Phase.explicit, Phase.generate),
)
_LONGEST_TEST_S = 6
"""Tests that take longer without compilation try no mutant."""
_LONGEST_WAIT = 3
"""A mutant that computes for so many times as long as its tests should, and half a minute, is
given up.
"""
_STOPPED = (-signal.SIGXCPU, -signal.SIGKILL)
"""How mutants end that are given up."""
_MEMORY_BYTES = 12 << 30
"""For a mutant that asks for ever more."""


class Mutant(NamedTuple):
    """One change that cosmic-ray can make."""

    file: str
    line: int
    column: int
    operator: str
    occurrence: int

    def change(self) -> str:
        """The text of the file with the change."""
        text = (ROOT / self.file).read_text()
        return mutate_code(text, get_operator(self.operator)(), self.occurrence)


def list_mutants(file: str) -> Iterator[Mutant]:
    """Every change of a file but of annotations, which do not run."""
    nodes = list(ast_nodes(get_ast_from_path(ROOT / file)))
    annotations = list(_spans_of_annotations(file))
    for name in operator_names():
        if get_operator(name).arguments():
            continue
        find_places = get_operator(name)().mutation_positions
        places = [start for node in nodes for start, _ in find_places(node)]
        for occurrence, place in enumerate(places):
            if not any(start <= place < end for start, end in annotations):
                yield Mutant(file, *place, name, occurrence)


def _spans_of_annotations(file: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        for kind in ("annotation", "returns"):
            if noted := getattr(node, kind, None):
                yield (
                    (noted.lineno, noted.col_offset),
                    (noted.end_lineno, noted.end_col_offset),
                )


def draw_mutants(seed: int, count: int, rooms: Sequence[str] = ROOMS) -> list[Mutant]:
    """Draw places of the rooms in random order, each with one of its changes, where that makes a
    program.
    """
    places = defaultdict(list)
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            for mutant in list_mutants(str(path.relative_to(ROOT))):
                places[mutant[:3]].append(mutant)
    draw = random.Random(seed)
    drawn = (draw.choice(places[place]) for place in draw.sample(sorted(places), len(places)))
    return list(itertools.islice(filter(_compiles, drawn), count))


def _compiles(mutant: Mutant) -> bool:
    with suppress(SyntaxError), warnings.catch_warnings(action="ignore"):
        return bool(ast.parse(mutant.change()))
    return False


class _Watch:
    """Tells the process that waits how long each test took that passed, and which failed."""

    def __init__(self, say) -> None:
        self.say = say
        self.seconds = defaultdict(float)

    def pytest_runtest_logreport(self, report) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.say.send((report.nodeid, None))
        elif report.when == "teardown":
            self.say.send((report.nodeid, self.seconds[report.nodeid]))


class _Limit:
    """Fails tests that take too long."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        signal.signal(signal.SIGPROF, _stop)
        signal.setitimer(signal.ITIMER_PROF, _LONGEST_TEST_S)
        try:
            return (yield)
        except _TooLongError:
            pytest.fail("takes too long", pytrace=False)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


class _TooLongError(BaseException):
    """No test expects it."""


def _stop(*_) -> None:
    raise _TooLongError


def find_reached(folder: Path, rooms: Sequence[str], tests: Sequence[str]) -> None:
    """Run the light ones of the tests once, and keep which lines of the rooms each reaches and how
    long it takes.
    """
    os.environ["COVERAGE_FILE"] = str(folder / "reached")
    listen, say = _FORK.Pipe(duplex=False)
    options = ["-m", f"not ({' or '.join(NOT_LIGHT)})", "--cov-context=test", "--cov-report="]
    options += [f"--cov={room}" for room in rooms]
    process = _FORK.Process(target=_run, args=([*options, *tests], say, _Limit()))
    process.start()
    say.close()
    seconds, failed = {}, set()
    with suppress(EOFError):
        while True:
            test, duration = listen.recv()
            if duration is None:
                failed.add(test)
            else:
                seconds[test] = duration
    process.join()
    if process.exitcode not in (0, 1):
        raise SystemExit(f"the run of all tests ended with {process.exitcode}")
    seconds = {test: duration for test, duration in seconds.items() if test not in failed}
    (folder / "seconds.json").write_text(json.dumps(seconds))
    print(f"{len(seconds)} tests pass in time, {len(failed)} do not: {sorted(failed)}", flush=True)


def _run(
    arguments: list[str],
    say,
    plugin: object = None,
    mutant: Mutant | None = None,
    limit_s: int = resource.RLIM_INFINITY,
) -> None:
    """Run tests in a process that forked, of a mutant where there is one."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    if mutant is not None:
        name = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        code = compile(mutant.change(), ROOT / mutant.file, "exec", dont_inherit=True)
        usual = SourceFileLoader.get_code
        SourceFileLoader.get_code = lambda self, asked: (
            code if asked == name else usual(self, asked)
        )
    plugins = [_Watch(say), *([plugin] if plugin else [])]
    options = ["-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is imported already
    # Hashes that wrap are uint64 to numba, and a warning of numpy's where nothing is compiled.
    options += ["-W", "ignore:overflow encountered:RuntimeWarning"]
    sys.exit(pytest.main([*options, *arguments], plugins=plugins))


class Reached:
    """What tests reach, as :func:`find_reached` kept it."""

    def __init__(self, folder: Path) -> None:
        self.data = CoverageData(str(folder / "reached"))
        self.data.read()
        self.seconds = json.loads((folder / "seconds.json").read_text())

    def choose(self, mutant: Mutant, seconds: float) -> tuple[list[str], float]:
        """The quickest tests that reach the statement, or the file where none does, such as a
        constant's, of so many seconds in all; and the seconds.
        """
        lines = self.data.contexts_by_lineno(str(ROOT / mutant.file))
        tree = ast.parse((ROOT / mutant.file).read_text())
        around = [
            range(node.lineno, node.end_lineno + 1)
            for node in ast.walk(tree)
            if isinstance(node, ast.stmt) and node.lineno <= mutant.line <= node.end_lineno
        ]
        for span in (*sorted(around, key=len), lines):
            contexts = {context for line in span for context in lines.get(line, ())}
            if tests := self._tests_of(contexts):
                break
        chosen, total = [], 0.0
        for test in sorted(tests, key=self.seconds.get):
            total += self.seconds[test]
            if chosen and total > seconds:
                return chosen, total - self.seconds[test]
            chosen.append(test)
        return chosen, total

    def _tests_of(self, contexts: set[str]) -> set[str]:
        """Tests that pass; of a fixture, which one test sets up for others too, all of its file."""
        tests, files = set(), set()
        for context in contexts:
            test, _, phase = context.rpartition("|")
            tests.add(test)
            if phase == "setup":
                files.add(test.partition("::")[0])
        others = {test for test in self.seconds if test.partition("::")[0] in files}
        return tests & self.seconds.keys() | others


def try_mutant(mutant: Mutant, tests: list[str], seconds: float) -> tuple[str, str]:
    """Whether it was killed, lived, or took too long, and the test that killed it."""
    if not tests:
        return "unreached", ""
    limit_s = int(30 + _LONGEST_WAIT * seconds)
    listen, say = _FORK.Pipe(duplex=False)
    arguments = (["-x", *tests], say, None, mutant, limit_s)
    process = _FORK.Process(target=_run, args=arguments)
    process.start()
    say.close()
    by, ends = "", time.monotonic() + 4 * limit_s  # a mutant may wait for ever, and do nothing
    with suppress(EOFError):
        while not by and listen.poll(max(0.0, ends - time.monotonic())):
            test, duration = listen.recv()
            by = test if duration is None else ""
    process.join(9.0 if by else max(0.0, ends - time.monotonic()))
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    if by or process.exitcode == 0:
        return ("killed", by) if by else ("lived", "")
    return ("timed out" if process.exitcode in _STOPPED else "killed"), ""


def main() -> None:
    """Try what is drawn, one line an answer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("chosen", nargs="*", type=int, help="numbers of draws; all, where none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--rooms", nargs="+", default=ROOMS, help="to draw from")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files and folders that try them")
    parser.add_argument("--seconds", type=float, default=12, help="of tests for each mutant")
    parser.add_argument("--known", action="store_true", help="what tests reach is known already")
    parser.add_argument("--out", type=Path, default=ROOT / "reports/out/mutants")
    asked = parser.parse_args()
    asked.out = asked.out.absolute()
    asked.out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    if not asked.known:
        find_reached(asked.out, asked.rooms, asked.tests)
    reached = Reached(asked.out)
    outcomes = defaultdict(int)
    for number, mutant in enumerate(draw_mutants(asked.seed, asked.count, asked.rooms), 1):
        if asked.chosen and number not in asked.chosen:
            continue
        outcome, by = try_mutant(mutant, *reached.choose(mutant, asked.seconds))
        outcomes[outcome] += 1
        wrong = mutant.change().splitlines()[mutant.line - 1].strip()
        print(f"{number:3} {mutant.file}:{mutant.line} {outcome} {by}: {wrong}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))


if __name__ == "__main__":
    main()
