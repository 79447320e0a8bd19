"""``moesim trace record transformers`` and ``runtime``: record the expert choices of a model of
the ``transformers`` library, or of running shards.
"""

from __future__ import annotations

from pathlib import Path

from simulator import __version__
from simulator.base.errors import UserError
from simulator.base.progress import Progress
from simulator.deployment.plan import make_plan
from simulator.runtime import require
from simulator.runtime.recording.corpus import read_texts
from simulator.runtime.recording.trace_file import Recording
from simulator.scenario.scenario import Scenario, choose_deployments


def record_transformers(
    name: str, text: Path | None, tokens: int, seed: int, tick: Progress
) -> Recording:
    """Record the choices of a model of the ``transformers`` library.

    Args:
        name: a folder, or a name on the Hugging Face Hub.
        text: a folder of text files; ``None`` for Python's standard library.
        tokens: to record, as many of each domain.

    Raises:
        UserError: if a package or the text is missing, or the model cannot be loaded or understood.
    """
    check_tokens(tokens)
    for package in ("torch", "transformers"):
        require(package, "recording a transformers model")
    texts, description = read_texts(text, seed)
    tick(f"loading {name}", 0, None)
    from simulator.runtime.recording.huggingface import record_transformers as record

    return record(
        name,
        texts,
        tokens,
        f"{description} (seed {seed})",
        tick,
    )


def record_runtime(
    scenario: Scenario,
    deployment: str | None,
    text: Path | None,
    tokens: int,
    simulated_nodes: int | None,
    address: str | None,
    tick: Progress,
) -> Recording:
    """Record what the routers of a deployment choose while its shards run for real.

    Args:
        deployment: its name; ``None`` for the first one with experts.
        text: a folder of text files; ``None`` for Python's standard library.
        tokens: at least so many.

    Raises:
        UserError: if a package is missing, the scenario is wrong, or it has no such deployment.
    """
    check_tokens(tokens)
    for package in ("torch", "ray"):
        require(package, "running shards")
    from simulator.runtime.job import make_job
    from simulator.runtime.nodes import connect
    from simulator.runtime.ray_backend import RayBackend
    from simulator.runtime.recording.shards import record_shards

    chosen = choose_deployments(
        scenario.deployments, [] if deployment is None else [deployment], scenario.where
    )
    plans = [make_plan(entry, scenario.seed, scenario.where, scenario.folder) for entry in chosen]
    plan = next((plan for plan in plans if plan.placement.experts is not None), plans[0])
    job = make_job(plan, scenario.folder)
    texts, description = read_texts(text, scenario.seed)
    drawn = (
        "weights drawn from the seed"
        if job.weights is None
        else f"weights of {Path(job.weights).name}"
    )
    model = plan.placement.model
    provenance = (
        f"moesim {__version__} trace record runtime: {model.title or model.name} "
        f"({drawn}) on {description}, every byte a token;"
    )
    tick("starting Ray", 0, None)
    with connect(simulated_nodes, address) as nodes:
        backend = RayBackend(nodes, nodes.spread(plan.placement.fabric.node_R), scenario.execution)
        try:
            return record_shards(
                backend,
                job,
                scenario.execution,
                texts,
                tokens,
                provenance,
                tick,
            )
        finally:
            backend.close()


def describe(recording: Recording) -> dict[str, object]:
    """Describe a recording in numbers."""
    num_layers, num_tokens, top_k = recording.topk_ids_LTK.shape
    return {
        "moe_layers": num_layers,
        "tokens": num_tokens,
        "sequences": len(recording.seq_lens_Q),
        "experts": recording.num_experts,
        "top_k": top_k,
        "domains": recording.domains,
        "busiest_expert_over_mean": round(recording.imbalance, 3),
        "provenance": recording.provenance,
    }


def check_tokens(tokens: int) -> None:
    """Refuse to record no tokens.

    Raises:
        UserError: if there is nothing to record.
    """
    if tokens < 1:
        raise UserError(f"--tokens {tokens}: must be at least 1")
