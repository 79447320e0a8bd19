"""One function over many items: in order, with what it raises, on several processes at once, and
nothing left running.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from simulator.base.errors import LostError, UserError
from simulator.parallel.work_list import Taker, WorkList
from simulator.parallel.workers import Workers, sweep

PATIENCE_S = 300.0
"""Whatever ends at all has ended by then, however busy the machine is; only a test that fails waits
so long."""


def squared(number):
    return number**2


def waits(seconds):
    time.sleep(seconds)
    return seconds


def refuses_three(number):
    if number == 3:
        raise UserError("three is not a number for us")
    return number


def together(folder, number):
    """The process that did this; ends when two processes have begun it."""
    (folder / str(os.getpid())).touch()
    until_s = time.monotonic() + PATIENCE_S
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until_s:
        time.sleep(0.01)
    return number, os.getpid()


def refuses_elsewhere(home, folder, number):
    if together(folder, number)[1] != home:
        raise UserError("not here")
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_items_order_and_progress_reaches_the_end(workers):
    seen = []
    assert sweep(squared, range(20), seen.append, workers) == [number**2 for number in range(20)]
    assert seen == sorted(seen)
    assert seen[-1] == 20
    assert sweep(squared, [], workers=workers) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_function_raises_is_raised_here(workers):
    with pytest.raises(UserError, match=r"^three is not a number for us$"):
        sweep(refuses_three, range(6), workers=workers)
    assert sweep(squared, [2, 3], workers=workers) == [4, 9]


@pytest.mark.xdist_group("ray-apart")
def test_one_list_after_another_is_worked_on_by_the_same_processes_at_once(tmp_path, ray):
    counts, processes = [], []
    with Workers(2) as pool:
        for name in ("first", "second"):
            folder = tmp_path / name
            folder.mkdir()
            found = pool.map(partial(together, folder), range(5), counts.append)
            assert [number for number, _ in found] == list(range(5))
            processes.append({pid for _, pid in found})
        assert sweep(squared, [1, 2], workers=2) == [1, 4]  # starts no more of them
        (tmp_path / "third").mkdir()
        with pytest.raises(UserError, match="not here"):
            pool.map(partial(refuses_elsewhere, os.getpid(), tmp_path / "third"), range(2))
    assert processes[0] == processes[1]
    assert os.getpid() in processes[0]
    assert counts[-1] == 5
    assert len(processes[0]) == 2


def test_one_core_or_no_ray_starts_nothing(monkeypatch):
    monkeypatch.setattr(
        "simulator.parallel.workers.Workers._start", lambda _: pytest.fail("Ray was started")
    )
    monkeypatch.setattr("simulator.parallel.workers.count_cores", lambda: 1)
    assert sweep(squared, [1, 2]) == [1, 4]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert sweep(squared, [1, 2], workers=2) == [1, 4]


def test_this_process_goes_on_alone_where_ray_does_not_start(monkeypatch, ray):

    def connect(**_):
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr("simulator.runtime.nodes.connect", connect)
    with Workers(2) as workers:
        with pytest.warns(RuntimeWarning, match=r"did not start all .* timed out during startup"):
            assert workers.map(waits, [0.0, 0.5, 0.5, 0.0]) == [0.0, 0.5, 0.5, 0.0]
        assert workers.map(squared, [2, 3]) == [4, 9]
    with pytest.raises(RuntimeError, match="timed out"), Workers(2, address="localhost:1"):
        pytest.fail("the cluster that was named was done without")


def interrupts(seconds):
    time.sleep(seconds)
    raise KeyboardInterrupt


def test_an_interrupt_does_not_wait_for_an_import_that_may_never_end(monkeypatch, ray):
    goes_on = threading.Event()

    class Loading(ModuleType):
        def __getattr__(self, name):
            goes_on.wait(PATIENCE_S)
            raise AttributeError(name)

    monkeypatch.setitem(sys.modules, "simulator.runtime.nodes", Loading("simulator.runtime.nodes"))
    workers = Workers(2)
    with pytest.raises(KeyboardInterrupt), workers:
        workers.map(interrupts, [0.5, 0.5])
    assert workers._starter.is_alive()
    goes_on.set()
    workers._starter.join()


def slowly_together(folder, number):
    """What :func:`together` does, for long enough that it can be killed."""
    time.sleep(0.2)
    return together(folder, number)


@pytest.mark.slow
@pytest.mark.xdist_group("ray-apart")
@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("gcs_server", "Ray was lost, and this process does the rest: its head at"),
        pytest.param(
            "ray::_Actor",
            "a process of Ray's was lost, and others do its work",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_what_a_lost_process_had_begun_is_done_by_this_one(tmp_path, part, told, ray):
    from tests.runtime.processes import descendants, left_of

    before, killed = descendants(os.getpid()), []

    def kill_when_both_work(_):
        victims = [pid for pid, args in descendants(os.getpid()) - before if part in args]
        if len(list(tmp_path.iterdir())) == 2 and not killed:
            killed.extend(victims)
            for pid in victims:
                os.kill(pid, signal.SIGKILL)

    with Workers(2) as pool:
        with pytest.warns(RuntimeWarning, match=told):
            found = pool.map(partial(slowly_together, tmp_path), range(60), kill_when_both_work)
        assert [number for number, _ in found] == list(range(60))
        assert pool.map(squared, [2, 3]) == [4, 9]
        started = descendants(os.getpid()) - before
    assert killed
    assert left_of(started) == set()


def test_a_loss_during_the_last_item_is_told_before_the_results():
    pool = Workers(1)
    with pool, pytest.warns(RuntimeWarning, match="was lost"):
        assert pool.map(lambda _: pool._news.append("a process was lost"), [1]) == [None]


def test_what_is_given_back_is_begun_anew_by_whoever_asks():
    items = [("a", 1), ("b", 3), ("a", 5)]
    work = WorkList(None, items, lambda item: item[0], lambda item: item[1], {})
    lost = work.take(Taker(1))
    assert items[lost] == ("a", 5)
    work.give_back(lost, Taker(1), "it was killed", was_begun=True)
    assert [items[work.take(Taker(2))] for _ in items] == [("a", 5), ("b", 3), ("a", 1)]
    assert work.take(Taker(2)) is None


def test_an_item_that_is_lost_twice_ends_the_list_and_one_that_was_not_begun_does_not_count():
    work = WorkList(None, ["a"], str, lambda _: 1.0, {})
    for number, was_begun in ((1, False), (2, True), (3, True)):
        assert work.error is None
        place = work.take(Taker(number))
        work.give_back(place, Taker(number), "it was killed", was_begun=was_begun)
    assert isinstance(work.error, LostError)
    assert "number 1 of 1: it was killed" in str(work.error)


def test_what_one_worker_is_slow_with_is_begun_on_another_node_too_and_the_first_answer_counts():
    now_s = [0.0]
    work = WorkList(None, [1, 2, 3], str, lambda _: 1.0, {}, lambda: now_s[0])
    here, slow, beside, other = Taker(0, "a"), Taker(1, "b"), Taker(2, "b"), Taker(3, "c")
    of_here, stuck = work.take(here), work.take(slow)
    assert work.take_again(other) is None  # one is left
    done = work.take(other)
    now_s[0] = 2.0
    work.keep(done, "quick", other)
    assert work.take_again(other) is None  # no longer than others took
    now_s[0] = 4.0
    assert work.take_again(beside) is None  # on the same node
    assert work.take_again(other) == stuck
    assert work.take_again(Taker(4, "d")) is None  # two have it
    work.keep(stuck, "first", other)
    work.keep(stuck, "second", slow)
    work.give_back(stuck, slow, "it was killed", was_begun=True)
    assert work.take(slow) is None
    work.keep(of_here, "own", here)
    assert work.results == {done: "quick", stuck: "first", of_here: "own"}
    assert work.fresh() == ["quick", "first", "own"]


def order(items, *takers):
    """Items, which are ``(group, weight)``, as they are taken by workers that ask in turn."""
    work = WorkList(None, items, lambda item: item[0], lambda item: item[1], {})
    taken = [(taker, work.take(Taker(taker))) for taker in takers]
    return [(taker, place if place is None else items[place]) for taker, place in taken]


def test_the_heaviest_is_begun_first_and_alike_items_go_to_one_worker_until_the_others_have_none():
    items = [("a", 1), ("b", 3), ("b", 2), ("a", 5), ("b", 4)]
    assert order(items, 0, 0, 0, 0, 0, 0) == [
        (0, ("b", 4)),
        (0, ("a", 5)),
        (0, ("b", 3)),
        (0, ("b", 2)),
        (0, ("a", 1)),
        (0, None),
    ]
    assert order(items, 0, 1, 1, 0, 1) == [
        (0, ("b", 4)),
        (1, ("a", 5)),
        (1, ("a", 1)),
        (0, ("b", 3)),
        (1, ("b", 2)),
    ]


def test_who_had_a_group_in_one_list_gets_it_in_the_next():
    owners, items = {}, ["a", "b"]
    for first, second in ((0, 1), (1, 0)):
        work = WorkList(None, items, str, lambda _: 1.0, owners)
        taken = {one: items[work.take(Taker(one))] for one in (first, second)}
        assert taken == {0: "a", 1: "b"}


@pytest.mark.skipif(
    not Path("/proc/self/environ").exists(),
    reason="processes are found by their environment in /proc",
)
@pytest.mark.parametrize(("stop", "at_work"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_command_that_is_told_to_stop_leaves_no_process(tmp_path, stop, at_work, ray):
    program, begun = tmp_path / "program.py", tmp_path / "begun"
    begun.mkdir()
    program.write_text(f"""
