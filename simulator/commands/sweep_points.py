"""The points of a sweep: every combination of scenarios, swept values and seeds."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.base.errors import UserError
from simulator.base.text import inline_toml, make_plain
from simulator.results.sweep_text import value_text
from simulator.scenario.scenario import load_scenario

SweptKeys = Sequence[str] | Mapping[str, Sequence[Any]]
"""Keys with the values that each takes: lists by dotted path, or ``path=value,value`` texts."""
_SCENARIO = "scenario"
"""Key that stands for the file, where there are several."""
_MOST_POINTS = 1_000
"""Folders of a sweep: each has some three megabytes, the page with its plots among them."""
_LONGEST_NAME = 100
"""Characters of a point's folder."""


@dataclass(frozen=True)
class Point:
    """Run of a sweep at one setting and seed."""

    name: str
    """Name of its folder."""
    scenario: str
    overrides: tuple[str, ...]
    seed: int
    setting: tuple[tuple[str, Any], ...]
    """The swept keys with their values."""


def list_points(
    scenarios: Sequence[str],
    overrides: Sequence[str],
    keys: SweptKeys,
    seed: int | None,
    num_seeds: int,
) -> tuple[list[Point], dict[str, list[Any]]]:
    """List every combination of scenarios, swept values and seeds, and the values of each swept
    key.

    Args:
        overrides: ``path=value`` texts that hold for all points.
        seed: first seed; ``None`` = each scenario's own.

    Raises:
        UserError: if a text names nothing, a key comes twice, there are too many points, or a
            scenario does not exist or takes no such value.
    """
    if not scenarios or num_seeds < 1:
        raise UserError(
            f"a sweep needs a scenario and a seed, got {len(scenarios)} and {num_seeds}"
        )
    twice = [name for number, name in enumerate(scenarios) if name in scenarios[:number]]
    if twice:
        raise UserError(f"{twice[0]}: is named twice; --seeds N runs it with several seeds")
    swept = _read_keys(keys)
    num_points = len(scenarios) * num_seeds
    for given in swept.values():
        num_points *= len(given)
    if num_points > _MOST_POINTS:
        raise UserError(
            f"--sweep: {num_points:,} points, must be at most {_MOST_POINTS:,}; sweep fewer values"
        )
    values: dict[str, list[Any]] = {_SCENARIO: list(scenarios)} if len(scenarios) > 1 else {}
    values |= swept
    points: list[Point] = []
    for scenario, *chosen in itertools.product(scenarios, *swept.values()):
        setting = dict(zip(swept, chosen, strict=True))
        texts = (*overrides, *(f"{key}={inline_toml(value)}" for key, value in setting.items()))
        loaded = load_scenario(scenario, texts, seed)
        stem = Path(loaded.where).stem
        if len(scenarios) > 1:
            setting = {_SCENARIO: scenario, **setting}
        for number in range(num_seeds):
            own = loaded.seed + number
            points.append(
                Point(
                    _name_point(len(points), stem, setting, own if num_seeds > 1 else None),
                    scenario,
                    texts,
                    own,
                    tuple(setting.items()),
                )
            )
    return points, values


def _read_keys(keys: SweptKeys) -> dict[str, list[Any]]:
    if isinstance(keys, Mapping):
        return {key: _check_values(key, list(values), key) for key, values in keys.items()}
    swept = dict(map(_read_key, keys))
    if len(swept) < len(keys):
        raise UserError("--sweep: a key is named twice; give all its values at once")
    return swept


def _read_key(text: str) -> tuple[str, list[Any]]:
    """The key and its values in ``path=value,value``.

    >>> _read_key("workload.rate_scale=1,2.5")
    ('workload.rate_scale', [1, 2.5])
    >>> _read_key("deployments.0.engine=vllm,sglang")
    ('deployments.0.engine', ['vllm', 'sglang'])
    """
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise UserError(
            f"--sweep {text}: must be path=value,value, such as workload.rate_scale=1,2,4"
        )
    try:
        found = tomllib.loads(f"values = [{values}]")["values"]
    except tomllib.TOMLDecodeError:
        found = [_read_value(value.strip()) for value in values.split(",")]
    return key.strip(), _check_values(key.strip(), found, text)


def _check_values(key: str, values: Sequence[Any], text: str) -> list[Any]:
    """Values as JSON has them, dates as texts.

    Raises:
        UserError: if they cannot be swept.
    """
    found: list[Any] = json.loads(json.dumps(list(map(make_plain, values)), default=str))
    if None in found:
        raise UserError(f"--sweep {text}: None is no value that a file can hold")
    if key == "seed":
        raise UserError(f"--sweep {text}: seeds are asked for by --seeds N")
    if not found or any(value == "" for value in found):
        raise UserError(f"--sweep {text}: there is an empty value among them")
    again = [value for number, value in enumerate(found) if value in found[:number]]
    if again:
        raise UserError(f"--sweep {text}: {again[0]!r} is named twice")
    return found


def _read_value(text: str) -> Any:
    """A TOML value, or a text without quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _name_point(number: int, stem: str, setting: Mapping[str, Any], seed: int | None) -> str:
    """Name of a point's folder: its number, so that names differ, and its setting in letters that
    any file system takes.
    """
    parts = [stem, *(f"{key.split('.')[-1]}-{value_text(value)}" for key, value in setting.items())]
    parts += [] if seed is None else [f"seed-{seed}"]
    letters = "".join(c if c.isalnum() or c in "-._" else "-" for c in "_".join(parts))
    while "--" in letters:
        letters = letters.replace("--", "-")
    return f"{number:03}_{letters}"[:_LONGEST_NAME].rstrip("-._")
