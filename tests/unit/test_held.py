"""Folders of processes that live are left alone; those of dead ones go."""

import subprocess
import sys

import pytest

from simulator.base.partial import (
    hold_folder,
    hold_partial,
    new_path,
    replace_whole,
    take_abandoned,
    whole_file,
)

HOLDS = """
import sys, time
from pathlib import Path
from simulator.base.partial import hold_partial, new_path
with hold_partial(Path(sys.argv[1])) as partial:
    new_path(partial).mkdir()
    (new_path(partial) / "half").write_text("half")
    print(partial, flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def elsewhere(tmp_path):
    """Another process, in the middle of writing beside ``tmp_path / "run"``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE, text=True
    )
    process.partial = process.stdout.readline().strip()
    yield process
    process.kill()
    process.stdout.close()
    process.wait()


@pytest.mark.slow
def test_what_a_killed_process_left_goes_with_the_next_that_writes_there(tmp_path, elsewhere):
    for _ in range(2):
        with whole_file(tmp_path / "x.csv") as partial:
            partial.write_text("a")
        assert sorted(map(str, tmp_path.iterdir())) == [elsewhere.partial, f"{tmp_path}/x.csv"]
    elsewhere.kill()
    elsewhere.wait()
    with whole_file(tmp_path / "x.csv") as partial:
        partial.write_text("b")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.csv"]


def test_a_folder_is_its_processes_own_until_it_leaves_and_only_one_takes_it(tmp_path):
    with hold_folder("p-", tmp_path) as folder:
        (folder / "content").touch()
        with take_abandoned("p-", tmp_path) as found:
            assert found == []
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_lock_is_nobodys(tmp_path):
    (tmp_path / "p-1").mkdir()
    (tmp_path / "p-2").touch()
    (tmp_path / "p-3").symlink_to(tmp_path)
    (tmp_path / "moesim.lock").touch()  # free, but a link to it is followed by nobody
    with take_abandoned("p-", tmp_path) as found:
        assert found == []
    with take_abandoned("p-", tmp_path / "none") as found:
        assert found == []


def test_what_dead_processes_left_is_taken_by_one_at_a_time(tmp_path):
    (tmp_path / "p-1").mkdir()
    (tmp_path / "p-1" / "moesim.lock").touch()
    with take_abandoned("p-", tmp_path) as first, take_abandoned("p-", tmp_path) as second:
        assert [folder.name for folder in first] == ["p-1"]
        assert second == []


def test_an_earlier_result_outlives_a_kill_between_the_two_moves(tmp_path):
    abandoned = tmp_path / ".moesim-partial-1"
    for name in ("old", "new"):
        (abandoned / name).mkdir(parents=True)
    (abandoned / "moesim.lock").touch()
    with hold_partial(tmp_path) as partial:
        new_path(partial).write_text("whole")
        replace_whole(partial, tmp_path / "other")
    assert (abandoned / "old").is_dir()
    (abandoned / "new").rmdir()  # killed after the second: what is there is of no use
    with hold_partial(tmp_path):
        assert not abandoned.exists()
