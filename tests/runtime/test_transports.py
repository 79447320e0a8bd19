"""The contract of the transports that need no other process; those of Ray keep the same one in
``test_ray.py``.
"""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from simulator.runtime.transport import PeerLostError
from tests.runtime.contract import check_all, keep, policy, wait_alone


@pytest.mark.parametrize("size", [1, 2, 5])
def test_threads_exchange_rows_sums_and_waits(size):
    address = policy("in_process").meeting(size, 20.0).address
    with ThreadPoolExecutor(size) as threads:
        check_all([*threads.map(lambda rank: keep("in_process", address, rank, size), range(size))])


def test_a_thread_that_waits_alone_is_told_so_in_time():
    waited_s = wait_alone("in_process", policy("in_process").meeting(2, 0.2).address, 2, 0.2)
    assert 0.2 <= waited_s < 5


def test_threads_that_wait_when_the_meeting_is_aborted_are_told_so_at_once():
    meeting = policy("in_process").meeting(2, 60.0)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait_alone, "in_process", meeting.address, 2, 60.0)
        meeting.abort()
        assert waiting.result() < 30


def test_a_process_that_comes_to_a_meeting_that_was_given_up_does_not_wait_for_it():
    """It is refused, where the library would look for the others until its time is over."""
    meeting = policy("process_group").meeting(2, 60.0, "127.0.0.1")
    meeting.abort()
    with pytest.raises(PeerLostError, match=r"rank 1, forming the process group: .*refused"):
        policy("process_group").connect(meeting.address, 1, 2, 60.0)


def test_a_process_whose_meeting_is_given_up_while_it_connects_does_not_wait_for_it(monkeypatch):
    meeting, connect = (
        policy("process_group").meeting(2, 60.0, "127.0.0.1"),
        socket.create_connection,
    )

    def connect_before_the_end(*asked):
        connected = connect(*asked)
        meeting.abort()
        return connected

    monkeypatch.setattr(socket, "create_connection", connect_before_the_end)
    with pytest.raises(PeerLostError, match=r"rank 1, forming the process group: .*refused"):
        policy("process_group").connect(meeting.address, 1, 2, 60.0)
