"""Jobs, read from a file, by the name of a shipped one or from a table, with keys overridden."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from simulator.base.data import available_files
from simulator.base.errors import UserError, did_you_mean
from simulator.base.home import fetch
from simulator.base.reading import read_toml
from simulator.base.text import inline_toml
from simulator.config.capacity import Question
from simulator.config.job import Job
from simulator.config.named import NAMING, choose_entries, split_name
from simulator.config.training_question import TrainingQuestion
from simulator.scenario.question import check_question, check_training_question
from simulator.scenario.scenario import Scenario, TrainingScenario

Overrides = Sequence[str] | Mapping[str, object]
"""Keys that replace those of a file: ``path=value`` texts as of the command line, or values by
path. A path is dotted (``workload.num_requests``, ``deployments.0.parallel.tp``); ``*`` means every
entry of a list."""
Source = Job | str | Path | Mapping[str, object]
"""Path of a TOML file, name of a shipped one, the same keys as a table (paths in it are relative to
the current folder), or a job, which overrides change."""
AnyJob = TypeVar("AnyJob", bound=Job)
SCENARIOS: tuple[type[Scenario | TrainingScenario], ...] = (Scenario, TrainingScenario)
QUESTIONS: tuple[type[Question | TrainingQuestion], ...] = (Question, TrainingQuestion)


def load_job(
    source: Source,
    kinds: tuple[type[AnyJob], ...],
    overrides: Overrides = (),
    seed: int | None = None,
) -> AnyJob:
    """Read a job, override its keys, validate it, and look up the names in it.

    Args:
        kinds: those that will do, such as ``SCENARIOS``.
        overrides: values by dotted path, ``{"workload.num_requests": 1000}``; ``*`` means every
            entry of a list: ``{"deployments.*.engine": "sglang"}``. Or texts as of the command
            line: ``["workload.num_requests=1000"]``.
        seed: seed of all random numbers; ``None`` = the job's own.

    Raises:
        UserError: if the file is missing or wrong, is a job of another kind, or an override names
            no place.

    >>> load_job("mixtral_vs_llama2_training", (TrainingScenario,)).training.sequence_tokens
    4096
    """
    first = kinds[0]
    if isinstance(source, Job):
        table = source.model_dump(mode="json", exclude_unset=True)
        where, folder = source.where, source.folder
    elif isinstance(source, Mapping):
        table, where, folder = copy.deepcopy(dict(source)), first.NOUN, Path.cwd()
        table.setdefault("name", where)
    elif isinstance(source, str | Path):
        path = find_job(str(source), kinds)
        table, where, folder = read_toml(path), str(path), path.resolve().parent
        table.setdefault("name", path.stem)
    else:
        raise UserError(
            f"a {first.NOUN} is a path, a shipped name or a table, not {type(source).__name__}"
        )
    texts = override_all(table, overrides)
    if seed is not None:
        table["seed"] = seed
    changed = " with --set " + " --set ".join(texts) if texts else ""
    own = find_kind(table) or first
    if own not in kinds:
        raise UserError(
            f"{where}{changed}: is a {own.NOUN}, which {own.TAKEN}; "
            f"a {first.NOUN} has {first.TABLES}"
        )
    job = own.read(table, where, folder, changed)
    if isinstance(job, Question):
        check_question(job, f"{where}{changed}")
    elif isinstance(job, TrainingQuestion):
        check_training_question(job)
    assert isinstance(job, kinds)
    return job


def load_scenario(source: Source, overrides: Overrides = (), seed: int | None = None) -> Scenario:
    """Read a scenario, override its keys, and validate it.

    Args:
        source: path of a TOML file, name of a shipped one, the same keys as a table, or a scenario,
            which ``overrides`` change.
        overrides: values by dotted path, ``{"workload.num_requests": 1000}``; ``*`` means every
            entry of a list: ``{"deployments.*.engine": "sglang"}``.
        seed: seed of all random numbers; ``None`` = the scenario's own.

    Raises:
        UserError: if the file is missing or wrong, or an override names no place.

    >>> scenario = load_scenario("mixtral_vs_llama2", {"workload.num_requests": 100}, seed=7)
    >>> scenario.workload.num_requests, scenario.seed
    (100, 7)
    """
    return load_job(source, (Scenario,), overrides, seed)


def load_question(source: Source, overrides: Overrides = (), seed: int | None = None) -> Question:
    """Read a plan's question, override its keys, validate it, and look up every name in it.

    Args:
        source: as :func:`load_scenario` takes it.
        overrides: values by dotted path, ``{"clusters.0.price_per_gpu_hour": 2.1}``.
        seed: seed of all random numbers; ``None`` = the question's own.

    Raises:
        UserError: if the file is missing or wrong, names what does not exist, or an override names
            no place.

    >>> load_question("azure_conv", {"workload.rate_scale": 2.0}).workload.rate_scale
    2.0
    """
    return load_job(source, (Question,), overrides, seed)


def find_kind(table: Mapping[str, object]) -> type[Job] | None:
    """Kind of the job that a table is, by its keys; ``None`` where they do not tell it."""
    is_training = "training" in table
    if "deployments" in table:
        return TrainingScenario if is_training else Scenario
    if "targets" in table or "clusters" in table:
        return TrainingQuestion if is_training else Question
    return TrainingScenario if is_training else None


def find_job(name: str, kinds: tuple[type[Job], ...]) -> Path:
    """Path of a job's file, or of a shipped one by name.

    Raises:
        UserError: naming the nearest that ships.
    """
    path, noun = fetch(Path(name)), kinds[0].NOUN
    if path.suffix != ".toml" and not path.is_file():
        shipped = {key: file for one in kinds for key, file in available_files(one.FAMILY).items()}
        if name in shipped:
            path = shipped[name]
        elif not path.exists():
            raise UserError(
                f"{name}: no such file, and no shipped {noun} of that "
                f"name; {did_you_mean(name, shipped)}"
            )
    if path.suffix == ".json":
        raise UserError(
            f"{path}: a {noun} is a TOML file; a model's config.json is named by "
            f"a {noun}'s model key"
        )
    return path


def override_texts(overrides: Overrides) -> list[str]:
    """Overrides as ``path=value`` texts of the command line.

    Raises:
        UserError: if a value is or has ``None``, which TOML does not have.

    >>> override_texts({"workload.rate_scale": 2.0, "deployments.*.engine": "sglang"})
    ['workload.rate_scale=2.0', 'deployments.*.engine="sglang"']
    """
    if isinstance(overrides, str):
        return [overrides]
    if isinstance(overrides, Mapping):
        return [_override_text(path, value) for path, value in overrides.items()]
    return list(overrides)


def _override_text(path: str, value: Any) -> str:
    try:
        return f"{path}={inline_toml(value)}"
    except ValueError as error:
        raise UserError(f"--set {path}: {error}") from None


def override_all(table: dict[str, object], overrides: Overrides) -> list[str]:
    """Put all values in their places in a file's table, and return them as texts.

    Raises:
        UserError: if an override names no place.
    """
    texts = override_texts(overrides)
    for text in texts:
        path, equals, value = text.partition("=")
        keys = _split_path(path if equals else "", text)
        if not value.strip():
            raise UserError(f'--set {text}: has no value behind the =; an empty text is ""')
        _replace(table, keys, _read_value(value.strip(), text), text)
    return texts


def _split_path(path: str, override: str) -> list[str]:
    keys = path.strip().split(".")
    if not all(keys):
        raise UserError(f"--set {override}: must be path=value, such as workload.num_requests=1000")
    return [key.strip() for key in keys]


def _read_value(text: str, override: str) -> Any:
    """A TOML value; what is none is a text without quotes, unless it looks like a list, a table or
    a quoted text.
    """
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError) as error:
        if text[0] in "[{\"'":
            raise UserError(f"--set {override}: {text} is not a TOML value: {error}") from None
        return text
    return found["value"] if len(found) == 1 else text


def _replace(node: Any, keys: list[str], value: Any, override: str) -> None:
    key, rest = keys[0], keys[1:]
    if isinstance(node, list):
        for entry in choose_entries(key, len(node), f"--set {override}"):
            if rest:
                _replace(node[entry], rest, value, override)
            else:
                node[entry] = value
    elif not isinstance(node, dict):
        raise UserError(
            f"--set {override}: '{key}' lies inside a value that is not a table; shorten the path"
        )
    elif rest:
        if key in NAMING and isinstance(node.get(key), str):
            base, changes = split_name(node[key])
            node[key] = {"base": base, **changes}
        _replace(node.setdefault(key, {}), rest, value, override)
    else:
        node[key] = value
