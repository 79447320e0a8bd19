"""A cluster of the user's whose second node shares no files with this machine: what runs there is
this moesim, with the files that a scenario names, and every answer is what one process gives,
whatever is lost or slow meanwhile.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pandas as pd
import pytest
import ray
from pydantic import TypeAdapter

import simulator
from simulator.base import trust
from simulator.base.errors import LostError, UserError
from simulator.base.reading import read_text, read_toml
from simulator.commands.execute import execute
from simulator.commands.sweep import sweep
from simulator.config.model import load_model
from simulator.parallel.work_list import WorkList
from simulator.parallel.workers import Workers
from simulator.planner.store import Store
from simulator.runtime.layers.transformer import Transformer
from simulator.runtime.layers.weights import SeededWeights, save_weights
from tests.runtime.model_files import write_models
from tests.runtime.processes import (
    PATIENCE_S,
    cluster_by_hand,
    common_folder,
    descendants,
    left_of,
)

CHECKOUT = Path(__file__).parents[2]
OWN_PORTS = ("--min-worker-port=0", "--max-worker-port=0")
"""Other clusters may have the usual ones."""
IS_PERMITTED = (
    sys.platform == "linux"
    and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ray-apart"),
    pytest.mark.skipif(not IS_PERMITTED, reason="a mount namespace needs Linux and its root"),
]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a cluster has no tests

SCENARIO = """
name = "own"
seed = 3
[workload]
requests = "../traces/own.csv"
[[deployments]]
name = "moe"
model = "moe.toml"
cluster = "own-8"
parallel = { attention_dp = 2, ep = 2 }
dispatch = { kind = "my_package.my_dispatch" }
[[deployments]]
name = "dense"
model = "dense.toml"
cluster = "own-8"
parallel = { tp = 2 }
"""


def hide(*folders):
    """Shell commands that put empty folders in the place of some; the interpreter's stays."""
    inside = [
        folder
        for folder in map(Path, {sys.prefix, sys.base_prefix})
        if folder.is_relative_to(CHECKOUT)
    ]
    lines = ["set -e", "mount --make-rprivate /", "mount -t tmpfs tmpfs /mnt"]
    for number, folder in enumerate(inside):
        saved = f"/mnt/saved-{number}"
        lines += [f"mkdir -p {saved}", f"mount --bind {shlex.quote(str(folder))} {saved}"]
    lines += [f"mount -t tmpfs tmpfs {shlex.quote(str(folder))}" for folder in folders]
    for number, folder in enumerate(inside):
        place = shlex.quote(str(folder))
        lines += [f"mkdir -p {place}", f"mount --bind /mnt/saved-{number} {place}"]
    return "\n".join(lines)


@contextmanager
def far_node(address, number, num_cpus, *hidden):
    """A node of the cluster that has none of the folders' files, nor Ray's of other nodes; its
    process.
    """
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}"]
    start += [f"--node-ip-address=127.0.0.{number}"]  # Ray tells nodes apart by them
    start += [f"--num-cpus={num_cpus}", "--block", *OWN_PORTS]
    node = subprocess.Popen(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f"{hide(os.environ['RAY_TMPDIR'], *hidden)}\nexec {shlex.join(start)}",
        ],
        cwd="/",
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield node
    finally:
        started = descendants(node.pid)
        node.terminate()
        node.wait(timeout=PATIENCE_S)
        assert left_of(started) == set()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a scenario and all that it names, in the command's own place."""
    place = tmp_path_factory.mktemp("home")
    folder = place / "scenarios"
    for name in (folder / "my_package", folder / "cluster_configs", place / "traces"):
        name.mkdir(parents=True)
    (folder / "own.toml").write_text(SCENARIO)
    write_models(folder)
    rows = [f"2023-11-16 18:00:{n % 60:02}.0,{40 + n},{5 + n % 7}" for n in range(30)]
    (place / "traces" / "own.csv").write_text(
        "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *sorted(rows)])
    )
    from simulator.policies.dispatch import per_rank

    (folder / "my_package" / "my_dispatch.py").write_text(read_text(Path(per_rank.__file__)))
    (folder / "cluster_configs" / "own-8.toml").write_text('based_on = "h100-sxm"\nnum_gpus = 8\n')
    return folder


