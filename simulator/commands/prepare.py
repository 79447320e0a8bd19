"""Plans and requests of a scenario, checked before anything is run."""

from __future__ import annotations

from simulator.deployment.memory import check_requests
from simulator.deployment.own_policies import try_policies
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.scenario.scenario import Scenario
from simulator.workload.requests import load_requests, longest_tokens
from simulator.workload.traces import RequestTrace


def prepare_run(scenario: Scenario) -> tuple[list[DeploymentPlan], RequestTrace]:
    """Make the plans of all deployments, and load the requests that they serve.

    Raises:
        UserError: if anything that the scenario names is wrong or does not fit.
    """
    plans = [
        make_plan(deployment, scenario.seed, scenario.where, scenario.folder)
        for deployment in scenario.deployments
    ]
    place = f"{scenario.where} [workload]"
    trace = load_requests(scenario.workload, scenario.folder, scenario.seed, place)
    for pool in (pool for plan in plans for pool in plan.pools):
        try_policies(pool, trace)
        pool.check_prefixes(trace, f"{scenario.where} [deployments '{pool.name}']")
    for plan in plans:
        where = f"{scenario.where} [deployments '{plan.name}']"
        check_requests(
            plan.serving.capacity, longest_tokens(trace) + plan.placement.drafts.num_tokens, where
        )
        if plan.prefill is not None:
            longest = int(trace.num_input.max()) + 1
            check_requests(plan.prefill.serving.capacity, longest, f"{where} [prefill]")
    return plans, trace
