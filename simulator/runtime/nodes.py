"""Machines that shards run on: this one, this one as several simulated nodes, or a Ray cluster of
the user's.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray._private.ray_constants as ray_constants
import ray._private.services as ray_services
import ray._private.worker as ray_worker
from numpy.typing import NDArray
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.job_config import JobConfig

import simulator
from simulator.base.errors import LostError, UserError
from simulator.base.machine import count_cores
from simulator.base.text import first_line
from simulator.base.trust import is_installed
from simulator.runtime.ray_files import (
    end_though_stuck,
    find_started_by,
    isolate_ray_files,
    keep_variables,
    kill_left,
)
from simulator.runtime.ray_home import Sender, make_sender, ship_code
from simulator.runtime.stopping import stop_on_signal

_BARE = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
"""Options of a simulated node without what nobody looks at: the dashboard, copies of logs, and the
autoscaler, each of which a process would start for."""


@contextlib.contextmanager
def _start_few_and_apart() -> Iterator[None]:
    """Let Ray start as it has no options for: without the autoscaler and what copies logs, a
    quarter of the CPU time of a start, with every port open to this machine only, and with
    processes that a signal to this program's group (``timeout`` sends one) does not end before the
    program has ended its work on them. If the program itself is killed, they end with it.

    A node that has the loopback address listens there alone (tried with Ray 2.40 and 2.60), where
    any other listens on all addresses. ``ray.init`` gives it to a node on macOS and Windows, and on
    Linux replaces it where it is asked for it.
    """
    changes = [
        (Node, "start_monitor", lambda _: None),
        (Node, "start_log_monitor", lambda _: None),
        (ray_constants, "ENABLE_RAY_CLUSTER", False),
        (ray_services, "ConsolePopen", partial(ray_services.ConsolePopen, start_new_session=True)),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in changes]
    for change in changes:
        setattr(*change)
    try:
        yield
    finally:
        for change in before:
            setattr(*change)


def _mark(number: int) -> str:
    return f"moesim_node_{number}"


@dataclass
class Nodes:
    """Connection to Ray."""

    simulated: Cluster | None = None
    head: Head | None = None
    """Head of the cluster, once there is one."""
    sender: Sender = field(default_factory=lambda: Sender(None))
    """Description of this process for those that it starts there."""
    _simulated_nodes: list[Any] = field(default_factory=list)
    _killed: set[str] = field(default_factory=set)
    """Ids of nodes that were killed: Ray itself notices a node's death only after missed
    heartbeats."""

    @property
    def is_lost(self) -> bool:
        """Whether the cluster is lost, so that requests to it are never answered."""
        return self.head is not None and self.head.lost is not None

    def find_loss(self) -> str | None:
        """Describe the loss of the cluster, looking for it now: a request would wait for what is
        lost. ``None`` while nothing is.
        """
        if self.head is None:
            return None
        if self.head.lost is None:
            self.head.look()
        return self.head.lost

    @property
    def own_address(self) -> str:
        """Address by which the other nodes reach this process's: the loopback one where all are
        on this machine.
        """
        return str(ray.util.get_node_ip_address())

    @property
    def alive(self) -> dict[str, float]:
        """Id and CPUs of every living node that has any."""
        return {
            node["NodeID"]: float(node["Resources"]["CPU"])
            for node in ray.nodes()
            if node["Alive"]
            and node["Resources"].get("CPU", 0) > 0
            and node["NodeID"] not in self._killed
        }

    @property
    def own(self) -> str:
        """Id of the node that this process is on."""
        return str(ray.get_runtime_context().get_node_id())

    @property
    def gpus(self) -> int:
        """GPUs of the living node that has the fewest."""
        return min(
            (
                int(node["Resources"].get("GPU", 0))
                for node in ray.nodes()
                if node["NodeID"] in self.alive
            ),
            default=0,
        )

    def resources(self, number: int) -> dict[str, float]:
        """Resources that place a process on node ``number`` of the plan: on a simulated node, its
        own mark.
        """
        return {} if self.simulated is None else {_mark(number): 0.001}

    def id_of(self, number: int) -> str | None:
        """Find the id of a simulated node; ``None`` once it was killed.

        Raises:
            UserError: if there is no such node.
        """
        if self.simulated is None or not 0 <= number < len(self._simulated_nodes):
            raise UserError(
                f"execution.faults: node {number} cannot be killed: "
                f"start it with --simulated-nodes {number + 1} or more"
            )
        node = self._simulated_nodes[number]
        return None if node is None else str(node.node_id)

    def spread(self, node_R: NDArray[np.int64]) -> NDArray[np.int64]:
        """Assign each rank to a node: as the plan says, or evenly over the simulated nodes, which
        the plan does not know.
        """
        if self.simulated is None:
            return node_R
        return np.arange(len(node_R)) * len(self._simulated_nodes) // len(node_R)

    def kill(self, number: int) -> None:
        """Kill a simulated node with everything on it.

        Raises:
            UserError: if there is no such node.
        """
        node_id = self.id_of(number)
        if self.simulated is not None and node_id is not None:
            node, self._simulated_nodes[number] = self._simulated_nodes[number], None
            self._killed.add(node_id)
            self.simulated.remove_node(node, allow_graceful=False)


@contextlib.contextmanager
def connect(
    simulated_nodes: int | None = None, address: str | None = None, cores: int | None = None
) -> Iterator[Nodes]:
    """Start Ray here, or join a cluster; what was started is stopped again, also after Ctrl-C and
    SIGTERM, and where Ray hangs.

    Args:
        simulated_nodes: number of raylets to start on this machine, each a node to Ray.
        address: address of a running cluster (``host:port``); no process of it is touched.
        cores: cores of this machine to use, where Ray is started here as one node; by default all.

    Raises:
        UserError: if the cluster cannot be joined.
        LostError: if it is lost before the context ends.
    """
    quiet: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": False}
    nodes = Nodes()
    # Ray prints the death of a process, and the log of a raylet that was killed, on standard
    # output, which is for results, and has no setting for it. What died is in the record of the
    # run.
    ray_worker.print_to_stdstream = lambda *_, **__: None
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1"
    )  # a rank that asked for no GPU sees none
    # Ray's handler of SIGTERM would write a stack trace of its compiled code before ours is called.
    ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER = True
    os.environ.setdefault("RAY_enable_open_telemetry", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray starts workers at the lowest priority but four: beside three busy processes on two cores
    # each would get a fiftieth of one.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A cluster of the user's has its own folder, which the driver learns from it.
    with (
        stop_on_signal(),
        isolate_ray_files() if address is None else keep_variables() as folder,
        end_though_stuck(folder),
    ):
        _read_variables_anew()
        try:
            try:
                if address is not None:
                    _join(address, quiet)
                else:
                    with _start_few_and_apart():
                        _start(nodes, simulated_nodes, cores, quiet)
            except SystemExit:  # a handler of SIGTERM that Ray has put in place meanwhile
                raise KeyboardInterrupt from None
            nodes.sender = make_sender(is_joined=address is not None)
            nodes.head = Head(ray.get_runtime_context().gcs_address, lambda: _has_ended(nodes))
            # Once more: Ray puts a handler of its own in place, which ends the process at once.
            with stop_on_signal(), nodes.head.watch_until_lost():
                yield nodes
        except (Exception, KeyboardInterrupt) as error:
            is_told = isinstance(error, KeyboardInterrupt)  # the watcher's comes after a loss
            lost = nodes.head and nodes.head.lost if is_told else nodes.find_loss()
            if lost is None:
                raise
            raise LostError(f"Ray was lost: {lost}") from error
        finally:
            # Agents that are still being started when their raylet is killed would write into the
            # folder after it was removed.
            agents = find_started_by(_list_own_raylets(nodes))
            ray.shutdown()
            if nodes.simulated is not None:
                with contextlib.suppress(
                    Exception
                ):  # a node that was killed on purpose cannot be stopped again
                    nodes.simulated.shutdown()
            kill_left(agents)


def _has_ended(nodes: Nodes) -> bool:
    """Whether the raylet that this process started and was connected to has ended."""
    node = ray_worker._global_node if nodes.simulated is None else nodes.simulated.head_node
    started = [] if node is None else node.all_processes.get("raylet", [])
    return any(one.process.poll() is not None for one in started)


def _list_own_raylets(nodes: Nodes) -> list[int]:
    """List the processes of raylets that were started here; none of a cluster that was joined."""
    own = [ray_worker._global_node] if nodes.simulated is None else nodes.simulated.list_all_nodes()
    return [
        started.process.pid
        for node in own
        if node is not None
        for started in node.all_processes.get("raylet", [])
    ]


def _read_variables_anew() -> None:
    """Forget the token and the mode of a cluster that this process had before."""
    with contextlib.suppress(AttributeError):  # older versions of Ray know no tokens
        tokens = ray._raylet.AuthenticationTokenLoader.instance()
        ray._raylet.Config.initialize("")
        tokens.reset_cache()


def _join(address: str, quiet: dict[str, object]) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        # Ray itself waits for minutes, and complains on standard error, where nobody is.
        knock(address)
        _show_token_where_asked(address)
        ray.init(
            address=address, job_config=WithoutCurrentFolder(), runtime_env=ship_code(), **quiet
        )
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--address {address}: no Ray cluster can be joined there: {first_line(error)}"
        ) from None


def _show_token_where_asked(address: str) -> None:
    """Show a cluster this machine's token, which ``ray start`` asks for as soon as there is one,
    but ``ray.init`` does not show by itself.
    """
    with contextlib.suppress(ImportError):  # older versions of Ray know no tokens
        from ray._private.authentication import authentication_token_setup as tokens
        from ray.exceptions import AuthenticationError

        try:
            ray._raylet.GcsClient(address=address).internal_kv_get(
                b"moesim", None, timeout=ANSWER_S
            )
        except AuthenticationError:
            tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        except Exception:  # whatever else is wrong, joining will say it
            pass


def _start(
    nodes: Nodes, simulated_nodes: int | None, cores: int | None, quiet: dict[str, object]
) -> None:
    if simulated_nodes is not None:
        _simulate(nodes, simulated_nodes, quiet)
        return
    ray.init(
        address="local",
        num_cpus=cores,
        include_dashboard=False,
        job_config=WithoutCurrentFolder(),
        **quiet,
    )


def _simulate(nodes: Nodes, number: int, quiet: dict[str, object]) -> None:
    # The head has no CPUs, so that no shard lands on it and every simulated node can be killed.
    logging.getLogger("ray").setLevel(logging.ERROR)
    nodes.simulated = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **_BARE})
    for i in range(number):
        started = nodes.simulated.add_node(
            num_cpus=count_cores(), resources={_mark(i): 1.0}, **_BARE
        )
        nodes._simulated_nodes.append(started)
    ray.init(address=nodes.simulated.address, job_config=WithoutCurrentFolder(), **quiet)
    nodes.simulated.wait_for_nodes()


class WithoutCurrentFolder(JobConfig):
    """Job whose workers search for modules where any Python process does.

    Ray itself would put the current folder and the script's in front of everything else, so that a
    stray ``numpy.py`` beside a scenario ran in every worker. Where moesim is not installed but
    found on the path of this process alone (``python -m simulator`` in a checkout), its own folder
    stands there, unless a runtime environment ships it.
    """

    def _serialize(self) -> bytes:
        self._py_driver_sys_path = [] if self.runtime_env else _folders()
        serialized: bytes = super()._serialize()
        return serialized


def _folders() -> list[str]:
    package = Path(simulator.__file__).resolve().parent
    paths = map(os.path.realpath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    return [] if is_installed(package) or str(package.parent) in paths else [str(package.parent)]


# Check that a Ray cluster's head still answers. Without it Ray's compiled code ends this program
# silently after a minute.


_EVERY_S = 1.0
"""Seconds between two checks, so that a loss is reported long before Ray gives up on the head."""
_TRIES = 2
"""Checks without an answer in a row after which the head counts as lost."""
ANSWER_S = 5.0
"""Seconds after which an address that has not answered has no listener. The operating system
answers for a listener at once, however busy the machine is."""


class Head:
    """Head of a cluster: its address, and the process here that it depends on."""

    def __init__(self, address: str, has_ended: Callable[[], bool] = lambda: False) -> None:
        """Prepare to watch the head.

        Args:
            address: of the server that knows all of the cluster's nodes (``host:port``).
            has_ended: whether a process that this connection depends on has ended.
        """
        self.address, self._has_ended = address, has_ended
        self.lost: str | None = None
        """Description of the loss, as a sentence without its end; ``None`` while nothing is
        lost."""

    def look(self) -> None:
        """Check now that the head is still there."""
        if self._has_ended():
            self.lost = "its raylet, which this process was connected to, has ended"
        elif not any(answers(self.address) for _ in range(_TRIES)):
            self.lost = f"its head at {self.address} does not answer any more"

    @contextlib.contextmanager
    def watch_until_lost(self) -> Iterator[None]:
        """Check regularly within this context; in the main thread a loss interrupts it, as SIGTERM
        does.
        """
        is_main = threading.current_thread() is threading.main_thread()
        left = threading.Event()

        def watch() -> None:
            while not left.wait(_EVERY_S):
                self.look()
                if self.lost is not None:
                    if is_main and not left.is_set():
                        _thread.interrupt_main(signal.SIGTERM)
                    return

        watcher = threading.Thread(target=watch, name="watches Ray", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            left.set()


def answers(address: str) -> bool:
    """Whether a server listens at ``host:port``."""
    try:
        knock(address)
    except OSError:
        return False
    return True


def knock(address: str) -> None:
    """Connect to ``host:port``, and disconnect again.

    Raises:
        OSError: if no server listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
