"""What is this machine's: cores that may be used, and the calibration that was measured on it."""

import os
import shutil

import pytest

from simulator.base.data import find_file, is_shipped, search_folders, shipped_folder
from simulator.base.machine import count_cores

FAMILY, NAME = "cluster_configs/calibration", "this-machine"


WHOLE = {"proc/self/cgroup": "0::/\n"}
OLD = {"proc/self/cgroup": "5:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n"}
QUOTA, PERIOD = (f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us" for name in ("quota", "period"))
"""Of version 1, seen from inside a container that is not told its own path."""


@pytest.mark.parametrize(
    ("files", "affine", "number"),
    [
        ({}, 16, 16),
        ({**WHOLE, "sys/fs/cgroup/cpu.max": "max 100000\n"}, 16, 16),
        ({**WHOLE, "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 16, 2),
        ({**WHOLE, "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 1, 1),
        ({**WHOLE, "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 16, 1),
        (
            {  # what is around it holds too
                "proc/self/cgroup": "0::/pod/container\n",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/pod/container/cpu.max": "800000 100000\n",
            },
            *(16, 3),
        ),
        ({**OLD, QUOTA: "400000\n", PERIOD: "100000\n"}, 16, 4),
        ({**OLD, QUOTA: "-1\n", PERIOD: "100000\n"}, 16, 16),
    ],
)
def test_cores_are_those_of_the_affinity_within_the_quotas_of_control_groups(
    tmp_path, monkeypatch, files, affine, number
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affine)), raising=False)
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert count_cores(tmp_path) == number


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
