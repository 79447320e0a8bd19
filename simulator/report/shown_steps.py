"""The steps that a run's page shows rank by rank, in words."""

from __future__ import annotations

from simulator.report import style
from simulator.results.folder import Results
from simulator.results.shown_steps import shown_step, step_text

WHICH = (
    "Headings say which step of the run it is, or that it is representative: as many tokens as a "
    "step of the run, spread evenly over the ranks."
)
"""Caption of the headings of figures of single steps."""


def heading(results: Results, name: str, phase: str) -> str:
    """The heading of a deployment's plot."""
    return f"{style.labels(results)[name]}: {step_text(results.run, name, phase)}"


def shared_heading(results: Results, names: list[str], phase: str) -> str:
    """The heading of a plot with the steps of several deployments."""
    if len(names) == 1:
        said = step_text(results.run, names[0], phase)
    else:
        sources = {shown_step(results.run, name, phase)["source"] for name in names}
        steps = {
            frozenset({"run"}): f"{phase} steps of the run",
            frozenset({"representative"}): f"representative {phase} steps",
        }
        said = steps.get(frozenset(sources), f"{phase} steps, of the run and representative")
    return f"{said[0].upper()}{said[1:]}"
