"""``python -m tests.benchmarks``: how fast the simulator is on this machine, as a table and
files; ``make bench`` runs it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from simulator.results.provenance import Provenance
from tests.benchmarks.collect import choose, list_scenarios
from tests.benchmarks.effort import FULL, QUICK, Effort
from tests.benchmarks.files import write_files
from tests.benchmarks.machine import describe_machine, describe_making
from tests.benchmarks.rows import Bench, Row, tell_target, tell_value

OUT = Path("reports/out/bench")
HISTORY = Path("reports/history/benchmarks.jsonl")
"""Figures of every call, which git keeps."""


def measure_all(effort: Effort, only: list[str] | None) -> Bench:
    """Run the scenarios; each row is printed when it is there."""
    made, machine = Provenance.begin(), describe_machine()
    bench = Bench(describe_making(made, machine, effort.name))
    print("| what | figure | asked, or what is to know |\n|---|---|---|", flush=True)
    chosen = choose(only)
    for place, (name, scenario) in enumerate(chosen.items(), 1):
        where = f"{place} of {len(chosen)}, {name}"
        for found in scenario.measure(effort, lambda what, where=where: _tell(made, where, what)):
            print(_line(bench.add(found)), flush=True)
    bench.made |= describe_making(made, machine, effort.name)
    return bench


def _tell(made: Provenance, where: str, what: str) -> None:
    passed_s = time.perf_counter() - made.clock_s
    print(f"{passed_s:5.0f} s  {where}: {what}", file=sys.stderr, flush=True)


def _line(row: Row) -> str:
    told = "; ".join(filter(None, [tell_target(row), row.note]))
    cells = (f"{row.name}: {row.measure}", tell_value(row.value, row.unit), told)
    return f"| {' | '.join(cells)} |"


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What the command is asked for."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    every = list_scenarios()
    opt_in = [name for name, scenario in every.items() if scenario.OPT_IN]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(every),
        help=f"run these scenarios; only where they are named: {', '.join(opt_in)}",
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes: in about a minute")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of the files ({OUT})")
    return parser.parse_args(given)


def main() -> None:
    """Measure, print and write."""
    asked = parse_arguments()
    bench = measure_all(QUICK if asked.quick else FULL, asked.only)
    write_files(bench, asked.out, HISTORY)
    print(f"\n{asked.out / 'bench.json'}", file=sys.stderr)


if __name__ == "__main__":
    main()
