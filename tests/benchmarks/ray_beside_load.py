"""Whether the tests that start Ray pass on a busy machine, beside a cluster that somebody else
started there.

``make test-ray-beside-load`` runs this. Three processes that never rest, and a cluster of one CPU
in Ray's common folder, are there all the time; the tests run in one process, round after round.
Printed is a line a round: how many tests passed, how many did not and which, how long it took, and
whether the cluster still answers and its address file is as it was. The exit status is 0 only if
every test of every round passed and the cluster came to no harm. On two cores a round takes some
ten minutes.

It refuses to start where a cluster's address lies in the common folder already: starting another
one would overwrite it.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from ray._private.utils import get_ray_address_file

from tests.runtime.processes import cluster_by_hand

TESTS = ("-m", "ray", "tests")
NO_RAY = "wrong_input"
"""Tests with this in their names end before Ray would start."""
NUM_BUSY = 3
ASK = """
import ray
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
print(ray.get(ray.remote(num_cpus=1)(lambda: 6 * 7).remote(), timeout=120))
"""


@contextmanager
def busy(number):
    """So many processes that never rest."""
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def answers():
    """Whether the cluster that Ray finds in its common folder runs what it is given."""
    asked = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=False)
    return asked.returncode == 0 and asked.stdout.strip() == "42"


def run_tests(tests):
    """Tests that passed, the names of those that did not, and seconds."""
    began_s = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-rfE",
        "--tb=short",
        "-k",
        f"not {NO_RAY}",
        *tests,
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    passed = re.search(r"(\d+) passed", said.stdout)
    failed = re.findall(r"^(?:FAILED|ERROR) \S*::(\S+)", said.stdout, re.MULTILINE)
    if said.returncode and not failed:
        failed = [f"pytest ended with {said.returncode}"]
    if failed:
        print(said.stdout, file=sys.stderr, flush=True)
    return int(passed[1]) if passed else 0, failed, time.monotonic() - began_s


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "tests", nargs="*", default=TESTS, help="of pytest; by default all that start Ray"
    )
    asked = parser.parse_args()
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        os.environ.pop(name, None)
    path = Path(get_ray_address_file(None))
    if path.exists():
        sys.exit(
            f"{path}: a cluster's address is here, which another cluster would overwrite; "
            "stop it, or remove what it left"
        )
    is_well = True
    try:
        with busy(NUM_BUSY), cluster_by_hand("--port=0", "--num-cpus=1") as (address, command):
            sessions = {entry.name for entry in path.parent.iterdir()}
            for number in range(1, asked.rounds + 1):
                passed, failed, seconds = run_tests(asked.tests)
                is_same = (
                    path.read_text() == address
                    and {entry.name for entry in path.parent.iterdir()} == sessions
                )
                is_alive = command.poll() is None and answers()
                is_well = is_well and not failed and is_same and is_alive
                print(
                    f"round {number}: {passed} passed, {len(failed)} failed in {seconds:.0f} s; "
                    f"the other cluster {'answers' if is_alive else 'IS GONE'}, "
                    f"its files {'are as they were' if is_same else 'WERE CHANGED'}",
                    *failed,
                    sep="\n  ",
                    flush=True,
                )
    finally:
        path.unlink(missing_ok=True)  # of the cluster that was started here, and has ended
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
