"""Transport by ``torch.distributed``: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import time
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore, distributed_c10d  # type: ignore[attr-defined]  # exported at run time

from simulator.base.frozen import Frozen
from simulator.base.text import first_line
from simulator.runtime.transport import PeerLostError


class Address(NamedTuple):
    """Address at which the ranks find each other."""

    host: str
    port: int


class ProcessGroup(Frozen):
    """Transport by one process group over all ranks, formed again after every failure."""

    joins_processes: ClassVar[bool] = True

    def meeting(self, size: int, timeout_s: float, host: str) -> Listener:
        return Listener(size, timeout_s, host)

    def connect(
        self, address: Address, rank: int, size: int, timeout_s: float
    ) -> ProcessGroupTransport:
        return ProcessGroupTransport(address, rank, size, timeout_s)


class Listener:
    """Driver's end: a store through which the ranks find each other; no tokens pass through it."""

    def __init__(self, size: int, timeout_s: float, host: str) -> None:
        # TCPStore would listen on all addresses.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family)
        self.address = Address(host, listener.getsockname()[1])
        self._store: TCPStore | None = TCPStore(
            *self.address,
            size + 1,
            True,
            datetime.timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )

    def abort(self) -> None:
        """End the introductions: ranks that still wait for each other give up. Connections to a
        lost process break anyway.
        """
        self._store = None


def _stay_on_loopback() -> None:
    """Let gloo and NCCL listen on the loopback interface, where all ranks are on this machine; they
    would choose one by the machine's name.
    """
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback is not None:
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)


def _find_store(address: Address, num_members: int, timeout_s: float) -> TCPStore:
    """Connect to the driver's store.

    TCPStore looks until its timeout for a store that is gone because the meeting was given up. So
    it looks for a second, then for twice as long each time, and before each it is asked whether
    anybody listens.

    Raises:
        ConnectionRefusedError: if nobody does.
        RuntimeError: if the store does not answer in time.
    """
    until_s, attempt_s = time.monotonic() + timeout_s, min(1.0, timeout_s)
    while True:
        _refuse_if_gone(address, timeout_s)
        try:
            store = TCPStore(*address, num_members, False, datetime.timedelta(seconds=attempt_s))
        except RuntimeError:
            left_s = until_s - time.monotonic()
            if left_s <= 0.0:
                raise
            attempt_s = min(2.0 * attempt_s, left_s)
            continue
        store.set_timeout(datetime.timedelta(seconds=timeout_s))
        return store


def _refuse_if_gone(address: Address, timeout_s: float) -> None:
    """Ask whether anybody listens. What else goes wrong with that, TCPStore may get over.

    Raises:
        ConnectionRefusedError: if nobody does.
    """
    try:
        socket.create_connection(address, timeout_s).close()
    except ConnectionRefusedError:
        raise
    except OSError:
        return


class ProcessGroupTransport:
    """One process's end of the transport."""

    def __init__(self, address: Address, rank: int, size: int, timeout_s: float) -> None:
        self.rank, self.size = rank, size
        self.device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        timeout = datetime.timedelta(seconds=timeout_s)
        if ipaddress.ip_address(address.host).is_loopback:
            _stay_on_loopback()
        try:
            store = _find_store(address, size + 1, timeout_s)
            # Names of groups count up in each process. One whose last attempt failed would look
            # under another name than a new one.
            distributed_c10d._world.group_count = 0
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=timeout
            )
        except (OSError, RuntimeError) as error:
            raise _make_lost_error(rank, "forming the process group", error) from None

    def all_to_all(
        self, send: Tensor, send_rows_R: list[int], receive_rows_R: list[int] | None = None
    ) -> tuple[Tensor, list[int]]:
        if receive_rows_R is None:
            counts = torch.tensor(send_rows_R, device=self.device)
            others = torch.empty_like(counts)
            self._run(dist.all_to_all_single, others, counts)
            receive_rows_R = others.tolist()
        received = send.new_empty((sum(receive_rows_R), *send.shape[1:]))
        self._run(dist.all_to_all_single, received, send.contiguous(), receive_rows_R, send_rows_R)
        return received, receive_rows_R

    def all_reduce(self, x: Tensor) -> Tensor:
        self._run(dist.all_reduce, x)
        return x

    def barrier(self) -> None:
        self._run(dist.barrier)

    def wait_at_most(self, timeout_s: float) -> None:
        distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=timeout_s))

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def _run(self, operation: Any, *arguments: Any) -> None:
        try:
            operation(*arguments)
        except RuntimeError as error:
            raise _make_lost_error(self.rank, operation.__name__, error) from None


def _make_lost_error(rank: int, doing: str, error: Exception) -> PeerLostError:
    """Make an error from the first line of the library's message; the rest is its own
    stack trace.
    """
    return PeerLostError(f"rank {rank}, {doing}: {first_line(error)}")