@pytest.fixture(scope="module")
def address(home):
    """A cluster whose head has no CPUs, and of which a node with two has neither this checkout nor
    the scenario's files.
    """
    head = ("--port=0", "--num-cpus=0", *OWN_PORTS)
    with (
        common_folder(),
        cluster_by_hand(*head) as (found, _),
        far_node(found, 2, 2, CHECKOUT, home.parent),
    ):
        yield found


@pytest.fixture
def in_home(home, monkeypatch):
    monkeypatch.chdir(home)
    before = trust.allowed_folder()
    trust.allow_code()
    yield home
    trust.allow_code(before)


@pytest.fixture
def marks():
    """A folder that all nodes share, for tests to say what has happened."""
    with TemporaryDirectory(prefix="m-", dir="/tmp") as place:
        yield Path(place)


def is_first(marks, name):
    """Whether nobody has said this before."""
    try:
        os.close(os.open(marks / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def wait_until(condition):
    until_s = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < until_s:
        time.sleep(0.05)


def meet(marks, size, number):
    """Wait until as many processes have come."""
    (marks / f"pid-{os.getpid()}").touch()
    wait_until(lambda: len(list(marks.glob("pid-*"))) >= size)
    return number


def gather(pool, marks, size=3):
    """Wait until so many processes of a pool are at work: by default this one and one for each CPU
    of the cluster.
    """
    assert pool.map(partial(meet, marks, size), range(3 * size)) == list(range(3 * size))
    assert len(list(marks.glob("pid-*"))) == size


@contextmanager
def open_pool(address, marks):
    """The whole cluster, once all of its workers are there."""
    with Workers(address=address) as pool:
        gather(pool, marks)
        yield pool


def look_around(path, _):
    """What a worker finds: where its moesim is, and whether it has a file by itself."""
    time.sleep(0.2)
    return os.getpid(), simulator.__file__, os.path.exists(path), read_text(Path(path))


def recall(store, number):
    time.sleep(0.2)
    return store.recall(f"key {number}", TypeAdapter(list[int]), lambda: [number, os.getpid()])


def read_elsewhere(path, home, _):
    time.sleep(0.2)
    if os.getpid() != home:
        read_toml(path)


def test_workers_of_a_node_without_moesim_read_the_commands_files_and_keep_what_they_find_there(
    address, in_home, tmp_path_factory, marks
):
    path = str(in_home / "own.toml")
    store = Store(tmp_path_factory.mktemp("kept"))
    with open_pool(address, marks) as pool:
        found = pool.map(partial(look_around, path), range(30))
        others = [one for one in found if one[0] != os.getpid()]
        assert len({pid for pid, *_ in others}) == 2  # the whole cluster
        assert {(has, text) for _, _, has, text in others} == {(False, SCENARIO)}
        assert not any(Path(place).is_relative_to(CHECKOUT) for _, place, *_ in others)
        kept = pool.map(partial(recall, store), range(30))
        assert {pid for _, pid in kept} > {os.getpid()}
        assert kept == [store.get(f"key {n}", TypeAdapter(list[int])) for n in range(30)]
        broken = in_home / "broken.toml"
        broken.write_text("key = [")
        with pytest.raises(UserError, match=f"^{broken}.*: not valid TOML"):
            pool.map(partial(read_elsewhere, broken, os.getpid()), range(30))


@pytest.mark.soak  # compiles the engine for a test session of its own: minutes
def test_a_sweep_over_nodes_that_share_no_files_is_the_one_of_one_process(
    address, in_home, tmp_path, marks, monkeypatch
):
    keys, takers, keep = {"workload.rate_scale": [1.0, 2.0, 4.0]}, [], WorkList.keep
    found = {"one": sweep("own.toml", tmp_path / "one", keys, num_seeds=2, workers=1)}
    enter = Workers.__enter__

    def enter_and_gather(pool):
        gather(enter(pool), marks)
        takers.clear()
        return pool

    def note(work, place, result, worker):
        takers.append(worker.number)
        keep(work, place, result, worker)

    monkeypatch.setattr(WorkList, "keep", note)
    monkeypatch.setattr(Workers, "__enter__", enter_and_gather)
    found["many"] = sweep("own.toml", tmp_path / "many", keys, num_seeds=2, address=address)
    assert {1, 2} & set(takers)  # others took part
    pd.testing.assert_frame_equal(found["one"].summary, found["many"].summary)
    for one in sorted((tmp_path / "one").rglob("*.parquet")):
        many = tmp_path / "many" / one.relative_to(tmp_path / "one")
        assert one.read_bytes() == many.read_bytes()
    texts = [json.dumps(one.run["points"]) for one in found.values()]
    assert texts[0] == texts[1]


EXECUTION = """
name = "real"
seed = 3
[workload]
requests = "../traces/own.csv"
[execution]
prompts = 3
prompt_tokens = 5
sequences = 5
context_tokens = 7
steps = 2
warm_up = 0
[[deployments]]
name = "moe"
model = "moe.toml"
cluster = "this-machine-2"
parallel = { attention_dp = 2, ep = 2 }
dispatch = { kind = "my_package.my_dispatch" }
weights = "own.safetensors"
"""


def write_weights(folder):
    found, drawn = {}, SeededWeights(5)

    def tensor(name, shape):
        return found.setdefault(name, drawn.tensor(name, shape))

    Transformer(load_model("moe.toml", "test", folder)).load(SimpleNamespace(tensor=tensor))
    save_weights(iter(found.items()), folder / "own.safetensors")


def test_shards_on_a_node_without_the_weights_file_equal_the_whole_model(address, in_home):
    write_weights(in_home)
    (in_home / "real.toml").write_text(EXECUTION)
    executed = execute("real.toml", address=address)
    assert executed.summary["largest_difference"].max() < 1e-5
    assert executed.run["nodes"] == "1 node(s)"  # the one with CPUs


def dies_once(marks, home, number):
    time.sleep(0.1)
    if os.getpid() != home and is_first(marks, "died"):
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_lost_worker_is_replaced_and_its_item_begun_again(address, marks):
    with open_pool(address, marks) as pool:
        with pytest.warns(RuntimeWarning, match="a process of Ray's was lost"):
            found = pool.map(partial(dies_once, marks, os.getpid()), range(40))
        assert found == list(range(40))
        assert (marks / "died").exists()
        gather(pool, marks, 4)  # the dead one was there, too


def dies_always(marks, home, number):
    if os.getpid() == home:
        wait_until(lambda: len(list(marks.glob("died-*"))) >= 2)
    elif number == 1:
        (marks / f"died-{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_an_item_that_has_lost_two_workers_ends_the_work_with_what_happened(address, marks):
    with (
        pytest.raises(LostError, match=r"lost with the same piece of work, number 2 of 2: .*died"),
        pytest.warns(RuntimeWarning, match="a process of Ray's was lost"),
        Workers(address=address) as pool,
    ):
        pool.map(partial(dies_always, marks, os.getpid()), range(2))


def stalls_once(marks, home, number):
    time.sleep(0.05)
    if os.getpid() != home and is_first(marks, "stalled"):
        time.sleep(10 * PATIENCE_S)
    return number


def test_a_node_that_joins_gets_work_also_what_another_is_stuck_with(address, home, marks):
    with open_pool(address, marks) as pool, far_node(address, 3, 1, CHECKOUT, home.parent):
        gather(pool, marks, 4)
        found = pool.map(partial(stalls_once, marks, os.getpid()), range(40))
        assert found == list(range(40))
        assert (marks / "stalled").exists()
        pool.shut_down()
