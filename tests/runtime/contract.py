"""What every transport promises, as one rank's part of it: run by a thread, or by an actor in its
own process.
"""

import time

import numpy as np
import torch

from simulator.base import plugins
from simulator.runtime.transport import PeerLostError

SLEEP_S = 0.2


def policy(kind):
    return plugins.build("runtime.transport", {"kind": kind}, "test")


def keep(kind, address, rank, size, timeout_s=20.0):
    """Exchange this and that with the other ranks; every assertion is about what this rank got.

    Returns:
        What must be the same on all ranks: the bits of a sum.
    """
    transport = policy(kind).connect(address, rank, size, timeout_s)
    for dtype in (torch.uint8, torch.float32, torch.int64):
        _exchange(transport, rank, size, dtype)
    _exchange(transport, rank, size, torch.uint8, only_from=0)
    _exchange(transport, rank, size, torch.uint8, only_from=size)  # nobody has anything
    late_s = _barrier(transport, rank)
    terms = [
        np.random.default_rng(other).normal(size=(3, 5)).astype(np.float32) for other in range(size)
    ]
    total = transport.all_reduce(torch.from_numpy(terms[rank].copy()))
    assert np.allclose(total.numpy(), sum(terms), rtol=0, atol=1e-5)
    transport.barrier()
    transport.close()
    return total.numpy().tobytes(), late_s


def _exchange(transport, rank, size, dtype, only_from=None):
    """Rows that say where they come from and go to, in numbers that differ from rank to rank, and
    back again.
    """

    def rows(source, target):
        count = (3 * source + target) % 4 if only_from in (None, source) else 0
        return torch.full((count, 3), 10 * source + target, dtype=dtype)

    send = torch.cat([rows(rank, other) for other in range(size)])
    counts = [len(rows(rank, other)) for other in range(size)]
    received, rows_R = transport.all_to_all(send.clone(), counts)
    expected = [rows(other, rank) for other in range(size)]
    assert rows_R == [len(part) for part in expected]
    assert received.dtype == dtype
    assert torch.equal(received, torch.cat(expected))
    returned, back_R = transport.all_to_all(received, rows_R, counts)
    assert back_R == counts
    assert torch.equal(returned, send)


def _barrier(transport, rank):
    """When the last one came, or when this one left."""
    if rank == 0:
        time.sleep(SLEEP_S)
        came_s = time.perf_counter()
        transport.barrier()
        return came_s
    transport.barrier()
    return time.perf_counter()


def wait_alone(kind, address, size, timeout_s):
    """Seconds until rank 0 is told that nobody else comes."""
    began_s = time.perf_counter()
    try:
        transport = policy(kind).connect(address, 0, size, timeout_s)
        transport.barrier()
    except PeerLostError:
        return time.perf_counter() - began_s
    return None


def check_all(results):
    """What the ranks returned, put together."""
    bits_R, late_R = zip(*results, strict=True)
    assert len(set(bits_R)) == 1
    assert all(left_s >= late_R[0] for left_s in late_R[1:])
