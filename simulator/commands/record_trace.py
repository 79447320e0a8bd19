"""``moesim trace record``: make a recording of expert choices, and the files that go with it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from simulator import __version__
from simulator.base.errors import UserError
from simulator.base.progress import Progress
from simulator.base.spreadsheet import write_csv
from simulator.config.model import ModelSpec
from simulator.deployment.plan import make_plan
from simulator.runtime import require
from simulator.runtime.recording.comparison import (
    SAME_TIME,
    SAME_TOKENS,
    Outcome,
    findings,
    headline,
    outcomes,
)
from simulator.runtime.recording.corpus import read_corpus, read_texts
from simulator.runtime.recording.models import MOE, Shape, model_toml, three_models
from simulator.runtime.recording.trace_file import Recording, write_recording
from simulator.scenario.scenario import Scenario

if TYPE_CHECKING:
    from simulator.runtime.recording.training import Recipe, Training

_MIN_STEPS = 20
_LONGEST_MINUTES = 24 * 60.0


@dataclass(frozen=True)
class TrainedRecording:
    """A mixture of experts that was trained here, what it chose, and how it compares with its dense
    twins.
    """

    recording: Recording
    models: dict[str, ModelSpec]
    curve: pd.DataFrame
    """Columns ``run``, ``model``, ``step``, ``tokens``, ``seconds``, ``wall_seconds``,
    ``cpu_seconds``, ``train_loss``, ``held_out_loss``; a row a run, model and evaluation.
    ``seconds`` are steps times the model's median step in the first run: every step does the same
    work, so what a step takes longer is other programs'. ``wall_seconds`` is the sum as it was,
    ``cpu_seconds`` the processor time."""
    outcomes: list[Outcome]
    training: Training

    @property
    def headline(self) -> str:
        """The result in a sentence."""
        return headline(self.outcomes)

    @property
    def findings(self) -> list[str]:
        """Further findings of the comparison, a sentence each."""
        return findings(self.outcomes)

    def summary(self) -> dict[str, Any]:
        """Numbers that ``--json`` prints."""
        return {
            "headline": self.headline,
            "findings": self.findings,
            "models": [dataclasses.asdict(row) for row in self.outcomes],
            **describe(self.recording),
        }


def train_and_record(
    text: Path | None,
    minutes: float,
    steps: int | None,
    tokens: int,
    seed: int,
    tick: Progress,
    shape: Shape | None = None,
    recipe: Recipe | None = None,
) -> TrainedRecording:
    """Train a mixture of experts and its dense twins side by side, and record the mixture's choices
    on held-out text.

    Two runs: all models on the same tokens, then the dense ones anew for as long as the mixture
    computed.

    Args:
        text: a folder of text files; ``None`` for Python's standard library.
        minutes: all of it should take, where ``steps`` is ``None``; the number of steps is then
            chosen by timing a few.
        steps: of every model in the first run.
        tokens: held-out tokens to record (and to measure the loss on).

    Raises:
        UserError: if PyTorch is missing, an argument makes no sense, or there is too little text.
    """
    if steps is not None and steps < 1:
        raise UserError(f"--steps {steps}: must be at least 1")
    if not 0 < minutes <= _LONGEST_MINUTES:
        raise UserError(f"--minutes {minutes:g}: must be above 0, and a day at most")
    _check_tokens(tokens)
    require("torch", "training a model")
    from simulator.runtime.recording.training import (
        MIXTURE_NAME,
        Training,
        choose_held_out,
        describe_computation,
        route,
    )

    shape = shape or Shape()
    corpus = read_corpus(text, seed, shape.context)
    held = choose_held_out(corpus, shape.context, tokens)
    models = three_models(shape, MIXTURE_NAME)
    training = Training(models, corpus, held, shape, seed, recipe)
    if steps is None:
        tick("timing the first steps", 0, None)
        steps = _count_steps(minutes * 60, *training.time_a_step(), training.recipe.num_evaluations)
    _train(
        training,
        dict.fromkeys(models, steps),
        f"training {len(models)} models on the same tokens",
        tick,
    )
    # The dense models again, for as long as the mixture computed: cut off early, their learning
    # rates would not have fallen.
    step_s = training.median_step_s()
    dense = {
        name: max(1, round(steps * step_s[MOE] / step_s[name])) for name in models if name != MOE
    }
    again = Training({name: models[name] for name in dense}, corpus, held, shape, seed, recipe)
    _train(again, dense, "training the dense ones for the same time", tick)
    curve = pd.concat(
        [_make_curve(training, SAME_TOKENS, step_s), _make_curve(again, SAME_TIME, step_s)],
        ignore_index=True,
    )
    rows = outcomes(models, curve, {SAME_TOKENS: training.loss_Q, SAME_TIME: again.loss_Q})
    moe = rows[0]
    recording = Recording(
        topk_ids_LTK=route(training.transformer(MOE), held.tokens_QS),
        seq_lens_Q=held.lengths_Q,
        domain_Q=held.domain_Q,
        num_experts=shape.num_experts,
        provenance=(
            f"moesim {__version__} trace record train --steps {steps} --tokens {tokens} "
            f"--seed {seed}; {describe_computation()}. A byte-level mixture of experts "
            f"({moe.num_parameters:,} parameters, {moe.num_active_parameters:,} "
            f"active; {shape.num_layers} layers, {shape.num_experts} experts, top-{shape.top_k}) "
            f"trained on {moe.tokens:,} tokens of {corpus.description} "
            f"({corpus.num_training_bytes:,} bytes, {len(corpus.domains)} domains); "
            f"held-out loss {moe.held_out_loss:.3f} nats a byte. "
            "Recorded on files that were held out of training, every byte a token."
        ),
    )
    return TrainedRecording(recording, models, curve, rows, training)


def _count_steps(
    limit_s: float, step_s: dict[str, float], evaluation_s: float, num_evaluations: int
) -> int:
    """Steps of the first run that leave time for the second one, in which each dense model computes
    as long as the mixture.
    """
    round_s = sum(step_s.values()) + (len(step_s) - 1) * step_s[MOE]
    runs = 1 + (len(step_s) - 1) / len(step_s)
    return max(_MIN_STEPS, round((limit_s - runs * (num_evaluations + 1) * evaluation_s) / round_s))


def _train(training: Training, steps: dict[str, int], label: str, tick: Progress) -> None:
    num_rounds = max(steps.values())
    tick(label, 0, num_rounds)
    for done in training.run(steps):
        tick(label, done, num_rounds)


def _make_curve(training: Training, run: str, step_s: dict[str, float]) -> pd.DataFrame:
    curve = pd.DataFrame([dataclasses.asdict(point) for point in training.curve])
    curve.insert(0, "run", run)
    curve.insert(4, "seconds", curve["step"] * curve["model"].map(step_s))
    return curve


def write_training(made: TrainedRecording, target: Path, partial: dict[str, Path]) -> None:
    """Write a trained model's files.

    Args:
        target: where the recording will be in the end, which the model file names.
        partial: where to write, by what: ``recording``, ``curve``, ``page``, ``model``, and
            ``weights`` where they are wanted.
    """
    from simulator.report.training_page import render

    write_recording(made.recording, partial["recording"])
    write_csv(made.curve, partial["curve"], float_format="%.6g")
    facts = {"Provenance": made.recording.provenance, "Recording": target.name}
    loads = {"all domains": made.recording.load()} | {
        name: made.recording.load(name) for name in made.recording.domains
    }
    rows = pd.DataFrame([dataclasses.asdict(row) for row in made.outcomes])
    page = render(made.headline, made.findings, rows, made.curve, loads, facts)
    partial["page"].write_text(page, encoding="utf-8")
    title = f"Mixture of experts of {target.stem}"
    written = model_toml(
        made.models[MOE],
        title,
        target.name,
        f"trained and recorded by moesim; see provenance in {target.name}",
    )
    partial["model"].write_text(written, encoding="utf-8")
    if "weights" in partial:
        require("safetensors", "writing weights")
        from simulator.runtime.layers.weights import save_weights

        save_weights(made.training.transformer(MOE).named_weights(), partial["weights"])


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
    _check_tokens(tokens)
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
    _check_tokens(tokens)
    for package in ("torch", "ray"):
        require(package, "running shards")
    from simulator.runtime.job import make_job
    from simulator.runtime.nodes import connect
    from simulator.runtime.ray_backend import RayBackend
    from simulator.runtime.recording.shards import record_shards

    chosen = scenario.choose_deployments([] if deployment is None else [deployment])
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


def describe(recording: Recording) -> dict[str, Any]:
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


def _check_tokens(tokens: int) -> None:
    if tokens < 1:
        raise UserError(f"--tokens {tokens}: must be at least 1")
