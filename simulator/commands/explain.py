"""``moesim run --explain``: where the time of a run's tokens goes, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from simulator.base.progress import Progress, count_part
from simulator.deployment.plan import DeploymentPlan
from simulator.explanation.waterfall import explain_deployment
from simulator.results.folder import Results


def explain_run(
    plans: Sequence[DeploymentPlan], results: Results, progress: Progress
) -> dict[str, Any]:
    """Explain a run: the fields of an :class:`~simulator.results.explained.Explained` by
    deployment, as ``run.json`` holds them.
    """
    shown = count_part(progress, "explaining deployments", len(plans))
    found = {}
    for number, plan in enumerate(plans, 1):
        found[plan.name] = asdict(explain_deployment(plan, results))
        shown(number)
    return found
