"""How much faster a plan is found by two processes than by one, and how many deployments one core
screens a second.

``make bench-plan`` runs this; nothing else may run meanwhile. Every plan begins with an empty
cache, in a process of its own. The answers must be the same, byte for byte. The efficiency is the
time of one process over twice the time of two.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from simulator.planner.screen import screen
from simulator.planner.search import lasting
from simulator.planner.space import Space
from simulator.planner.traffic import traffic_of
from simulator.scenario.jobs import load_question

PLANS = ("azure_conv", "azure_conv_x20", "deepseek_r1_reasoning")
PROCESSES = (1, 2)


def timed(plan, workers):
    """Wall seconds of the command, its own CPU seconds, and the answer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = [
            "--workers",
            str(workers),
            "--cache",
            folder / "cache",
            "--out",
            folder / "out",
            "--json",
        ]
        before = os.times()
        began_s = time.perf_counter()
        said = subprocess.run(
            [sys.executable, "-m", "simulator", "plan", plan, *options],
            capture_output=True,
            check=True,
        )
        wall_s, after = time.perf_counter() - began_s, os.times()
        own_s = (
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
        return wall_s, own_s, said.stdout


def screened(plan):
    """Deployments judged a second by one core, pairs of pools counted as one each; what models draw
    is part of the time.
    """
    question = load_question(plan)
    folder = question.folder
    question, _ = lasting(question, folder)
    space, traffic = Space(question, folder), traffic_of(question, folder)
    began_s = time.process_time()
    parts = [
        screen(space, traffic, *place)
        for place in product(range(len(space.models)), range(len(space.machines)))
    ]
    seconds = time.process_time() - began_s
    return sum(part.num_legal + sum(part.ruled.counts.values()) for part in parts), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plans", nargs="*", default=PLANS)
    print(
        "plan                     screened/s   1 process (its CPU)   2 processes   "
        "efficiency   same answer"
    )
    for plan in parser.parse_args().plans:
        count, seconds = screened(plan)
        (alone_s, cpu_s, alone), (both_s, _, both) = (timed(plan, number) for number in PROCESSES)
        print(
            f"{plan:24} {count / seconds:10,.0f}   {alone_s:9.1f} s ({cpu_s:5.1f} "
            f"s) {both_s:11.1f} "
            f"s   {alone_s / both_s / 2:10.0%}   {'yes' if alone == both else 'NO'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
