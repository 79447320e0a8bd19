"""Measurement of speed: the deployments of a scenario, run for real on this machine's shards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from simulator.base.arrays import Floats
from simulator.base.errors import check_known
from simulator.base.frozen import Frozen
from simulator.base.progress import Progress
from simulator.deployment.counterparts import choose_model
from simulator.lab.commands.claim_measurements import Trial
from simulator.lab.results.claims import Case, Spread
from simulator.results.executed import Executed
from simulator.runtime import require
from simulator.scenario.jobs import load_scenario
from simulator.scenario.scenario import Scenario

_START_S = 12.0
"""Seconds in which Ray and its first shards start (two cores of an AMD EPYC)."""
_DRAWS = 1000
"""Draws of a bootstrap: enough for ends of bands to two digits."""
_WORDS = {"prompt": "prompts", "decode": "decoding"}


class Execution(Frozen):
    """Tokens a second of a mixture of experts over those of its rivals, as ``moesim execute``
    measures them.
    """

    scenario: str
    """Scenario whose deployments are run: the name of a shipped one, or a path from where the
    command is run."""
    mixture: str
    """Deployment of the mixture of experts."""
    rivals: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """Deployments that the claim speaks of; the others of the scenario stand beside it."""
    backend: Literal["ray", "in_process"] = "ray"
    """Ranks: Ray actors, or threads of one process."""

    @property
    def command(self) -> str:
        return f"moesim execute {self.scenario} --backend {self.backend}"

    def identify(self) -> str:
        scenario = self._load()
        models = [
            choose_model(one, scenario.where, scenario.folder).model_dump_json()
            for one in scenario.deployments
        ]
        return "\n".join((self.model_dump_json(), scenario.model_dump_json(), *models))

    def expect_s(self) -> float:
        require("torch")
        if self.backend == "ray":
            require("ray")
        from simulator.commands.execute import list_steps, spread_evenly
        from simulator.deployment.plan import make_plan
        from simulator.engine.probe import forecast
        from simulator.runtime.job import make_job

        scenario = self._load()
        total_s = _START_S
        for deployment in scenario.deployments:
            plan = make_plan(deployment, scenario.seed, scenario.where, scenario.folder)
            make_job(plan, scenario.folder)  # refuses what can only be simulated
            steps = list_steps(scenario.execution)
            kinds = {kind: step for kind, step, _ in steps}
            times = forecast(plan, [spread_evenly(plan, step) for step in kinds.values()])
            for kind, predicted in zip(kinds, times, strict=True):
                total_s += predicted.duration_s * sum(one == kind for one, _, _ in steps)
        return total_s

    def measure(self, tick: Progress) -> Trial:
        require("torch")
        from simulator.commands.execute import execute

        executed = execute(self._load(), backend=self.backend, progress=tick)
        sentences = (executed.verdict["headline"], *executed.verdict["reasons"])
        share = float(executed.summary["others_share"].max())
        return Trial(tuple(self._compare(executed)), sentences, share)

    def _load(self) -> Scenario:
        scenario = load_scenario(self.scenario)
        known = [one.name for one in scenario.deployments]
        for name in (self.mixture, *self.rivals):
            check_known(name, known, f"claim [real]: {self.scenario} has no deployment")
        return scenario

    def _compare(self, executed: Executed) -> Iterator[Case]:
        summary = executed.summary.set_index(["deployment", "kind"])
        for kind in dict.fromkeys(executed.summary["kind"]):
            own_s = _find_steps(executed.steps, self.mixture, kind)
            moe = summary.loc[(self.mixture, kind)]
            for name in executed.deployments:
                if name == self.mixture:
                    continue
                rival = summary.loc[(name, kind)]
                speeds = compare_medians(own_s, _find_steps(executed.steps, name, kind))
                predicted = moe["predicted_tokens_per_s"] / rival["predicted_tokens_per_s"]
                yield Case(
                    rival=name,
                    conditions={"phase": _WORDS[kind]},
                    **speeds._asdict(),
                    moe=f"{moe['tokens_per_s']:,.0f} tokens/s",
                    other=f"{rival['tokens_per_s']:,.0f} tokens/s",
                    counts=name in self.rivals,
                    note=f"simulated {predicted:.3g}",
                )


def _find_steps(steps: pd.DataFrame, deployment: str, kind: str) -> Floats:
    """Seconds of the measured steps of a kind, over their tokens."""
    own = steps[
        (steps["deployment"] == deployment)
        & (steps["kind"] == kind)
        & (steps["source"] == "measured")
    ]
    return (own["duration_s"] / own["tokens"]).to_numpy(np.float64)


def compare_medians(own: Floats, other: Floats) -> Spread:
    """Median of ``other`` over that of ``own``, with its 95 % band by the bootstrap (B. Efron,
    Annals of Statistics 7, 1979).

    >>> compare_medians(np.array([1.0, 1.0]), np.array([2.0, 2.0]))
    Spread(ratio=2.0, low=2.0, high=2.0)
    """
    rng = np.random.default_rng(0)
    medians = [
        np.median(rng.choice(values, (_DRAWS, len(values))), axis=1) for values in (own, other)
    ]
    low, high = np.quantile(medians[1] / medians[0], (0.025, 0.975))
    return Spread(float(np.median(other) / np.median(own)), float(low), float(high))
