"""A scenario: one workload and the deployments to compare on it, as written in a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from simulator.base.data import available_files, find_file
from simulator.base.errors import UserError, did_you_mean
from simulator.base.frozen import Frozen, validate
from simulator.base.quantities import Seed
from simulator.base.reading import read_toml
from simulator.config.deployment import DeploymentSpec
from simulator.config.execution import ExecutionSpec
from simulator.config.workload import WorkloadSpec


class Scenario(Frozen):
    """What ``moesim run`` and ``moesim execute`` take."""

    name: str
    """Name of the scenario; absent = the file's."""
    seed: Seed = 0
    """Seed of all random numbers."""
    notes: str = ""
    """Remarks in free text."""
    workload: WorkloadSpec
    """Traffic that every deployment serves."""
    execution: ExecutionSpec = ExecutionSpec()
    """Steps that ``moesim execute`` runs for real; ``moesim run`` does not look at them."""
    deployments: Annotated[tuple[DeploymentSpec, ...], Field(strict=False, min_length=1)]
    """Deployments to compare."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [deployment.name for deployment in self.deployments]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two deployments are called '{twice[0]}'; give each its own name")
        return self


def load_scenario(
    name: str, overrides: list[str], seed: int | None = None
) -> tuple[Scenario, Path]:
    """The scenario in a file, or a shipped one by name, and the file.

    Args:
        overrides: ``path=value`` texts; the path is dotted (``workload.num_requests``,
            ``deployments.0.parallel.tp``; ``*`` means every deployment) and the value is TOML, or a
            bare text.

    Raises:
        UserError: if the file is missing or wrong, or an override names no place.
    """
    table, path, where = read_named(name, overrides, seed, "workloads", "scenario")
    if "deployments" not in table and ("targets" in table or "clusters" in table):
        raise UserError(
            f"{where}: is a plan, which moesim plan takes; a scenario has [[deployments]]"
        )
    return validate(Scenario, table, where), path


def read_named(
    name: str, overrides: list[str], seed: int | None, family: str, noun: str
) -> tuple[dict[str, Any], Path, str]:
    """The table in a file, or in a shipped one by name, with what is overridden; the file; and what
    errors call it.

    Raises:
        UserError: as :func:`load_scenario`.
    """
    path = Path(name)
    if path.suffix != ".toml" and not path.is_file():
        if name in available_files(family):
            path = find_file(family, name, name)
        elif not path.exists():
            raise UserError(
                f"{name}: no such file, and no shipped {noun} of that "
                f"name; {did_you_mean(name, available_files(family))}"
            )
    if path.suffix == ".json":
        raise UserError(
            f"{path}: a {noun} is a TOML file; a model's config.json is named by "
            f"a {noun}'s model key"
        )
    table = read_toml(path)
    table.setdefault("name", path.stem)
    for override in overrides:
        _override(table, override)
    if seed is not None:
        table["seed"] = seed
    changed = " with --set " + " --set ".join(overrides) if overrides else ""
    return table, path, f"{path}{changed}"


def _override(table: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: must be path=value, such as workload.num_requests=1000")
    if not text.strip():
        raise UserError(f'--set {override}: has no value behind the =; an empty text is ""')
    _put(table, [key.strip() for key in keys], _value(text.strip(), override), override)


def _value(text: str, override: str) -> Any:
    """A TOML value; what is none is a text without quotes, unless it looks like a list, a table or
    a quoted text.
    """
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text[0] in "[{\"'":
            raise UserError(f"--set {override}: {text} is not a TOML value: {error}") from None
        return text
    return found["value"] if len(found) == 1 else text


def _put(node: Any, keys: list[str], value: Any, override: str) -> None:
    key, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if key != "*" and not (key.isdecimal() and int(key) < len(node)):
            numbers = "0" if len(node) < 2 else f"a number from 0 to {len(node) - 1}"
            raise UserError(f"--set {override}: '{key}' must be {numbers}, or * for every entry")
        for entry in range(len(node)) if key == "*" else [int(key)]:
            if rest:
                _put(node[entry], rest, value, override)
            else:
                node[entry] = value
    elif not isinstance(node, dict):
        raise UserError(
            f"--set {override}: '{key}' lies inside a value that is not a table; shorten the path"
        )
    elif rest:
        _put(node.setdefault(key, {}), rest, value, override)
    else:
        node[key] = value
