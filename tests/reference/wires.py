"""The links between a prefill pool and a decode pool: a data-parallel rank sends one cache after
another, and all receiving ranks together take in what comes (decision 18).
"""

from __future__ import annotations

from collections import defaultdict

from simulator.cost.transfer import Transfer
from tests.reference.requests import Request


class Wires:
    """Until when they are taken."""

    def __init__(self, transfer: Transfer, senders: int, num_receivers: int) -> None:
        """Nothing has been sent.

        Args:
            senders: data-parallel ranks of a prefill replica; a pipeline's lanes share a link.
            num_receivers: data-parallel ranks of all decode replicas.
        """
        self.transfer, self.num_receivers = transfer, num_receivers
        self._senders = senders
        self._free_s: dict[tuple[int | None, int], float] = defaultdict(float)
        self._received_s = 0.0

    def send(self, prompt: Request, now_s: float) -> float:
        """When the cache of a prompt, which may leave from now on, is at the decode pool."""
        transfer = self.transfer
        assert prompt.finish_s is not None
        assert prompt.scheduled_s is not None
        computing_s = prompt.finish_s - prompt.scheduled_s + transfer.handshake_s
        send_s = transfer.left_s(transfer.send_s(prompt.num_input), computing_s)
        receive_s = transfer.left_s(transfer.receive_s(prompt.num_input), computing_s)
        sender = prompt.replica, prompt.rank % self._senders
        ready_s = max(prompt.finish_s + transfer.handshake_s, now_s)
        start_s = max(ready_s, self._free_s[sender])
        self._free_s[sender] = start_s + send_s
        self._received_s = max(self._received_s, start_s) + receive_s / self.num_receivers
        return max(start_s + max(send_s, receive_s), self._received_s) + transfer.latency_s