import os, time
from pathlib import Path
from simulator.parallel.workers import sweep

def begin(number):
    (Path({str(begun)!r}) / str(os.getpid())).touch()
    time.sleep(60)

sweep(begin, range(8), workers=2)
""")
    mark = f"moesim-test-{os.getpid()}-{stop}-{at_work}"
    running = subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MOESIM_MARK": mark},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # what runs tests in the background ignores it
    )
    # At one process at work the others are just being started.
    while (
        len(list(begun.iterdir())) < at_work or len(marked(mark)) < 2
    ) and running.poll() is None:
        time.sleep(0.05)
    if stop == signal.SIGINT:
        os.killpg(running.pid, stop)  # as a terminal does
    else:
        running.send_signal(stop)
    _, said = running.communicate(timeout=PATIENCE_S)
    assert running.returncode != 0
    assert "KeyboardInterrupt" in said
    assert "SIGTERM received" not in said, "Ray wrote its own stack trace"
    deadline = time.monotonic() + PATIENCE_S
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert marked(mark) == []


def marked(mark):
    """Living processes that were started with the mark in their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with (
                open(f"/proc/{pid}/environ", "rb") as environment,
                open(f"/proc/{pid}/stat") as state,
            ):
                if (
                    mark.encode() in environment.read()
                    and state.read().rpartition(")")[2].split()[0] != "Z"
                ):
                    found.append(int(pid))
        except OSError:
            continue
    return found
