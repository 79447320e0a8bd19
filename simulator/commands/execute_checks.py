"""Refusals of what ``moesim execute`` cannot run, before anything is started."""

from __future__ import annotations

from simulator.base.errors import UserError
from simulator.base.plugins import build
from simulator.commands.execute_steps import list_steps
from simulator.config.execution import ExecutionSpec
from simulator.deployment.plan import DeploymentPlan


def check_measured(plan: DeploymentPlan) -> None:
    """Refuse a number of ranks whose collectives were not measured before it has run, not after."""
    from simulator.config.host import HostRates

    placement = plan.placement
    if isinstance(placement.calibration, HostRates) and placement.layout.num_ranks > 1:
        _ = placement.calibration.collectives


def check_backend(backend: str, simulated_nodes: int | None, address: str | None) -> None:
    """Refuse an unknown backend, and places that it does not have."""
    if backend not in ("ray", "in_process"):
        raise UserError(f"--backend {backend or repr(backend)}: must be ray or in_process")
    for option, value in (("--simulated-nodes", simulated_nodes), ("--address", address)):
        if backend == "in_process" and value is not None:
            raise UserError(f"{option}: --backend in_process has no nodes; leave one of them out")
    if simulated_nodes is not None and address is not None:
        raise UserError(
            "--simulated-nodes and --address: nodes are simulated on this machine or found in a "
            "cluster; give one of them"
        )


def check_transport(execution: ExecutionSpec, file: str) -> None:
    """Refuse a transport that joins no processes."""
    where = f"{file} [execution.transport]"
    if not build("runtime.transport", execution.transport, where).joins_processes:
        raise UserError(
            f"{where}: '{execution.transport['kind']}' joins threads of one process, "
            "and shards are processes of their own"
        )


def check_faults(
    execution: ExecutionSpec, plans: list[DeploymentPlan], simulated_nodes: int | None
) -> None:
    """Refuse faults of ranks, nodes and steps that are not there."""
    for fault in execution.faults:
        for plan in plans:
            if fault.rank is not None and fault.rank >= plan.placement.layout.num_ranks:
                last = plan.placement.layout.num_ranks - 1
                raise UserError(
                    f"execution.faults: rank {fault.rank}: '{plan.name}' has ranks 0 to {last}"
                )
        if fault.node is not None and fault.node >= (simulated_nodes or 0):
            raise UserError(
                f"execution.faults: node {fault.node} cannot be killed: "
                f"start it with --simulated-nodes {fault.node + 1} or more"
            )
        if fault.step > list_steps(execution)[-1][1].number:
            raise UserError(
                f"execution.faults: step {fault.step}: the last one "
                f"is {list_steps(execution)[-1][1].number}"
            )
