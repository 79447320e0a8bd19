"""What is this machine's: cores that may be used, and the calibration that was measured on it."""

import os
import shutil

import pytest

from simulator.base.data import find_file, is_shipped, search_folders, shipped_folder
from simulator.base.machine import count_cores

FAMILY, NAME = "cluster_configs/calibration", "this-machine"


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def make_files(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "number"),
    [
        ({}, 16),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {  # what is around it holds too
                "proc/self/cgroup": "0::/pod/container\n",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/pod/container/cpu.max": "800000 100000\n",
            },
            3,
        ),
        (
            {  # version 1, seen from inside a container that is not told its own path
                "proc/self/cgroup": "5:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
    ],
)
def test_cores_are_those_of_the_affinity_within_the_quotas_of_control_groups(
    tmp_path, cores, files, number
):
    assert count_cores(make_files(tmp_path, files)) == number


def test_an_affinity_of_fewer_cores_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}
    assert count_cores(make_files(tmp_path, files)) == 1


def test_a_calibration_in_the_users_data_folder_comes_before_the_shipped_one(tmp_path, monkeypatch):
    shipped = find_file(FAMILY, NAME, "test")
    assert is_shipped(FAMILY, NAME)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    own = tmp_path / "moesim" / FAMILY / f"{NAME}.toml"
    own.parent.mkdir(parents=True)
    shutil.copy(shipped, own)
    for folder in (tmp_path, shipped_folder()):  # also in a checkout, whose files ship
        monkeypatch.chdir(folder)
        assert find_file(FAMILY, NAME, "test") == own.resolve()
        assert not is_shipped(FAMILY, NAME)
        assert search_folders(FAMILY)[-1] == shipped.parent
    assert find_file(FAMILY, "hopper", "test").parent == shipped.parent


def test_a_folder_of_the_current_directory_comes_before_the_users_data_folder(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "data" / "moesim" / FAMILY).mkdir(parents=True)
    (tmp_path / FAMILY).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / FAMILY, tmp_path / "data" / "moesim" / FAMILY, shipped_folder() / FAMILY]
    assert search_folders(FAMILY) == [folder.resolve() for folder in folders]
